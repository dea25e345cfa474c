"""The records of the spool as values: a message, its deliveries, and events for the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from sendswitch.journal.events import Event, EventKind
from sendswitch.journal.search import SearchFacts
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope, Recipient, from_json
from sendswitch.mail.ids import to_text
from sendswitch.mail.verdict import Verdict
from sendswitch.mail.verdict_json import verdict_from_json
from sendswitch.spool.states import State

Loader = Callable[[int], Awaitable[Content]]

Record = tuple[Any, ...]
"""A message or a change, in the columns of `schema.COLUMNS_WRITTEN`."""


@dataclass(slots=True)
class Message:
    """One message in the spool. The deliveries are its recipients, not those `envelope` may have.

    `via` is its way in: filter, proxy, or 'report' for a report of our own, which is never filtered. `content` is kept
    in memory while there is room for it; `load` always returns it. `about` has the facts of a new message's first event
    besides its envelope. `lifetime` is the time of delivery attempts, which begins again after a hold or a quarantine.
    `digest` is the content's SHA-256, b"" for unknown.
    """

    id: int
    received: float
    expires: float
    envelope: Envelope
    size: int
    via: str
    content: Content | None = None
    loader: Loader | None = field(default=None, repr=False)
    text_id: str = ""
    about: dict[str, Any] = field(default_factory=dict, repr=False)
    lifetime: float = 0.0
    digest: bytes = b""

    def __post_init__(self) -> None:
        self.text_id = to_text(self.id)
        self.lifetime = self.lifetime or self.expires - self.received

    def envelope_for(self, deliveries: Sequence[Delivery]) -> Envelope:
        """Return the envelope with just these recipients."""
        known = self.envelope.recipients
        if len(known) == len(deliveries) and all(
            delivery.recipient is recipient for delivery, recipient in zip(deliveries, known, strict=True)
        ):
            return self.envelope
        return replace(self.envelope, recipients=tuple(delivery.recipient for delivery in deliveries))

    async def load(self) -> Content:
        """Return the content. Raises SpoolUnavailable when it cannot be read."""
        if self.content is not None:
            return self.content
        assert self.loader is not None
        return await self.loader(self.id)


@dataclass(slots=True)
class Delivery:
    """One message for one recipient. `origin` is the delivery it was forwarded from, by number."""

    message: Message
    n: int
    recipient: Recipient
    state: State = State.ACCEPTED
    due: float | None = None
    attempts: int = 0
    origin: int | None = None
    verdict: Verdict | None = None
    reply: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """Return the numbers of message and delivery."""
        return (self.message.id, self.n)


@dataclass(frozen=True, slots=True)
class Change:
    """A delivery's new state, with its event. `due` is the time to look at it again, None for never."""

    delivery: Delivery
    state: State
    event: EventKind
    data: dict[str, Any]
    due: float | None = None
    verdict: Verdict | None = None
    attempts: int = 0
    reply: str = ""


@dataclass(slots=True)
class NewMessage:
    """A new message as the writer takes it.

    `envelope` and `deliveries` are JSON. `content` is None where it is in a file or not kept.
    """

    message: int
    at: float
    event: EventKind
    data: dict[str, Any]
    expires: float
    sender: str
    size: int
    in_file: bool
    via: str
    envelope: str
    content: bytes | None
    deliveries: str
    recorded: bool
    digest: bytes

    def row(self) -> Record:
        """Return the row."""
        new = (self.expires, self.sender, self.size, self.in_file, self.via, self.envelope)
        kept = (self.content, self.deliveries, self.recorded, self.digest)
        return (self.message, self.at, self.event, dumps(self.data), *_NO_CHANGE, *new, *kept)


@dataclass(slots=True)
class NewState:
    """A delivery's new state as the writer takes it. `verdict` is JSON; None leaves the one that is there."""

    message: int
    n: int
    at: float
    event: EventKind
    data: dict[str, Any]
    was: State
    state: State
    due: float | None = None
    verdict: str | None = None
    attempts: int = 0
    reply: str = ""

    def row(self) -> Record:
        """Return the row."""
        change = (self.n, self.was, self.state, self.due, self.verdict, self.attempts, self.reply)
        return (self.message, self.at, self.event, dumps(self.data), *change, *_NO_MESSAGE)


_NO_CHANGE = (None,) * 7
_NO_MESSAGE = (None,) * 10


def facts_of(message: Message, delivery: Delivery) -> SearchFacts:
    """Return the facts for a search while mail is in the queue."""
    client, verdict = message.envelope.client, delivery.verdict
    return SearchFacts(
        message=message.id,
        sender=message.envelope.sender,
        recipient=delivery.recipient.address,
        size=message.size,
        state=delivery.state,
        address=client.address,
        helo=client.helo,
        client_name=client.name,
        queue_id=client.ident,
        action=verdict.action.value if verdict and verdict.action else "",
        tags=verdict.tags if verdict else (),
        reason=verdict.reason if verdict else "",
        score=verdict.score if verdict else None,
    )


COLUMNS = (
    "m.id, m.received, m.expires, m.sender, m.size, m.via, m.envelope, m.lifetime, m.digest,"
    " d.n, d.recipient, d.notify, d.orcpt, d.state, d.due, d.attempts, d.origin, d.verdict, d.reply"
)


def delivery_from_row(row: sqlite3.Row | tuple[Any, ...], messages: dict[int, Message], loader: Loader) -> Delivery:
    """Return one delivery from a row of COLUMNS; deliveries of one message share it through `messages`."""
    (id_, received, expires, sender, size, via, envelope, lifetime, digest, n, address, notify, orcpt, *rest) = row
    message = messages.get(id_)
    if message is None:
        message = Message(
            id=id_,
            received=received,
            expires=expires,
            envelope=from_json(sender, (), orjson.loads(envelope)),
            size=size,
            via=via,
            loader=loader,
            lifetime=lifetime,
            digest=digest or b"",
        )
        messages[id_] = message
    state, due, attempts, origin, verdict, reply = rest
    return Delivery(
        message=message,
        n=n,
        recipient=Recipient(address, notify, orcpt),
        state=State(state),
        due=due,
        attempts=attempts,
        origin=origin,
        verdict=verdict_from_json(orjson.loads(verdict)) if verdict else None,
        reply=reply,
    )


EVENTS = "SELECT id, message, n, at, event, data FROM outbox"


def event_from_row(row: tuple[Any, ...]) -> Event:
    """Return an event from a row of EVENTS."""
    seq, message, n, at, event, data = row
    return Event(seq, message, n, at, event, orjson.loads(data), data)


def dumps(data: dict[str, Any]) -> str:
    """Return JSON as the spool stores it."""
    return orjson.dumps(data).decode()
