"""Taking mail in: from the end of data to the reply, after the queue (filter) and before it (proxy).

250 is said when the spool has the message, or in proxy mode when the next hop has. Every doubt is a 451.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sendswitch import logs, metrics
from sendswitch.clock import Clock
from sendswitch.delivery.base import Courier
from sendswitch.delivery.compose import Composer, loops
from sendswitch.errors import HeaderTooLarge, MailLoop, SpoolUnavailable
from sendswitch.intake.refusals import Refusals
from sendswitch.mail.address import key, split, without_extension
from sendswitch.mail.content import MAX_HEAD, Content, InFile, InMemory
from sendswitch.mail.envelope import Envelope
from sendswitch.mail.envelope import Recipient as EnvelopeRecipient
from sendswitch.mail.headers import dispositions, glance, unfinished
from sendswitch.mail.message import LARGE_HEADER
from sendswitch.mail.mime.words import decoded
from sendswitch.mail.srs import Srs, looks_rewritten
from sendswitch.mail.verdict import Action, Answer, Deferral, Verdict
from sendswitch.queue.active import Queue
from sendswitch.queue.runner import Journeys
from sendswitch.reply import Reply, printable
from sendswitch.smtp.client import Delivered
from sendswitch.smtp.protocol.client import Outcome
from sendswitch.smtp.protocol.replies import RECIPIENT_OK, SENDER_OK
from sendswitch.smtp.protocol.server import Mail, Recipient
from sendswitch.smtp.server import Sink
from sendswitch.spool.body import Body
from sendswitch.spool.orders import first_for
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.spool import Spool, new_message
from sendswitch.spool.states import State

OVERLOADED = Reply(421, "4.3.2", "Error: too much to do, please try again later")
NO_ROOM = Reply(452, "4.3.1", "Error: insufficient system storage, please try again later")
NEEDS_DOMAIN = Reply(504, "5.5.2", "Recipient address rejected: need fully-qualified address")
TOO_SLOW = Reply(451, "4.4.2", "Error: the next hop is too slow, please try again later")
# Seconds to relay while the sender waits. Postfix gives up after smtpd_proxy_timeout (100 s) and its client comes
# again: a relay that went through after that would be a second copy.
RELAY_LIMIT = 60.0
# Octets of a header field that the journal keeps; it shows a line, not an essay.
MAX_GLANCE = 1000
MIXED = Reply(451, "4.7.1", "Error: the recipients' filters could not decide, please try again later")


@dataclass(frozen=True, slots=True)
class IntakeOptions:
    """`host` is our name, `lifetime` how long delivery is tried (seconds), `max_hops` the loop limit, `min_free` the
    space (bytes) that is left for what is here already; `subject` says whether the journal may keep it. `overload`
    gives why no mail should be taken now, '' when it should. `delimiters` begin an address extension, `origin` is the
    domain of recipients without one, and `known`
    says whether an address key is a user's. `srs` knows whom addresses stand for that forwarded mail has as sender."""

    host: str
    lifetime: float
    max_hops: int
    min_free: int
    subject: bool = True
    overload: Callable[[], str] = lambda: ""
    delimiters: str = "+"
    origin: str = ""
    known: Callable[[str], bool] = lambda key: False
    srs: Srs | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen of a message: why it is in a loop, whether its header has no end, and what it is found by."""

    loop: str
    unending: bool
    about: dict[str, Any]


class FilterIntake:
    """After the queue: the message is safe in the spool, then 250."""

    via = "filter"

    def __init__(self, spool: Spool, queue: Queue, options: IntakeOptions, clock: Clock) -> None:
        self._spool, self._queue, self._options, self._clock = spool, queue, options, clock
        self._refusals = Refusals(spool, clock)

    def admit(self) -> Reply | None:
        """Take another session, unless there is too much to do."""
        return OVERLOADED if self._options.overload() else None

    def refused(self, envelope: Envelope, reply: Reply, why: str = "") -> None:
        """Keep in the history that a message was not taken."""
        self._refusals.keep(envelope, reply, why, self.via)

    def mail(self, mail: Mail) -> Reply:
        """Take any sender, as long as there is room and not too much to do; one who logged in is nobody else."""
        if self._options.overload():
            return OVERLOADED
        if mail.login and not self._owns(mail.login, mail.sender):
            return Reply(553, "5.7.1", printable(f"Sender address rejected: not owned by user {mail.login}"))
        return SENDER_OK if self._spool.free() >= self._options.min_free + mail.size else NO_ROOM

    def _owns(self, login: str, sender: str) -> bool:
        """Return whether a user may send as that: the own address, with any extension that makes nobody else's of it,
        or the null path of a report.
        """
        own, wanted = key(login), key(sender)
        if not sender or wanted == own:
            return True
        return without_extension(wanted, self._options.delimiters) == own and not self._options.known(wanted)

    def recipient(self, recipient: Recipient) -> Reply:
        """Take any recipient, as Postfix has checked them; at `forward.srs_domain` only who stands for a sender."""
        address, srs = recipient.recipient.address, self._options.srs
        if srs is None or not srs.ours(address):
            return RECIPIENT_OK
        try:
            srs.reversed(address, self._clock())
        except ValueError as error:
            # Not for good: whoever gave the wrong domain there must lose no mail by it.
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
        """Look at what decides whether the message is taken, and what the journal finds it by. May block."""
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

    def _store(
        self,
        message: Message,
        deliveries: Sequence[Delivery],
        asked: dict[int, asyncio.Task[Answer]] | None = None,
    ) -> asyncio.Future[tuple[Reply, ...]]:
        """Write it and begin. The future fails with SpoolUnavailable: then it is not there and the client keeps it."""
        reserved = self._queue.expect(deliveries)
        stored: asyncio.Future[tuple[Reply, ...]] = asyncio.get_running_loop().create_future()

        def written(future: asyncio.Future[Any]) -> None:
            # Whether or not the client still waits (a session may be gone): what is in the spool goes its way.
            error = future.exception()
            if error is None:
                _tell_accepted(message, len(deliveries))
                if reserved:
                    self._queue.start(deliveries, asked)
                else:
                    self._queue.look()
            else:
                if reserved:
                    self._queue.forget(deliveries)
                self._remove(message.content)
            if not stored.done():
                if error is None:
                    stored.set_result((_queued(message),))
                else:
                    stored.set_exception(error)

        self._spool.accept(message, deliveries).add_done_callback(written)
        return stored

    def _remove(self, content: Content | None) -> None:
        if isinstance(content, InFile):
            content.path.unlink(missing_ok=True)


class ProxyIntake(FilterIntake):
    """Before the queue: the pipelines' answer is given in SMTP while the sender waits, within a budget.

    All denied: the first refusal. All passed alike: relayed in the same session, and the next hop's answer is ours.
    Anything else, or no time left: spooled, 250, and what is undecided goes on with the same tasks.
    """

    via = "proxy"

    def __init__(
        self,
        spool: Spool,
        queue: Queue,
        options: IntakeOptions,
        clock: Clock,
        *,
        journeys: Journeys,
        relay: Relay,
        budget: float,
    ) -> None:
        super().__init__(spool, queue, options, clock)
        self._journeys, self._relay, self._budget = journeys, relay, budget

    def recipient(self, recipient: Recipient) -> Reply:
        """Take a recipient whose mailbox is known.

        The domain that Postfix would add to a bare local part is known from `routing.origin` only; postmaster must be
        taken (RFC 5321 section 4.5.1).
        """
        address = recipient.recipient.address
        local, domain = split(key(address))
        bare = not domain and not any(sign in local for sign in "@%!")
        if bare and not self._options.origin and local != "postmaster":
            return NEEDS_DOMAIN
        return super().recipient(recipient)

    def message(self, envelope: Envelope, sink: Sink) -> asyncio.Future[tuple[Reply, ...]]:
        """Decide, then relay, refuse or store. The future fails with SpoolUnavailable, MailLoop."""
        assert isinstance(sink, Body)
        return asyncio.get_running_loop().create_task(self._decide(envelope, sink))

    async def _decide(self, envelope: Envelope, sink: Body) -> tuple[Reply, ...]:
        content: Content = sink.in_memory() or await sink.in_file()
        seen = await asyncio.to_thread(self._examined, content)
        message, deliveries = self._received(envelope, content, seen, sink.id)
        # What may have killed the node while a sender waited comes again: safe in the spool, it can be counted.
        suspect = message.digest in self._journeys.dispatcher.suspects.digests
        asked = {} if suspect else self._ask(deliveries)
        stored = False
        try:
            if asked:
                await asyncio.wait(asked.values(), timeout=self._budget)
            if not suspect and all(task.done() for task in asked.values()):
                answers = {n: task.result() for n, task in asked.items()}
                reply = await self._answer(message, deliveries, answers)
                if reply is not None:
                    return (reply,)
            replies = await self._store(message, deliveries, asked)
            stored = True
            return replies
        finally:
            if not stored:
                self._remove(message.content)
                for task in asked.values():
                    task.cancel()

    def _ask(self, deliveries: Sequence[Delivery]) -> dict[int, asyncio.Task[Answer]]:
        loop = asyncio.get_running_loop()
        asked = {}
        for delivery in deliveries:
            route = self._journeys.routes.find(delivery.recipient.address)
            if route is not None:
                asked[delivery.n] = loop.create_task(self._journeys.dispatcher.ask(delivery, route))
        return asked

    async def _answer(
        self, message: Message, deliveries: Sequence[Delivery], answers: dict[int, Answer]
    ) -> Reply | None:
        """Return the reply that can be given now.

        None: the message must be stored, as when an order is about it.
        """
        orders, now = self._journeys.orders, self._clock()
        if orders and any(first_for(orders, message, delivery, now) for delivery in deliveries):
            return None
        each = [answers.get(delivery.n, _NO_PIPELINE) for delivery in deliveries]
        refusal = _refused_by_all(each)
        if refusal is not None:
            await self._record(message, deliveries, each, State.REJECTED, refusal)
            return refusal
        if any(isinstance(answer, Deferral) for answer in each) and not any(map(_passes, each)):
            return MIXED
        first = each[0]
        if isinstance(first, Deferral) or not all(_passes(a) and _alike(a, first) for a in each):
            return None
        began = time.perf_counter()
        result = await self._relay(message, deliveries, first)
        replies = [outcome.reply for outcome in result.outcomes if outcome.reply is not None]
        if len(replies) < len(deliveries):
            return None  # nothing was sent, because some recipients were refused
        taken = [reply for reply in replies if reply.positive]
        if taken and len(taken) < len(replies):
            return await self._settle(message, deliveries, answers, result, time.perf_counter() - began)
        reply = taken[0] if taken else next((reply for reply in replies if reply.temporary), replies[0])
        await self._record(message, deliveries, each, State.DELIVERED if reply.positive else State.REJECTED, reply)
        if reply.positive:
            await self._journeys.outcomes.confirm(message, deliveries, result)
        return reply

    async def _settle(
        self,
        message: Message,
        deliveries: Sequence[Delivery],
        answers: Mapping[int, Answer],
        result: Delivered,
        seconds: float,
    ) -> Reply:
        """Store a message that an LMTP server took for some recipients only, and record what it said of each.

        Raises SpoolUnavailable: then it is not stored, and who was served gets it once more (RFC 1047).
        """
        self._queue.claim(deliveries)
        try:
            await self._spool.accept(message, deliveries)
            if isinstance(message.content, InFile):
                message.content = None  # the file is the spool's now
            _tell_accepted(message, len(deliveries))
            await self._journeys.settle(message, deliveries, answers, result, seconds)
        finally:
            self._queue.forget(deliveries)
        return _queued(message)

    async def _record(
        self,
        message: Message,
        deliveries: Sequence[Delivery],
        answers: Sequence[Answer],
        state: State,
        reply: Reply,
    ) -> None:
        """Write what happened. The sender was or will be told; a spool that cannot be written changes nothing.

        What is refused for now is kept by `refused`: it is not ours, and comes again.
        """
        if reply.temporary:
            return
        for delivery, answer in zip(deliveries, answers, strict=True):
            delivery.state, delivery.due, delivery.reply = state, None, str(reply)
            delivery.verdict = answer if isinstance(answer, Verdict) and answer is not _NO_PIPELINE else None
        verdicts = {str(d.n): a.to_json() for d, a in zip(deliveries, answers, strict=True) if isinstance(a, Verdict)}
        try:
            await self._spool.accept(message, deliveries, data={state.value: str(reply), "verdicts": verdicts})
            if self._spool.records(deliveries):
                message.content = None  # a file of it is the spool's now
        except SpoolUnavailable as error:
            logs.failed("recording a message before the queue", error=error, msg_id=message.text_id)
        if state is State.DELIVERED:
            _tell_accepted(message, len(deliveries))
        for delivery in deliveries:
            metrics.ended(state.value)
            logs.ended(message.text_id, rcpt=delivery.recipient.address, state=state, reply=str(reply), dur_ms=0.0)


Relay = Callable[[Message, Sequence[Delivery], Verdict], Awaitable[Delivered]]
"""Hand a message to the next hop for all recipients or, where it refuses some before the content, for none: then an
outcome of each other recipient has no reply. LMTP may refuse some after the content (RFC 2033 section 4.2)."""

_NO_PIPELINE = Verdict.passed("no pipeline")


def make_relay(courier: Courier, composer: Composer) -> Relay:
    """Make a relay over a courier."""

    async def relay(message: Message, deliveries: Sequence[Delivery], verdict: Verdict) -> Delivered:
        content = await message.load()
        composed = await asyncio.to_thread(
            lambda: composer.compose(
                content,
                message=message.text_id,
                client=message.envelope.client,
                received=message.received,
                verdict=verdict,
                utf8=message.envelope.smtputf8,
            )
        )
        try:
            async with asyncio.timeout(RELAY_LIMIT):
                return await courier.deliver(message.envelope_for(deliveries), composed, unanimous=True)
        except TimeoutError:
            return Delivered((Outcome(TOO_SLOW),) * len(deliveries))

    return relay


def _passes(answer: Answer) -> bool:
    return isinstance(answer, Verdict) and answer.action in (Action.PASS, None)


def _alike(answer: Answer, other: Verdict) -> bool:
    return isinstance(answer, Verdict) and answer.tags == other.tags and answer.edits == other.edits


def _refused_by_all(answers: Sequence[Answer]) -> Reply | None:
    """Return the reply when every answer is a DENY; a temporary one counts for all, because the sender comes back.

    A DENY without a reply throws the mail away, of which its sender must not hear.
    """
    known = [a.reply for a in answers if isinstance(a, Verdict) and a.action is Action.DENY and a.reply is not None]
    if len(known) < len(answers):
        return None
    return next((reply for reply in known if reply.temporary), known[0])


def returned(envelope: Envelope, srs: Srs, now: float) -> tuple[Envelope, dict[str, Any]]:
    """Return the envelope with the senders that addresses of ours stand for as recipients, and which these are, for the
    journal."""
    if not any(srs.ours(recipient.address) for recipient in envelope.recipients):
        return envelope, {}
    came_for: dict[str, str] = {}
    recipients: list[EnvelopeRecipient] = []
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
    recipients: dict[str, EnvelopeRecipient] = {}
    for recipient in envelope.recipients:
        recipients.setdefault(key(recipient.address), recipient)
    return replace(envelope, recipients=tuple(recipients.values()))


def _about(head: bytes, beginning: bytes, *, subject: bool) -> dict[str, Any]:
    """Return what the journal finds the message by. Never raises."""
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


def _queued(message: Message) -> Reply:
    return Reply(250, "2.0.0", f"Ok: queued as {message.text_id}")


def _tell_accepted(message: Message, recipients: int) -> None:
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
