"""Use cases about messages: find them in the journal, and read what happened to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sendswitch.admin.base import PAGE, Actor, At, Installation, Page, at, use_case
from sendswitch.admin.deliveries import Limit, TimelineLine, terms_of, timeline_of
from sendswitch.errors import NotFound, SendSwitchError, in_words
from sendswitch.journal import story
from sendswitch.journal.events import Event, fold
from sendswitch.journal.search import NAMES
from sendswitch.mail.content import Content
from sendswitch.mail.ids import from_text, to_text
from sendswitch.spool import admin
from sendswitch.spool import requeue as spool_requeue

if TYPE_CHECKING:
    from sendswitch.db.journal import Found


@dataclass(frozen=True, slots=True)
class MessageSummary:
    """One delivery of a message as the journal lists it. `reply` is the last answer of the next hop."""

    id: str
    received: datetime
    sender: str
    recipient: str
    subject: str
    size: int
    via: str
    client: str
    queue_id: str
    message_id: str
    state: str
    since: datetime
    action: str
    tags: tuple[str, ...]
    processor: str
    reason: str
    attempts: int
    reply: str


@dataclass(frozen=True, slots=True)
class PipelineStep:
    """One step of a pipeline as it was recorded. `seconds` is the time it took."""

    processor: str
    version: str
    seconds: float
    outcome: str
    saw: str


@dataclass(frozen=True, slots=True)
class DeliveryStory:
    """One recipient's story in sentences, with the steps that its pipeline took."""

    id: str
    recipient: str
    state: str
    sentences: tuple[str, ...]
    steps: tuple[PipelineStep, ...]


@dataclass(frozen=True, slots=True)
class MessageHistory:
    """The events of a message in order, and the story of each recipient."""

    id: str
    timeline: tuple[TimelineLine, ...]
    deliveries: tuple[DeliveryStory, ...]


@use_case("GET", "/messages")
def search(
    installation: Installation, actor: Actor, *, search: str = "", limit: Limit = PAGE, after: str = ""
) -> Page[MessageSummary]:
    """List deliveries that the journal has, the newest first."""
    from sendswitch.db import journal

    behind = admin.parse_id(after) if after else None
    found = journal.find(installation.database(), terms_of(search, NAMES), limit=limit, before=behind)
    rows = tuple(map(_summary, found))
    return Page(rows, rows[-1].id if len(rows) == limit else "")


def _summary(found: Found) -> MessageSummary:
    message, delivery = found.message, found.delivery
    return MessageSummary(
        id=f"{to_text(message['id'])}.{delivery['n']}",
        received=at(message["received"]),
        sender=message["sender"],
        recipient=delivery["recipient"],
        subject=message["subject"],
        size=message["size"],
        via=message["via"],
        client=message["client_address"],
        queue_id=message["queue_id"],
        message_id=message["message_id"],
        state=delivery["state"],
        since=at(delivery["since"]),
        action=delivery["action"],
        tags=tuple(delivery["tags"].split()),
        processor=delivery["processor"],
        reason=delivery["reason"],
        attempts=delivery["attempts"],
        reply=delivery["reply"],
    )


@use_case("GET", "/messages/{id}", At.OWNER)
def history(installation: Installation, actor: Actor, *, id: str) -> MessageHistory:
    """Tell what happened to a message, or with a recipient's number to one delivery of it."""
    message, n = parse_message(id)
    events = _events(installation, message)
    states = {k: str(row["state"]) for (_, k), row in fold(events).deliveries.items()}
    if n is not None and n not in states:
        raise NotFound(f"{to_text(message)} has no delivery {n}; it has {', '.join(map(str, sorted(states)))}")
    to = story.recipients(events)
    lines = [line for line in story.timeline(events) if n is None or line.recipient in ("", to.get(n))]
    stories = [_story(events, message, k, states[k]) for k in sorted(states) if n in (None, k)]
    return MessageHistory(to_text(message), timeline_of(lines), tuple(stories))


def _story(events: Sequence[Event], message: int, n: int, state: str) -> DeliveryStory:
    told = story.explain(events, n, state)
    steps = tuple(PipelineStep(s.processor, s.version, s.seconds, s.outcome, s.saw) for s in told.steps)
    return DeliveryStory(f"{to_text(message)}.{n}", told.recipient, told.state, told.sentences, steps)


def _events(installation: Installation, message: int) -> list[Event]:
    """Return a message's events from the journal and from the spool, in order. Raises NotFound when there are none."""
    from sqlalchemy.exc import SQLAlchemyError

    from sendswitch.db import journal

    events: dict[int, Event] = {}
    trouble = ""
    try:
        events = {event.seq: event for event in journal.story(installation.database(), message).events}
    except (SQLAlchemyError, SendSwitchError) as error:
        trouble = f"; the journal cannot be read: {in_words(error)}"
    with suppress(NotFound), installation.spool() as connection:
        events |= {event.seq: event for event in admin.events(connection, message)}
    if not events:
        raise NotFound(f"nothing is known of message {to_text(message)}{trouble}; it may be too old, or another node's")
    return [events[seq] for seq in sorted(events)]


@use_case("GET", "/messages/{id}/content", At.OWNER)
def content(installation: Installation, actor: Actor, *, id: str) -> Content:
    """Return a message as it came, byte for byte. Raises NotFound when the spool has its content no more."""
    message, _ = parse_message(id)
    with installation.spool() as connection:
        return spool_requeue.content(connection, installation.config.node.data, message)


def parse_message(text: str) -> tuple[int, int | None]:
    """Return a message's number and the recipient's, None without one. Raises NotFound for what is not an id."""
    message, dot, n = text.partition(".")
    try:
        if dot and not n.isdecimal():
            raise ValueError(f"{text!r} is not an id; behind the dot is the recipient's number, like {message}.0")
        return from_text(message), int(n) if dot else None
    except ValueError as error:
        raise NotFound(f"{error}; `sendswitch message list` shows all") from error
