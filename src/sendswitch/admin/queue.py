"""Use cases about the queue: mail that is not final."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sendswitch.admin.base import PAGE, Actor, At, Installation, Page, at, use_case
from sendswitch.admin.deliveries import ALL, MOVING, WAITING, DeliverySummary, Limit, page, terms_of
from sendswitch.admin.merging import pages, total
from sendswitch.spool import admin

# Groups that `top` shows.
TOP = 20


@dataclass(frozen=True, slots=True)
class Group:
    """Deliveries in the queue that have a property in common: their number, bytes, and the oldest one's arrival."""

    name: str
    deliveries: int
    bytes: int
    oldest: datetime


class By(StrEnum):
    """The property that `top` groups by."""

    DOMAIN = "domain"
    RECIPIENT = "recipient"
    SENDER = "sender"
    CLIENT = "client"
    ANSWER = "answer"
    STATE = "state"


_NAMES: dict[By, Callable[[admin.Row], str]] = {
    By.DOMAIN: lambda row: row.recipient.rpartition("@")[2],
    By.RECIPIENT: lambda row: row.recipient,
    By.SENDER: lambda row: row.sender or "<>",
    By.CLIENT: lambda row: row.client,
    By.ANSWER: lambda row: row.reply,
    By.STATE: lambda row: row.state,
}


@use_case("GET", "/queue", At.EVERY, merge=pages)
def list_queue(
    installation: Installation, actor: Actor, *, search: str = "", limit: Limit = PAGE, after: str = ""
) -> Page[DeliverySummary]:
    """List deliveries that are not final, the oldest first."""
    return page(installation, WAITING, search, limit, after)


def _largest(answers: Sequence[tuple[Group, ...]], given: Mapping[str, Any]) -> tuple[Group, ...]:
    """Merge the groups of several nodes by name."""
    by: dict[str, Group] = {}
    for one in (one for answer in answers for one in answer):
        known = by.get(one.name)
        by[one.name] = one if known is None else _added(known, one)
    return tuple(sorted(by.values(), key=lambda group: -group.deliveries)[: given.get("limit", TOP)])


def _added(one: Group, other: Group) -> Group:
    return Group(one.name, one.deliveries + other.deliveries, one.bytes + other.bytes, min(one.oldest, other.oldest))


@use_case("GET", "/queue:top", At.EVERY, merge=_largest, widen=lambda ask, given: {**given, "limit": PAGE})
def top(
    installation: Installation, actor: Actor, *, search: str = "", by: By = By.DOMAIN, limit: Limit = TOP
) -> tuple[Group, ...]:
    """Count deliveries of the queue by a property, the largest groups first."""
    groups: dict[str, list[float]] = {}
    with installation.spool() as connection:
        for row in admin.rows(connection, WAITING, terms=terms_of(search), limit=ALL):
            group = groups.setdefault(_NAMES[by](row), [0, 0, row.received])
            group[0] += 1
            group[1] += row.size
            group[2] = min(group[2], row.received)
    largest = sorted(groups.items(), key=lambda pair: -pair[1][0])[:limit]
    return tuple(Group(name, int(count), int(size), at(oldest)) for name, (count, size, oldest) in largest)


@use_case("POST", "/queue:flush", At.EVERY, merge=total)
def flush(installation: Installation, actor: Actor, *, search: str = "") -> int:
    """Make mail that waits for its next attempt due now: all of it, or what a search finds. Return how many."""
    with installation.spool() as connection:
        terms = terms_of(search)
        ids = [row.id for row in admin.rows(connection, MOVING, terms=terms, limit=ALL)] if terms else None
        count = admin.flush(connection, ids, time.time())
    installation.changed()
    return count
