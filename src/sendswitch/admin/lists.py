"""Use cases about allow and deny lists of users, domains and the site."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from sendswitch.accounts.routes import load_routes
from sendswitch.accounts.users import get_pipeline
from sendswitch.admin.base import Actor, Installation, at, moment, use_case
from sendswitch.config.load import parse
from sendswitch.db import lists
from sendswitch.errors import NotFound
from sendswitch.mail.address import key
from sendswitch.processors.list_book import read_book
from sendswitch.processors.list_entries import Entries, Entry, checked

# Entries that one request adds.
MOST = 10_000

Which = Literal["allow", "deny"]


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """An entry as listed. `scope` is an address, a domain, or '' for the site; `expires` is None for never."""

    id: int
    scope: str
    list: str
    entry: str
    reason: str
    author: str
    created: datetime
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class AddedEntries:
    """The scope under which entries are kept, '' for the site, and the number of those that are new."""

    scope: str
    new: int


@dataclass(frozen=True, slots=True)
class DecidingEntry:
    """The entry that would decide about a sender. `but` says why no step asks for it, '' when one does."""

    entry: str
    list: str
    reason: str
    scope: str
    but: str


@use_case("GET", "/lists")
def list_entries(installation: Installation, actor: Actor, *, scope: str | None = None) -> tuple[ListedEntry, ...]:
    """List entries in the order they came: of all scopes, or of one user, one domain or ('') the site."""
    found = lists.entries(installation.database(), None if scope is None else lists.scope_of(scope))
    return tuple(
        ListedEntry(e.id, e.scope, e.list, e.entry, e.reason, e.author, at(e.created), moment(e.expires)) for e in found
    )


@use_case("POST", "/lists/{list}")
def add(
    installation: Installation,
    actor: Actor,
    *,
    list: Which,
    entries: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST)],
    scope: str = "",
    reason: str = "",
    expires: AwareDatetime | None = None,
) -> AddedEntries:
    """Add entries to a list. An entry that is on it already gets the new reason and time. Raises ValueError."""
    where = lists.scope_of(scope)
    new = lists.add(
        installation.database(create=True),
        where,
        list,
        [checked(entry) for entry in entries],
        reason=reason[:500],
        author=actor.name[:64],
        expires=None if expires is None else expires.timestamp(),
    )
    installation.changed()
    return AddedEntries(where, new)


@use_case("POST", "/lists:remove")
def remove(installation: Installation, actor: Actor, *, ids: tuple[int, ...]) -> int:
    """Remove entries, all of them or none. Return how many. Raises NotFound."""
    count = lists.remove(installation.database(create=True), ids)
    installation.changed()
    return count


@use_case("GET", "/lists:test")
def find(installation: Installation, actor: Actor, *, sender: str, to: str, client: str = "") -> DecidingEntry:
    """Return the kept entry that would decide about a sender, or about a client by its address. Raises NotFound."""
    engine, now = installation.database(create=True), time.time()
    client = sender if _is_client(sender) else client
    for pair in read_book(engine, installation.config.routing.recipient_delimiter).of(to):
        for which, entries in (("allow", pair.allow), ("deny", pair.deny)):
            entry = entries.sender(key(sender), now) or entries.client(client, now)
            if entry is not None:
                but = _overruled(installation, to, sender, client)
                return DecidingEntry(entry.text, which, entry.reason, pair.whose, but)
    raise NotFound(f"no entry that applies to {to} is about {sender}")


def _is_client(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def _overruled(installation: Installation, to: str, sender: str, client: str) -> str:
    """Return why a kept entry about a sender does not decide for a recipient, '' when it does."""
    engine = installation.database()
    route = load_routes(engine, installation.config).find(to)
    if route is None:
        return f"{to} has no pipeline, so that no list is asked"
    steps = parse(get_pipeline(engine, route.owner, route.version).text, route.owner)[0].get("step", [])
    own = [(n, step) for n, step in enumerate(steps, 1) if step.get("use") == "lists"]
    if not own:
        return f"the pipeline of {route.owner} has no step that uses lists"
    for n, step in own:
        for which in ("allow", "deny"):
            entries, now = Entries(map(Entry, step.get(which, ()))), time.time()
            entry = entries.sender(key(sender), now) or entries.client(client, now)
            if entry is not None:
                return f"{which} of step {n} in the pipeline of {route.owner} has {entry.text}, and is asked first"
    return ""
