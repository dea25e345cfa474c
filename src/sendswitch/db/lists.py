"""Allow and deny lists of users, domains and the site. Each function is one transaction and blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, bindparam, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from sendswitch.db import marks
from sendswitch.db.tables import list_entries
from sendswitch.errors import NotFound, Temporary
from sendswitch.mail.address import domain_key, key, valid

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
    """Return a user's address, a domain, or '' for the site, as lists are kept under it. Raises ValueError."""
    whose = whose.strip().removeprefix("@")
    if whose and not valid(whose if "@" in whose else f"x@{whose}"):
        raise ValueError(f"{whose!r} is no user@domain and no domain")
    return key(whose) if "@" in whose else domain_key(whose)


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
    """Put entries on a list. An entry that is on it already gets the new reason and time. Return the number of new
    ones.

    Entries must have been checked.
    """
    try:
        with engine.begin() as connection:
            return put(connection, scope, list_, dict.fromkeys(entries, (reason, expires)), author=author)
    except IntegrityError as error:  # another request was quicker
        raise Temporary(f"the list could not be changed, try again: {error.orig}") from error


def put(
    connection: Connection,
    scope: str,
    list_: str,
    entries: Mapping[str, tuple[str, float | None]],
    *,
    author: str,
) -> int:
    """Put entries on a list inside the caller's transaction, each with its own reason and time. Return the number of
    new ones.
    """
    marks.count(connection, marks.LISTS)
    wanted = list(entries)
    there = _there(connection, scope, list_, wanted)
    both = {"author": author, "created": time.time()}
    old = [{"b_id": there[entry], **_said(entries[entry]), **both} for entry in wanted if entry in there]
    if old:
        connection.execute(update(list_entries).where(list_entries.c.id == bindparam("b_id")), old)
    new = [
        {"scope": scope, "list": list_, "entry": entry, **_said(entries[entry]), **both}
        for entry in wanted
        if entry not in there
    ]
    for n in range(0, len(new), PIECE):
        connection.execute(insert(list_entries), new[n : n + PIECE])
    return len(new)


def _said(given: tuple[str, float | None]) -> dict[str, str | float | None]:
    return {"reason": given[0], "expires": given[1]}


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
    """Remove entries, all or none. Return their number. Raises NotFound."""
    with engine.begin() as connection:
        return take_off(connection, ids)


def take_off(connection: Connection, ids: Sequence[int]) -> int:
    """Remove entries inside the caller's transaction, all or none. Return their number. Raises NotFound."""
    marks.count(connection, marks.LISTS)
    done = 0
    for n in range(0, len(ids), PIECE):
        here = list_entries.c.id.in_(ids[n : n + PIECE])
        done += connection.execute(delete(list_entries).where(here)).rowcount
    if done < len(set(ids)):
        raise NotFound("there is no such entry; sendswitch list show tells their numbers")
    return done


def entries(engine: Engine, scope: str | None = None, now: float | None = None) -> list[ListEntry]:
    """Return entries in the order they came, of one scope or of all; with `now` only those that hold then."""
    query = select(list_entries).order_by(list_entries.c.id)
    if scope is not None:
        query = query.where(list_entries.c.scope == scope)
    if now is not None:
        query = query.where(or_(list_entries.c.expires.is_(None), list_entries.c.expires > now))
    with engine.connect() as connection:
        return [ListEntry(*row) for row in connection.execute(query)]
