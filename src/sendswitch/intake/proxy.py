"""The intake before Postfix's queue (`proxy`): the pipelines' answer is given in SMTP while the sender waits.

250 is said when the next hop has the message, or when the spool has it. Every doubt is a 451.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from sendswitch.clock import Clock
from sendswitch.intake.after_queue import FilterIntake, IntakeOptions, queued, tell_accepted
from sendswitch.mail.address import key, split
from sendswitch.mail.content import Content, InFile
from sendswitch.mail.envelope import Envelope
from sendswitch.mail.verdict import BROKE, UNANSWERED, Deferral, PipelineResult, Verdict
from sendswitch.queue.active import ActiveQueue
from sendswitch.queue.outcomes import Outcomes
from sendswitch.queue.policy import pass_alike, passes, refused_by_all
from sendswitch.queue.runner import QueueRunner, compose
from sendswitch.queue.settings import Current
from sendswitch.reply import Reply
from sendswitch.smtp.client import Delivered
from sendswitch.smtp.handler import Sink
from sendswitch.smtp.protocol.client import Outcome
from sendswitch.smtp.protocol.server import RcptCommand
from sendswitch.spool.body import Body
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.spool import Spool

NEEDS_DOMAIN = Reply(504, "5.5.2", "Recipient address rejected: need fully-qualified address")
TOO_SLOW = Reply(451, "4.4.2", "Error: the next hop is too slow, please try again later")
MIXED = Reply(451, "4.7.1", "Error: the recipients' filters could not decide, please try again later")
# Seconds to relay while the sender waits. Postfix gives up after smtpd_proxy_timeout (100 s) and its client comes
# again: a relay that went through after that would be a second copy.
RELAY_LIMIT = 60.0


class ProxyIntake(FilterIntake):
    """The intake before the queue: the sender waits up to `budget` seconds and gets the pipelines' answer in SMTP.

    All denied: the first refusal. All passed alike: relayed in the same session, and the next hop's reply is ours.
    Otherwise, or without time left: the message is stored, the reply is 250, and the same tasks go on.
    """

    via = "proxy"

    def __init__(
        self,
        spool: Spool,
        queue: ActiveQueue,
        options: IntakeOptions,
        clock: Clock,
        *,
        runner: QueueRunner,
        outcomes: Outcomes,
        current: Current,
        budget: float,
    ) -> None:
        super().__init__(spool, queue, options, clock)
        self._runner, self._outcomes, self._current, self._budget = runner, outcomes, current, budget

    def recipient(self, recipient: RcptCommand) -> Reply:
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
        asked = self._runner.begin(message, deliveries)
        stored = False
        try:
            if asked:
                await asyncio.wait(asked.values(), timeout=self._budget)
            if asked is not None and all(task.done() for task in asked.values()):
                answers = [asked[d.n].result() if d.n in asked else None for d in deliveries]
                if (reply := await self._answer(message, deliveries, answers)) is not None:
                    return (reply,)
            replies = await self._store(message, deliveries)
            stored = True
            return replies
        finally:
            if not stored:
                self._remove(message.content)
                self._runner.cancel(deliveries)

    async def _answer(
        self, message: Message, deliveries: Sequence[Delivery], answers: Sequence[PipelineResult | None]
    ) -> Reply | None:
        """Return the reply that can be given now.

        None: the message must be stored, as when an administrator's rule is about it.
        """
        settings, now = self._current.settings, self._clock()
        if settings.rules and any(settings.rule_for(message, delivery, now) for delivery in deliveries):
            return None
        if any(isinstance(answer, Deferral) and answer.why in (BROKE, UNANSWERED) for answer in answers):
            return None  # in the spool it is counted, or marked
        refusal = refused_by_all(answers)
        if refusal is not None:
            await self._outcomes.record_answered(message, deliveries, answers, refusal)
            return refusal
        if any(isinstance(answer, Deferral) for answer in answers) and not any(map(passes, answers)):
            return MIXED
        first = answers[0]
        if isinstance(first, Deferral) or not pass_alike(answers):
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
        if reply.positive:
            tell_accepted(message, len(deliveries))
        await self._outcomes.record_answered(message, deliveries, answers, reply)
        if reply.positive:
            await self._outcomes.confirm(message, deliveries, result)
        return reply

    async def _relay(self, message: Message, deliveries: Sequence[Delivery], verdict: Verdict | None) -> Delivered:
        """Hand a message to the next hop for all recipients or, where it refuses some before the content, for none.

        Then an outcome of each other recipient has no reply. LMTP may refuse some after the content (RFC 2033 4.2).
        """
        settings = self._current.settings
        composed = await compose(settings.composer, message, await message.load(), verdict)
        try:
            async with asyncio.timeout(RELAY_LIMIT):
                return await settings.courier.deliver(message.envelope_for(deliveries), composed, unanimous=True)
        except TimeoutError:
            return Delivered((Outcome(TOO_SLOW),) * len(deliveries))

    async def _settle(
        self,
        message: Message,
        deliveries: Sequence[Delivery],
        answers: Sequence[PipelineResult | None],
        result: Delivered,
        seconds: float,
    ) -> Reply:
        """Store a message that an LMTP server accepted for some recipients only, and record its reply for each.

        Raises SpoolUnavailable: the message is not stored, and recipients who have it get it again (RFC 1047).
        """
        self._queue.claim(deliveries)
        try:
            await self._spool.accept(message, deliveries)
            if isinstance(message.content, InFile):
                message.content = None  # the file is the spool's now
            tell_accepted(message, len(deliveries))
            await self._runner.settle(message, deliveries, answers, result, seconds)
        finally:
            self._queue.release(deliveries)
        return queued(message)
