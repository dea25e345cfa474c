"""The intake after Postfix's queue (`filter`): from the end of data to the reply.

250 is said when the spool has the message. Every doubt is a 451.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sendswitch import logs, metrics
from sendswitch.accounts.directory import NOBODY, Directory
from sendswitch.clock import Clock
from sendswitch.delivery.compose import loops
from sendswitch.errors import HeaderTooLarge, MailLoop
from sendswitch.intake.refusals import Refusals
from sendswitch.mail.address import key, without_extension
from sendswitch.mail.content import MAX_HEAD, Content, InFile, InMemory
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.mail.headers import dispositions, glance, unfinished
from sendswitch.mail.message import LARGE_HEADER
from sendswitch.mail.mime.words import decoded
from sendswitch.mail.srs import Srs, looks_rewritten
from sendswitch.queue.active import ActiveQueue
from sendswitch.reply import Reply, printable
from sendswitch.smtp.handler import Sink
from sendswitch.smtp.protocol.replies import RECIPIENT_OK, SENDER_OK
from sendswitch.smtp.protocol.server import MailCommand, RcptCommand
from sendswitch.spool.body import Body
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.spool import Spool, new_message

OVERLOADED = Reply(421, "4.3.2", "Error: too much to do, please try again later")
NO_ROOM = Reply(452, "4.3.1", "Error: insufficient system storage, please try again later")
# Octets of a header field that the journal keeps; it shows a line, not an essay.
MAX_GLANCE = 1000


@dataclass(frozen=True, slots=True)
class IntakeOptions:
    """The settings of an intake.

    `host` is our name, `lifetime` the time of delivery attempts (seconds), `max_hops` the loop limit, `min_free` the
    space (bytes) to leave free. `subject` says whether the journal may have it. `overload` returns the reason to refuse
    mail, '' for none. `delimiters` begin an address extension, `origin` is the domain of recipients without one, and
    `directory` knows the users. `srs` resolves rewritten senders of forwarded mail.
    """

    host: str
    lifetime: float
    max_hops: int
    min_free: int
    subject: bool = True
    overload: Callable[[], str] = lambda: ""
    delimiters: str = "+"
    origin: str = ""
    directory: Directory = NOBODY
    srs: Srs | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """The examination of a message: the reason it is in a loop, whether its header is unfinished, and the facts for the
    journal.
    """

    loop: str
    unending: bool
    about: dict[str, Any]


class FilterIntake:
    """After the queue: the message is safe in the spool, then 250."""

    via = "filter"

    def __init__(self, spool: Spool, queue: ActiveQueue, options: IntakeOptions, clock: Clock) -> None:
        self._spool, self._queue, self._options, self._clock = spool, queue, options, clock
        self._refusals = Refusals(spool, clock)

    def admit(self) -> Reply | None:
        """Take another session, unless there is too much to do."""
        return OVERLOADED if self._options.overload() else None

    def refused(self, envelope: Envelope, reply: Reply, why: str = "") -> None:
        """Keep in the history that a message was not taken."""
        self._refusals.keep(envelope, reply, why, self.via)

    def mail(self, mail: MailCommand) -> Reply | asyncio.Future[Reply]:
        """Accept any sender while there is space and no overload. A user who logged in may use own addresses only."""
        if self._options.overload():
            return OVERLOADED
        if not mail.login or not mail.sender:  # the null path of a report is everybody's
            return self._room_for(mail)
        own, wanted = key(mail.login), key(mail.sender)
        if wanted == own:
            return self._room_for(mail)
        if without_extension(wanted, self._options.delimiters) != own:
            return _not_owned(mail)
        # An extension of the own address, unless it is another user's address.
        found = self._options.directory.lookup(wanted)
        if isinstance(found, asyncio.Future):
            return asyncio.get_running_loop().create_task(self._unless_owned(mail, found))
        return _not_owned(mail) if found else self._room_for(mail)

    async def _unless_owned(self, mail: MailCommand, found: asyncio.Future[str]) -> Reply:
        return _not_owned(mail) if await found else self._room_for(mail)

    def _room_for(self, mail: MailCommand) -> Reply:
        return SENDER_OK if self._spool.free() >= self._options.min_free + mail.size else NO_ROOM

    def recipient(self, recipient: RcptCommand) -> Reply:
        """Accept any recipient, because Postfix has checked it. At `forward.srs_domain` accept only rewritten
        senders.
        """
        address, srs = recipient.recipient.address, self._options.srs
        if srs is None or not srs.ours(address):
            return RECIPIENT_OK
        try:
            srs.reversed(address, self._clock())
        except ValueError as error:
            # A temporary reply: a wrong domain in the configuration must lose no mail.
            code, status = (550, "5.1.1") if looks_rewritten(address) else (450, "4.1.1")
            return Reply(code, status, printable(f"Recipient address rejected: {error}"))
        return RECIPIENT_OK

    def sink(self) -> Body:
        """Return a place in the spool."""
        return self._spool.body()

    def message(self, envelope: Envelope, sink: Sink) -> asyncio.Future[tuple[Reply, ...]]:
        """Store the message. Raises SpoolUnavailable, MailLoop, here or in the future."""
        assert isinstance(sink, Body)
        content = sink.in_memory()
        if content is None or len(content.head()) > LARGE_HEADER:
            return asyncio.get_running_loop().create_task(self._large(envelope, sink, content))
        return self._store(*self._received(envelope, content, self._examined(content), sink.id))

    async def _large(self, envelope: Envelope, sink: Body, small: InMemory | None) -> tuple[Reply, ...]:
        content: Content = small or await sink.in_file()
        seen = await asyncio.to_thread(self._examined, content)
        return await self._store(*self._received(envelope, content, seen, sink.id))

    def _examined(self, content: Content) -> _Seen:
        """Examine the message: the reasons to refuse it, and the facts for the journal. May block."""
        head, beginning = content.head(), next(content.chunks(), b"")
        loop = loops(head, self._options.host, self._options.max_hops)
        unending = len(head) >= MAX_HEAD and unfinished(head)
        return _Seen(loop, unending, _about(head, beginning, subject=self._options.subject))

    def _received(self, envelope: Envelope, content: Content, seen: _Seen, id_: int) -> tuple[Message, list[Delivery]]:
        """Return the message with its deliveries. Its content is complete, and nothing is written about it yet."""
        if seen.loop or seen.unending:
            self._remove(content)
            error = MailLoop(seen.loop) if seen.loop else HeaderTooLarge()
            raise error
        now = self._clock()
        about = seen.about
        if self._options.srs is not None:
            envelope, came_for = returned(envelope, self._options.srs, now)
            about |= came_for
        envelope = each_once(envelope)
        message = new_message(
            self._spool, envelope, content, now=now, lifetime=self._options.lifetime, via=self.via, id_=id_
        )
        message.about = about
        return message, [Delivery(message, n, to, due=now) for n, to in enumerate(envelope.recipients)]

    def _store(self, message: Message, deliveries: Sequence[Delivery]) -> asyncio.Future[tuple[Reply, ...]]:
        """Write it and begin. The future fails with SpoolUnavailable: then it is not there and the client keeps it."""
        stored: asyncio.Future[tuple[Reply, ...]] = asyncio.get_running_loop().create_future()

        def written(future: asyncio.Future[Any]) -> None:
            # Whether or not the client still waits (a session may be gone).
            error = future.exception()
            if error is None:
                tell_accepted(message, len(deliveries))
            else:
                self._remove(message.content)
            if not stored.done():
                if error is None:
                    stored.set_result((queued(message),))
                else:
                    stored.set_exception(error)

        self._queue.enqueue(deliveries, lambda: self._spool.accept(message, deliveries)).add_done_callback(written)
        return stored

    def _remove(self, content: Content | None) -> None:
        if isinstance(content, InFile):
            content.path.unlink(missing_ok=True)


def _not_owned(mail: MailCommand) -> Reply:
    return Reply(553, "5.7.1", printable(f"Sender address rejected: not owned by user {mail.login}"))


def returned(envelope: Envelope, srs: Srs, now: float) -> tuple[Envelope, dict[str, Any]]:
    """Return the envelope with the senders that addresses of ours stand for as recipients, and which these are, for the
    journal."""
    if not any(srs.ours(recipient.address) for recipient in envelope.recipients):
        return envelope, {}
    came_for: dict[str, str] = {}
    recipients: list[Recipient] = []
    for recipient in envelope.recipients:
        address = recipient.address
        # One that became too old since RCPT keeps its address, and its next hop says what it thinks of it.
        with suppress(ValueError):
            if srs.ours(address):
                address = came_for[recipient.address] = srs.reversed(address, now)
        recipients.append(replace(recipient, address=address))
    return replace(envelope, recipients=tuple(recipients)), {"returned": came_for}


def each_once(envelope: Envelope) -> Envelope:
    """Return the envelope with each mailbox once, as Postfix's cleanup(8) does; the first RCPT of it counts."""
    if len(envelope.recipients) == 1:
        return envelope
    recipients: dict[str, Recipient] = {}
    for recipient in envelope.recipients:
        recipients.setdefault(key(recipient.address), recipient)
    return replace(envelope, recipients=tuple(recipients.values()))


def _about(head: bytes, beginning: bytes, *, subject: bool) -> dict[str, Any]:
    """Return the facts by which the journal finds a message. Never raises."""
    seen = glance(head)
    about: dict[str, Any] = {}
    if subject and (value := seen.get("subject")):
        text = value[:MAX_GLANCE].decode("utf-8", "replace")
        about["subject"] = decoded(text)
    for field, name in _FOUND_BY.items():
        if value := seen.get(field):
            about[name] = value[:MAX_GLANCE].decode("utf-8", "replace")
    if parts := dispositions(head, beginning):
        about["parts"] = parts
    return about


_FOUND_BY = {"message-id": "message_id", "to": "header_to", "cc": "header_cc", "reply-to": "reply_to"}


def queued(message: Message) -> Reply:
    """Return the reply that takes responsibility for a message."""
    return Reply(250, "2.0.0", f"Ok: queued as {message.text_id}")


def tell_accepted(message: Message, recipients: int) -> None:
    """Count and log a message that was taken."""
    metrics.ACCEPTED.inc()
    envelope = message.envelope
    logs.accepted(
        message.text_id,
        sender=envelope.sender,
        recipients=recipients,
        size=message.size,
        client=envelope.client.address,
        helo=envelope.client.helo,
        via=message.via,
    )
