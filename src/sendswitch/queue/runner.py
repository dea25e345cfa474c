"""A message's journey: each delivery is decided, and what was decided is carried out.

Rules:
1. A decision is durable before it is carried out: a second run of a pipeline can never undo a first one's effect.
2. One recipient's trouble never touches another's: each group of recipients is carried out on its own, and an SMTP
   transaction under way is never cut because something else failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace

from sendswitch.clock import Clock
from sendswitch.delivery.base import Courier
from sendswitch.delivery.compose import Composer
from sendswitch.mail import dsn
from sendswitch.mail.content import Content, InFile
from sendswitch.mail.hops import Marks
from sendswitch.mail.message import LARGE_HEADER
from sendswitch.mail.srs import Srs
from sendswitch.mail.verdict import BROKE, MAX_TAGS, Answer, Deferral, Verdict
from sendswitch.queue import policy as decide
from sendswitch.queue.dispatcher import Dispatcher
from sendswitch.queue.forward import forward
from sendswitch.queue.limiter import Places
from sendswitch.queue.outcomes import Outcomes, Window
from sendswitch.routing import Route, Routes
from sendswitch.smtp.client import Delivered
from sendswitch.spool.orders import Order, first_for
from sendswitch.spool.records import Change, Delivery, Message
from sendswitch.spool.states import State

# Seconds in which recipients of one message that are decided one after the other may still share a transaction.
GATHER = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What the configuration says about journeys; a reload replaces it as a whole.

    `recipients` are the most of one transaction. `sending` has a place for each message that is composed, sent and
    recorded at once: no more are in memory, and no more can be repeated by a crash. With another courier come other
    places, so that mail which waits for a broken next hop goes to its successor. `marks` are those of forwarded mail,
    and `srs` rewrites the senders of what is forwarded to other domains.
    """

    courier: Courier
    composer: Composer
    policy: decide.Policy
    recipients: int
    sending: Places
    marks: Marks
    srs: Srs | None = None


class Journeys:
    """Runs journeys."""

    def __init__(self, outcomes: Outcomes, dispatcher: Dispatcher, terms: Terms, *, clock: Clock) -> None:
        self.outcomes, self.dispatcher, self.terms, self._clock = outcomes, dispatcher, terms, clock
        self.routes = Routes()
        self.orders: Sequence[Order] = ()

    def enter(self, window: Window) -> None:
        """Have new deliveries that come of a journey enter this window."""
        self.outcomes.window = self._window = window

    async def run(
        self, message: Message, deliveries: Sequence[Delivery], asked: Mapping[int, asyncio.Task[Answer]]
    ) -> None:
        """Run the whole journey; never raises but when cancelled. `asked` are answers already on order."""
        if self.orders and not (deliveries := await self._obey(message, deliveries)):
            return
        first = deliveries[0]
        if len(deliveries) == 1 and first.state is State.ACCEPTED and self._route(first) is None:
            await self._safely(deliveries, self._deliver(message, deliveries))  # most mail
        else:
            await self._safely(deliveries, self._journey(message, deliveries, asked))

    async def _obey(self, message: Message, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Carry out people's orders; gives the deliveries that none is about."""
        free: list[Delivery] = []
        ordered: dict[int, tuple[Order, list[Delivery]]] = {}
        for delivery in deliveries:
            order = first_for(self.orders, message, delivery, self._clock())
            if order is None or delivery.state not in (State.ACCEPTED, State.DECIDED):
                free.append(delivery)
            else:
                ordered.setdefault(order.id, (order, []))[1].append(delivery)
        for order, about in ordered.values():
            try:
                free += await self.outcomes.obey(message, about, order, quarantine=self.terms.policy.quarantine)
            except Exception as error:
                await self.outcomes.after_error(about, error)
        return free

    async def _safely(self, deliveries: Sequence[Delivery], work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            await self.outcomes.after_error(deliveries, error)

    def _route(self, delivery: Delivery) -> Route | None:
        """Return the way to the pipeline that must be asked, None when there is nothing to ask.

        A report of ours has none, or two pipelines could report to each other for ever.
        """
        if delivery.state is not State.ACCEPTED or delivery.message.via == "report":
            return None
        return self.routes.find(delivery.recipient.address)

    async def _journey(
        self, message: Message, deliveries: Sequence[Delivery], asked: Mapping[int, asyncio.Task[Answer]]
    ) -> None:
        if len(deliveries) == 1:
            await self._safely(deliveries, self._decide(deliveries[0], asked))
            await self._carry_out(message, deliveries)
            return
        ready: list[Delivery] = []
        waiting: dict[asyncio.Task[None], Delivery] = {}
        async with asyncio.TaskGroup() as group:  # its tasks never raise, so none cancels another
            for delivery in deliveries:
                if delivery.n in asked or self._route(delivery) is not None:
                    waiting[group.create_task(self._safely([delivery], self._decide(delivery, asked)))] = delivery
                else:
                    ready.append(delivery)
            if ready:
                group.create_task(self._carry_out(message, ready))
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if len(done) < len(waiting):
                    done, _ = await asyncio.wait(waiting, timeout=GATHER)
                group.create_task(self._carry_out(message, [waiting.pop(task) for task in done]))

    # Deciding

    async def _decide(self, delivery: Delivery, asked: Mapping[int, asyncio.Task[Answer]]) -> None:
        """Get the answer and make it durable; nothing for a delivery that needs none."""
        if delivery.n in asked:
            await self._decided(delivery, await asked[delivery.n])
        elif (route := self._route(delivery)) is not None:
            if self.dispatcher.suspects.poison(delivery.key):
                await self.outcomes.put_poison_aside(delivery, self.terms.policy.quarantine)
            else:
                await self._decided(delivery, await self.dispatcher.ask(delivery, route))

    async def _decided(self, delivery: Delivery, answer: Answer) -> None:
        reason = decide.undecided(answer)
        if isinstance(answer, Deferral) or reason:
            suspects = self.dispatcher.suspects
            if isinstance(answer, Deferral) and answer.why == BROKE:
                await suspects.broke(delivery.key)
                if suspects.poison(delivery.key):
                    await self.outcomes.put_poison_aside(delivery, self.terms.policy.quarantine)
                    return
            whose = {"pipeline": answer.pipeline, "version": answer.version}
            trace = [step.to_json() for step in answer.trace]
            if self._clock() >= delivery.message.expires:
                why = f"no pipeline came to a verdict until its time was over: {reason}"
                until = self._clock() + self.terms.policy.quarantine
                await self.outcomes.keep(delivery, State.QUARANTINED, until, why, trace=trace, **whose)
            else:
                await self.outcomes.put_off(delivery, reason, trace=trace, **whose)
            return
        await self.dispatcher.suspects.clear(delivery.key)
        before, verdict, told = delivery.verdict, answer, answer.to_json()
        if delivery.attempts:
            told["attempt"] = delivery.attempts + 1
        if decide.asked_again(answer):  # it says all the rest again then
            verdict = replace(answer, tags=(), edits=())
        if before is not None:  # what an earlier forward put on the message
            tags = tuple(dict.fromkeys(before.tags + verdict.tags))[:MAX_TAGS]
            verdict = replace(verdict, tags=tags, edits=before.edits + verdict.edits, rewrite=before.rewrite)
            told["before"] = list(before.tags)
        await self.outcomes.record(
            [Change(delivery, State.DECIDED, "verdict", told, delivery.due, verdict, delivery.attempts)]
        )

    async def _hold_expired(self, delivery: Delivery) -> bool:
        """Record what comes after a hold; return whether the pipeline must be asked again."""
        held, now, message = delivery.verdict or Verdict.pending(), self._clock(), delivery.message
        # Who asks for a delay again and again gets none when the message's time is over.
        if decide.asked_again(held) and now < message.expires:
            on_it = Verdict(tags=held.tags, edits=held.edits, rewrite=held.rewrite)
            attempts = delivery.attempts
            change = Change(delivery, State.ACCEPTED, "delay over", {}, now, on_it, attempts)
        else:
            verdict = decide.after_hold(held)
            change = Change(delivery, State.DECIDED, "hold expired", {"then": verdict.to_json()}, now, verdict)
        await self.outcomes.record([change])
        if change.state is State.ACCEPTED:
            return True
        message.expires = max(message.expires, now + message.lifetime)
        return False

    async def settle(
        self,
        message: Message,
        deliveries: Sequence[Delivery],
        answers: Mapping[int, Answer],
        result: Delivered,
        seconds: float,
    ) -> None:
        """Record answers, and what the next hop said of a message that it got while its sender waited. Never raises."""
        for delivery in deliveries:
            if delivery.n in answers:
                await self._safely([delivery], self._decided(delivery, answers[delivery.n]))
        await self._safely(deliveries, self.outcomes.settle(message, deliveries, result, seconds))

    # Carrying out

    async def _carry_out(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        """Carry out each delivery that is decided or needs no decision; equal ones share a transaction."""
        groups: dict[object, list[Delivery]] = {}
        for delivery in deliveries:
            await self._safely([delivery], self._act(message, delivery, groups))
        most = self.terms.recipients
        batches = [group[n : n + most] for group in groups.values() for n in range(0, len(group), most)]
        if len(batches) == 1:
            await self._safely(batches[0], self._deliver(message, batches[0]))
            return
        async with asyncio.TaskGroup() as tasks:
            for batch in batches:
                tasks.create_task(self._safely(batch, self._deliver(message, batch)))

    async def _act(self, message: Message, delivery: Delivery, groups: dict[object, list[Delivery]]) -> None:
        """Carry out what is not a delivery; put what is one into its group."""
        if delivery.state is State.HELD and await self._hold_expired(delivery):
            self._window.look()  # to be asked about like any other
            return
        if delivery.due is None or delivery.due > self._clock():
            return  # deferred meanwhile
        if self._route(delivery) is not None:
            self._window.look()  # deferred, and its time has come already: no verdict is no pass
            return
        if delivery.state is State.QUARANTINED:
            await self.outcomes.end(delivery, State.DISCARDED, "expired in quarantine")
            return
        verdict = delivery.verdict
        effect: decide.Effect = decide.Deliver()
        if delivery.state is State.DECIDED and verdict is not None:
            effect = decide.effect(
                verdict,
                sender=message.envelope.sender,
                recipient=delivery.recipient,
                client=message.envelope.client,
                policy=self.terms.policy,
                now=self._clock(),
            )
        if isinstance(effect, decide.Deliver):
            alike = (verdict.tags, verdict.edits, verdict.rewrite) if verdict else None
            groups.setdefault(alike, []).append(delivery)
        else:
            await self._other(message, delivery, effect)

    async def _other(self, message: Message, delivery: Delivery, effect: decide.Effect) -> None:
        match effect:
            case decide.Keep(until, reason):
                await self.outcomes.keep(delivery, State.QUARANTINED, until, reason)
            case decide.Hold(until, reason):
                await self.outcomes.keep(delivery, State.HELD, until, reason)
            case decide.Discard(reason):
                await self.outcomes.end(delivery, State.DISCARDED, reason)
            case decide.Bounce(reply, explanation):
                await self.outcomes.fail(message, [(delivery, dsn.Outcome(delivery.recipient, reply, explanation))])
            case decide.Forward(targets, keep_copy):
                spool, now, srs = self.outcomes.spool, self._clock(), self.terms.srs
                marks = self.terms.marks
                new = await forward(spool, delivery, targets, keep_copy, now=now, marks=marks, srs=srs)
                self.outcomes.tell_end(delivery, State.FORWARDED, f"to {', '.join(targets)}")
                if new and self._window.expect(new):
                    self._window.start(new)
                else:
                    self._window.look()

    async def _deliver(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        began = time.perf_counter()
        while True:
            terms = self.terms
            if not (terms.sending.at_once() or await terms.sending.take()):
                continue
            try:
                # What an order has ended is not sent in another round.
                if not (deliveries := await self._send(terms, message, deliveries, began)):
                    return
            finally:
                terms.sending.give_back()

    async def _send(
        self, terms: Terms, message: Message, deliveries: Sequence[Delivery], began: float
    ) -> Sequence[Delivery]:
        """Hand it to the next hop and record what it said; gives what must go another way, because that next hop was
        replaced before it began."""
        if self.orders and not (deliveries := await self._obey(message, deliveries)):
            return ()
        content = await message.load()
        envelope, verdict = message.envelope_for(deliveries), deliveries[0].verdict
        # Now and not when it was forwarded: it may have waited, and a bounce finds back for some weeks only.
        if verdict is not None and verdict.rewrite and terms.srs is not None:
            envelope = replace(envelope, sender=terms.srs.rewritten(envelope.sender, self._clock()))

        def compose() -> Content:
            return terms.composer.compose(
                content,
                message=message.text_id,
                client=envelope.client,
                received=message.received,
                verdict=verdict,
                utf8=envelope.smtputf8,
            )

        # A file's head is read from disk, and a large header takes its time: so not here.
        written = verdict.written if verdict is not None else 0
        beside = isinstance(content, InFile) or len(content.head()) + written > LARGE_HEADER
        composed = await asyncio.to_thread(compose) if beside else compose()
        result = await terms.courier.deliver(envelope, composed)
        if terms.courier is not self.terms.courier and all(outcome.reply is None for outcome in result.outcomes):
            return deliveries
        # In the same place: what a crash can repeat is never more than the places there are, and a spool that cannot
        # be written stops deliveries, not only their record.
        await self.outcomes.settle(message, deliveries, result, time.perf_counter() - began)
        return ()
