"""Use cases about deliveries in the spool: mail in the queue, in quarantine and held, and requests to move it on."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from sendswitch.admin.base import PAGE, Actor, Installation, Page, at, moment, use_case
from sendswitch.admin.wire import as_ours, kind_of
from sendswitch.errors import NotFound, SendSwitchError
from sendswitch.journal import story
from sendswitch.journal.search import OF_SPOOLED, Term, parse
from sendswitch.mail.address import valid
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import MAX_REASON
from sendswitch.spool import admin
from sendswitch.spool import requeue as spool_requeue
from sendswitch.spool.states import State

# The states of mail that goes somewhere, and these with mail that waits for a person.
MOVING = (State.ACCEPTED, State.DECIDED)
WAITING = (*MOVING, State.HELD)

ALL = 1_000_000

Limit = Annotated[int, Field(ge=1, le=PAGE)]


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """One delivery as listed. `id` is message and recipient number; `reply` is the last answer of the next hop."""

    id: str
    received: datetime
    sender: str
    recipient: str
    size: int
    state: str
    since: datetime
    due: datetime | None
    attempts: int
    reply: str
    action: str
    tags: tuple[str, ...]
    reason: str
    subject: str
    message_id: str
    client: str
    helo: str
    queue_id: str
    header_to: str
    header_cc: str
    reply_to: str
    parts: tuple[str, ...]
    score: float | None


@dataclass(frozen=True, slots=True)
class TimelineLine:
    """One event of a message. `recipient` is '' where it is about the whole message; `about` has the event's fields."""

    at: datetime
    recipient: str
    event: str
    text: str
    about: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeliveryHistory:
    """One delivery with the history of its message."""

    delivery: DeliverySummary
    timeline: tuple[TimelineLine, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Deliveries in the queue that have a property in common: their number, bytes, and the oldest one's arrival."""

    name: str
    deliveries: int
    bytes: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class Result:
    """The result for one delivery. `kind` is the kind of the error, '' when it was done; `text` says why it failed."""

    id: str
    kind: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a bulk request, and the cursor with which to go on, '' when nothing is left."""

    results: tuple[Result, ...]
    next: str = ""


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


class HeldAnswer(StrEnum):
    """The decision about held mail, as `spool.admin.ANSWERS` knows it."""

    PASS = "pass"  # noqa: S105 - a decision
    DENY = "deny"
    QUARANTINE = "quarantine"
    DISCARD = "discard"


def terms_of(search: str, known: tuple[str, ...] = OF_SPOOLED) -> list[Term]:
    """Return the conditions of a search. Raises InvalidSearch."""
    return parse(search, time.time(), known)


def reason_of(text: str) -> str:
    """Return a person's reason as it is stored."""
    return storable(text, MAX_REASON)


def summary(row: admin.Row) -> DeliverySummary:
    """Return a row of the spool as it is listed."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    times = {"received": moment(row.received), "since": moment(row.since), "due": moment(row.due)}
    return DeliverySummary(**(values | times))


# Reading


@use_case("GET", "/queue")
def list_queue(
    installation: Installation, actor: Actor, *, search: str = "", limit: Limit = PAGE, after: str = ""
) -> Page[DeliverySummary]:
    """List deliveries that are not final, the oldest first."""
    return _page(installation, WAITING, search, limit, after)


@use_case("GET", "/kept/{state}")
def list_kept(
    installation: Installation,
    actor: Actor,
    *,
    state: Literal["held", "quarantined"],
    search: str = "",
    limit: Limit = PAGE,
    after: str = "",
) -> Page[DeliverySummary]:
    """List held mail or the quarantine, the oldest first."""
    return _page(installation, (State(state),), search, limit, after)


def _page(
    installation: Installation, states: tuple[State, ...], search: str, limit: int, after: str
) -> Page[DeliverySummary]:
    with installation.spool() as connection:
        rows = admin.rows(connection, states, terms=terms_of(search), limit=limit, after=after)
    return Page(tuple(map(summary, rows)), rows[-1].id if len(rows) == limit else "")


@use_case("GET", "/queue:top")
def top(
    installation: Installation, actor: Actor, *, search: str = "", by: By = By.DOMAIN, limit: Limit = 20
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


@use_case("GET", "/deliveries/{id}")
def show(installation: Installation, actor: Actor, *, id: str) -> DeliveryHistory:
    """Show a delivery in the spool with the history of its message so far."""
    with installation.spool() as connection:
        row = admin.row(connection, id)
        message, _ = admin.parse_id(id)
        lines = story.timeline(admin.events(connection, message))
    return DeliveryHistory(summary(row), timeline_of(lines))


def timeline_of(lines: list[story.Line]) -> tuple[TimelineLine, ...]:
    """Return the lines of a history as the API has them."""
    return tuple(TimelineLine(at(line.at), line.recipient, line.event, line.text, dict(line.about)) for line in lines)


# Changing


@use_case("POST", "/queue:flush")
def flush(installation: Installation, actor: Actor, *, search: str = "") -> int:
    """Make mail that waits for its next attempt due now: all of it, or what a search finds. Return how many."""
    with installation.spool() as connection:
        terms = terms_of(search)
        ids = [row.id for row in admin.rows(connection, MOVING, terms=terms, limit=ALL)] if terms else None
        count = admin.flush(connection, ids, time.time())
    installation.changed()
    return count


@use_case("POST", "/quarantine:release")
def release(
    installation: Installation, actor: Actor, *, ids: tuple[str, ...] = (), search: str = "", after: str = ""
) -> Results:
    """Deliver quarantined mail to its recipients without filtering it again; a second release is refused."""

    def act(connection: sqlite3.Connection, id_: str) -> None:
        admin.release(connection, id_, time.time(), by=actor.name)

    return _each(installation, State.QUARANTINED, ids, search, after, act)


@use_case("POST", "/quarantine:delete")
def delete(
    installation: Installation, actor: Actor, *, ids: tuple[str, ...] = (), search: str = "", after: str = ""
) -> Results:
    """Delete quarantined mail. Until its record goes, `requeue` brings it back."""

    def act(connection: sqlite3.Connection, id_: str) -> None:
        admin.delete(connection, id_, time.time(), by=actor.name)

    return _each(installation, State.QUARANTINED, ids, search, after, act)


@use_case("POST", "/held:answer")
def answer(
    installation: Installation,
    actor: Actor,
    *,
    answer: HeldAnswer,
    reason: str = "",
    ids: tuple[str, ...] = (),
    search: str = "",
    after: str = "",
) -> Results:
    """Decide about held mail. It is not filtered again; a second answer is refused."""
    why = reason_of(reason)

    def act(connection: sqlite3.Connection, id_: str) -> None:
        admin.answer(connection, id_, answer.value, time.time(), by=actor.name, reason=why)

    return _each(installation, State.HELD, ids, search, after, act)


@use_case("POST", "/deliveries:requeue")
def requeue(
    installation: Installation,
    actor: Actor,
    *,
    ids: tuple[str, ...],
    reason: str = "",
    unfiltered: bool = False,
    again: bool = False,
) -> Results:
    """Deliver messages to the same recipients once more. With `again` also those that were requeued and got through."""
    data, why = installation.config.node.data, reason_of(reason)

    def act(connection: sqlite3.Connection, id_: str) -> None:
        spool_requeue.requeue(
            connection, data, id_, time.time(), by=actor.name, reason=why, unfiltered=unfiltered, once_more=again
        )

    return _each(installation, None, ids, "", "", act)


@use_case("POST", "/deliveries:forward")
def forward(
    installation: Installation, actor: Actor, *, ids: tuple[str, ...], to: tuple[str, ...], reason: str = ""
) -> Results:
    """Send messages to other addresses too, each through its own pipeline. Raises ValueError for a bad address."""
    for address in to:
        if not valid(address) or "@" not in address:
            raise ValueError(f"{address!r} is not a mail address")
    data, why = installation.config.node.data, reason_of(reason)

    def act(connection: sqlite3.Connection, id_: str) -> None:
        spool_requeue.send_on(connection, data, id_, to, time.time(), by=actor.name, reason=why)

    return _each(installation, None, ids, "", "", act)


def _each(
    installation: Installation,
    state: State | None,
    ids: tuple[str, ...],
    search: str,
    after: str,
    act: Callable[[sqlite3.Connection, str], None],
) -> Results:
    """Act on each delivery, given by id or found by a search a page at a time. A failure stops no other."""
    if bool(ids) == bool(search):
        raise ValueError("give ids, or a search; one of both")
    cursor, results = "", []
    with installation.spool() as connection:
        if search and state is not None:
            rows = admin.rows(connection, (state,), terms=terms_of(search), limit=PAGE, after=after)
            ids, cursor = tuple(row.id for row in rows), rows[-1].id if len(rows) == PAGE else ""
            if not ids and not after:
                raise NotFound(f"no {state} delivery matches")
        for id_ in ids:
            try:
                act(connection, id_)
                results.append(Result(id_))
            except (SendSwitchError, sqlite3.Error) as error:
                ours = as_ours(error)
                results.append(Result(id_, kind_of(ours), str(ours)))
    installation.changed()
    return Results(tuple(results), cursor)
