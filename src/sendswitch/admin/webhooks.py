"""Use cases about webhooks of `notify`: the endpoints, their events, and each attempt to send one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sendswitch.admin.base import Actor, At, Installation, at, moment, use_case
from sendswitch.admin.merging import first, joined, total
from sendswitch.errors import NotFound
from sendswitch.webhooks.outbox import PLACE, Outbox

# Events in one answer, and events sent again by one request.
MOST_SHOWN, MOST_AGAIN = 200, 10_000

EventState = Literal["", "waiting", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL that is told about a recipient's mail, with the numbers of its events by state.

    `due` is the next attempt; `disabled` is when the receiver ended it, and `why` its words.
    """

    number: int
    url: str
    recipient: str
    disabled: datetime | None
    why: str
    waiting: int
    delivered: int
    failed: int
    due: datetime | None


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One event for an endpoint. `due` is its next attempt, None when there is none."""

    id: str
    endpoint: int
    message: str
    created: datetime
    state: str
    attempts: int
    due: datetime | None


@dataclass(frozen=True, slots=True)
class WebhookAttempt:
    """One attempt to send an event: its duration in seconds, and the receiver's status and words."""

    n: int
    at: datetime
    seconds: float
    status: int
    said: str


@contextmanager
def _outbox(installation: Installation) -> Iterator[Outbox]:
    file = installation.config.node.data / PLACE
    if not file.exists():
        raise NotFound(f"there is no outbox in {file.parent}: no node has run here")
    outbox = Outbox(file)
    try:
        yield outbox
    finally:
        outbox.close()


@use_case("GET", "/webhooks", At.EVERY, merge=joined)
def endpoints(installation: Installation, actor: Actor) -> tuple[Endpoint, ...]:
    """List the endpoints with the numbers of their events."""
    with _outbox(installation) as outbox:
        rows = outbox.endpoints()
    return tuple(
        Endpoint(
            number=row["number"],
            url=row["url"],
            recipient=row["recipient"],
            disabled=moment(row["disabled"]),
            why=row["why"],
            waiting=row["waiting"] or 0,
            delivered=row["delivered"] or 0,
            failed=row["failed"] or 0,
            due=moment(row["due"]),
        )
        for row in rows
    )


def _newest(answers: Sequence[tuple[WebhookEvent, ...]], given: Mapping[str, Any]) -> tuple[WebhookEvent, ...]:
    """Merge the events of several nodes."""
    return tuple(sorted(joined(answers, given), key=lambda event: event.created, reverse=True)[:MOST_SHOWN])


@use_case("GET", "/webhooks/events", At.EVERY, merge=_newest)
def events(
    installation: Installation, actor: Actor, *, endpoint: int | None = None, since: float = 0.0, state: EventState = ""
) -> tuple[WebhookEvent, ...]:
    """List events, the newest first. `since` is in seconds before now, 0 for all."""
    with _outbox(installation) as outbox:
        rows = outbox.events(endpoint=endpoint, since=_after(since), state=state, limit=MOST_SHOWN)
    return tuple(WebhookEvent(**row | {"created": at(row["created"]), "due": moment(row["due"])}) for row in rows)


@use_case("GET", "/webhooks/events/{id}", At.OWNER)
def attempts(installation: Installation, actor: Actor, *, id: str) -> tuple[WebhookAttempt, ...]:
    """List the attempts to send an event, in order. Raises NotFound."""
    with _outbox(installation) as outbox:
        rows = outbox.attempts(id)
    return tuple(WebhookAttempt(**row | {"at": at(row["at"]), "seconds": round(row["seconds"], 3)}) for row in rows)


@use_case("POST", "/webhooks/events:resend", At.EVERY, merge=total)
def resend(
    installation: Installation,
    actor: Actor,
    *,
    ids: tuple[str, ...] = (),
    endpoint: int | None = None,
    since: float = 0.0,
    state: EventState = "",
) -> int:
    """Send events again with the ids they had: the named ones, or all that match. Return how many."""
    with _outbox(installation) as outbox:
        wanted = list(ids)
        if not wanted:
            found = outbox.events(endpoint=endpoint, since=_after(since), state=state, limit=MOST_AGAIN)
            wanted = [row["id"] for row in found]
        done = sum(outbox.send_again(wanted[n : n + 500], time.time()) for n in range(0, len(wanted), 500))
    if ids and not done:
        raise NotFound("none of these can be sent again; sendswitch webhook list tells what is disabled")
    installation.changed()
    return done


@use_case("POST", "/webhooks/{number}:enable", At.EVERY, merge=first)
def enable(installation: Installation, actor: Actor, *, number: int) -> None:
    """Enable a disabled endpoint for new events."""
    with _outbox(installation) as outbox:
        outbox.enable(number)
    installation.changed()


def _after(since: float) -> float:
    return time.time() - since if since else 0.0
