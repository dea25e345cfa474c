"""Use cases about single deliveries in the spool, and what those about queue, quarantine and holds share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from sendswitch.admin.base import PAGE, Actor, At, Installation, Page, at, moment, use_case
from sendswitch.admin.merging import results
from sendswitch.admin.serialization import as_ours
from sendswitch.errors import NotFound, SendSwitchError, kind_of
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
    client_name: str = ""


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


def page(
    installation: Installation, states: tuple[State, ...], search: str, limit: int, after: str
) -> Page[DeliverySummary]:
    """Return deliveries in these states that a search finds, the oldest first, behind the id `after`."""
    with installation.spool() as connection:
        rows = admin.rows(connection, states, terms=terms_of(search), limit=limit, after=after)
    return Page(tuple(map(summary, rows)), rows[-1].id if len(rows) == limit else "")


@use_case("GET", "/deliveries/{id}", At.OWNER)
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


@use_case("POST", "/deliveries:requeue", At.EVERY, merge=results)
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

    return each(installation, None, ids, "", "", act)


@use_case("POST", "/deliveries:forward", At.EVERY, merge=results)
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

    return each(installation, None, ids, "", "", act)


def each(
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
