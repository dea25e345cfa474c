"""Allow and deny lists of users, domains and the site. Each function is one transaction and blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from sendswitch.db.tables import list_entries, marks
from sendswitch.errors import NotFound, Temporary
from sendswitch.mail.address import key, valid

# The mark that counts changes, so that a node need not read all of it to see that there were none.
CHANGES = "lists"
# Entries written at once.
PIECE = 1000


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One entry. `scope` is an address, a domain, or '' for the site; `list` is `allow` or `deny`; times are seconds
    since the epoch, `expires` None for never."""

    id: int
    scope: str
    list: str
    entry: str
    reason: str
    author: str
    created: float
    expires: float | None


def scope_of(whose: str) -> str:
    """A user's address, a domain, or '' for the site, as lists are kept under it. Raises ValueError."""
    whose = whose.strip().removeprefix("@")
    if whose and not valid(whose if "@" in whose else f"x@{whose}"):
        raise ValueError(f"{whose!r} is no user@domain and no domain")
    return key(whose) if "@" in whose else whose.lower()


def add(
    engine: Engine,
    scope: str,
    list_: str,
    entries: Iterable[str],
    *,
    reason: str,
    author: str,
    expires: float | None = None,
) -> int:
    """Put entries on a list; one that is there already gets the new reason and time. Gives how many are new.

    Entries must have been checked.
    """
    wanted = list(dict.fromkeys(entries))
    known = {
        "reason": reason,
        "author": author,
        "created": time.time(),
        "expires": expires,
    }
    try:
        with engine.begin() as connection:
            there = _there(connection, scope, list_, wanted)
            for n in range(0, len(there), PIECE):
                here = list_entries.c.id.in_(list(there.values())[n : n + PIECE])
                connection.execute(update(list_entries).where(here).values(**known))
            new = [{"scope": scope, "list": list_, "entry": entry, **known} for entry in wanted if entry not in there]
            for n in range(0, len(new), PIECE):
                connection.execute(insert(list_entries), new[n : n + PIECE])
            _count(connection)
            return len(new)
    except IntegrityError as error:  # somebody was quicker
        raise Temporary(f"the list could not be changed, try again: {error.orig}") from error


def _there(connection: Connection, scope: str, list_: str, wanted: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for n in range(0, len(wanted), PIECE):
        query = select(list_entries.c.entry, list_entries.c.id).where(
            list_entries.c.scope == scope,
            list_entries.c.list == list_,
            list_entries.c.entry.in_(wanted[n : n + PIECE]),
        )
        found |= {entry: id_ for entry, id_ in connection.execute(query)}
    return found


def remove(engine: Engine, ids: Sequence[int]) -> int:
    """Take entries off; gives how many. Raises NotFound when one of them is not there, and then none is."""
    with engine.begin() as connection:
        done = connection.execute(delete(list_entries).where(list_entries.c.id.in_(ids))).rowcount
        if done < len(set(ids)):
            raise NotFound("there is no such entry; sendswitch list show tells their numbers")
        _count(connection)
        return done


def entries(engine: Engine, scope: str | None = None, now: float | None = None) -> list[ListEntry]:
    """Entries in the order they came, of one scope or of all; with `now` only those that hold then."""
    query = select(list_entries).order_by(list_entries.c.id)
    if scope is not None:
        query = query.where(list_entries.c.scope == scope)
    if now is not None:
        query = query.where(or_(list_entries.c.expires.is_(None), list_entries.c.expires > now))
    with engine.connect() as connection:
        return [ListEntry(*row) for row in connection.execute(query)]


def changes(engine: Engine) -> int:
    """How often the lists were changed."""
    with engine.connect() as connection:
        return int(connection.execute(select(marks.c.value).where(marks.c.name == CHANGES)).scalar() or 0)


def _count(connection: Connection) -> None:
    done = connection.execute(update(marks).where(marks.c.name == CHANGES).values(value=marks.c.value + 1)).rowcount
    if not done:
        connection.execute(insert(marks).values(name=CHANGES, value=1))
