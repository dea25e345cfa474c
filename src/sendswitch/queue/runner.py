"""The queue's runner: each delivery is decided, carried out, and recorded.

Rules:
1. A decision is durable before it is carried out, so that a second run of a pipeline never undoes the effect of the
   first.
2. One recipient's trouble never touches another's: each group of recipients is carried out on its own, and an SMTP
   transaction under way is never cut because something else failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace

from sendswitch.clock import Clock
from sendswitch.delivery.compose import Composer
from sendswitch.journal.events import EventKind
from sendswitch.mail import dsn
from sendswitch.mail.content import Content, InFile
from sendswitch.mail.message import LARGE_HEADER
from sendswitch.mail.verdict import BROKE, BUSY, OFFLINE, UNANSWERED, Deferral, PipelineResult, Verdict, merged
from sendswitch.queue import policy
from sendswitch.queue.active import ActiveQueue, Entry
from sendswitch.queue.dispatcher import Dispatcher
from sendswitch.queue.outcomes import Outcomes
from sendswitch.queue.settings import Current, Settings
from sendswitch.routing import Route
from sendswitch.smtp.client import Delivered
from sendswitch.spool.records import Change, Delivery, Message
from sendswitch.spool.rules import AdminRule
from sendswitch.spool.states import State

# Seconds in which recipients of one message that are decided one after the other may still share a transaction.
GATHER = 0.05


class QueueRunner:
    """The runner of the deliveries in the active queue: decide, act, record."""

    def __init__(
        self, queue: ActiveQueue, outcomes: Outcomes, dispatcher: Dispatcher, current: Current, *, clock: Clock
    ) -> None:
        self._queue, self._outcomes, self._dispatcher = queue, outcomes, dispatcher
        self._current, self._clock = current, clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run ready deliveries, one task for each message, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            for entry in await self._queue.take():
                task = loop.create_task(self._entry(entry))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def stop(self, grace: float) -> None:
        """Wait at most `grace` seconds for deliveries under way. The rest stays in the spool."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _entry(self, entry: Entry) -> None:
        try:
            await self._message(entry.message, entry.deliveries)
        finally:
            self._dispatcher.cancel(entry.deliveries)
            self._queue.done(entry)

    async def _message(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        """Run deliveries of one message to their new states. Never raises but when cancelled."""
        if self._current.settings.rules and not (deliveries := await self._apply_rules(message, deliveries)):
            return
        first = deliveries[0]
        if len(deliveries) == 1 and first.state is State.ACCEPTED and self._route(first) is None:
            await self._safely(deliveries, self._deliver(message, deliveries))  # most mail
        else:
            await self._safely(deliveries, self._each(message, deliveries))

    async def _apply_rules(self, message: Message, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Apply administrators' rules. Return the deliveries that none affects."""
        settings = self._current.settings
        free: list[Delivery] = []
        affected: dict[int, tuple[AdminRule, list[Delivery]]] = {}
        for delivery in deliveries:
            rule = settings.rule_for(message, delivery, self._clock())
            if rule is None or delivery.state not in (State.ACCEPTED, State.DECIDED):
                free.append(delivery)
            else:
                affected.setdefault(rule.id, (rule, []))[1].append(delivery)
        for rule, about in affected.values():
            failed: Exception | None = None
            try:
                free += await self._outcomes.apply(message, about, rule, quarantine=settings.policy.quarantine)
            except Exception as error:
                failed = error
            if failed is not None:
                await self._outcomes.after_error(about, failed)
        return free

    async def _safely(self, deliveries: Sequence[Delivery], work: Coroutine[None, None, None]) -> None:
        failed: Exception | None = None
        try:
            await work
        except Exception as error:
            failed = error
        if failed is not None:
            await self._outcomes.after_error(deliveries, failed)

    def _route(self, delivery: Delivery) -> Route | None:
        """Return the way to the pipeline that must be asked, None when there is nothing to ask.

        A report of ours has none, or two pipelines could report to each other for ever.
        """
        if delivery.state is not State.ACCEPTED or delivery.message.via == "report":
            return None
        return self._current.settings.routes.find(delivery.recipient.address)

    async def _each(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        if len(deliveries) == 1:
            await self._safely(deliveries, self._decide(deliveries[0]))
            await self._carry_out(message, deliveries)
            return
        ready: list[Delivery] = []
        waiting: dict[asyncio.Task[None], Delivery] = {}
        async with asyncio.TaskGroup() as group:  # its tasks never raise, so none cancels another
            for delivery in deliveries:
                if self._route(delivery) is not None:
                    waiting[group.create_task(self._safely([delivery], self._decide(delivery)))] = delivery
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

    async def _decide(self, delivery: Delivery) -> None:
        """Get the answer and make it durable; nothing for a delivery that needs none."""
        if (route := self._route(delivery)) is not None:
            suspects = self._dispatcher.suspects
            if delivery.key in suspects.counts and suspects.poison(delivery.key):
                await self._outcomes.put_poison_aside(delivery, self._current.settings.policy.quarantine)
            else:
                await self._decided(delivery, await self._dispatcher.ask(delivery, route))

    async def _decided(self, delivery: Delivery, answer: PipelineResult) -> None:
        reason, suspects = policy.undecided(answer), self._dispatcher.suspects
        if isinstance(answer, Deferral) or reason:
            if isinstance(answer, Deferral) and answer.why == BROKE:
                await suspects.broke(delivery.key)
                if suspects.poison(delivery.key):
                    await self._outcomes.put_poison_aside(delivery, self._current.settings.policy.quarantine)
                    return
            if isinstance(answer, Deferral) and answer.why == UNANSWERED:
                await suspects.mark(delivery.key)
            whose = _whose(answer)
            trace = [step.to_json() for step in answer.trace]
            await self._again_or_aside(delivery, reason, trace=trace, **whose)
            route = self._route(delivery)
            if isinstance(answer, Deferral) and answer.why in (OFFLINE, BUSY) and route is not None:
                self._dispatcher.put_off(delivery, route)
            return
        if delivery.key in suspects.counts:
            await suspects.clear(delivery.key)
        before, verdict, told = delivery.verdict, answer, answer.to_json()
        if delivery.attempts:
            told["attempt"] = delivery.attempts + 1
        if policy.asked_again(answer):  # it says all the rest again then
            verdict = replace(answer, tags=(), edits=())
        if before is not None:  # what an earlier forward put on the message
            verdict = merged(before, verdict)
            told["before"] = list(before.tags)
        await self._outcomes.record(
            [Change(delivery, State.DECIDED, EventKind.VERDICT, told, delivery.due, verdict, delivery.attempts)]
        )

    async def _again_or_aside(self, delivery: Delivery, reason: str, **about: object) -> None:
        """Defer a delivery without a verdict, or quarantine it when its message's time is over."""
        if self._clock() < delivery.message.expires:
            await self._outcomes.put_off(delivery, reason, **about)
            return
        why = f"no pipeline came to a verdict until its time was over: {reason}"
        until = self._clock() + self._current.settings.policy.quarantine
        await self._outcomes.keep(delivery, State.QUARANTINED, until, why, **about)
        if delivery.key in self._dispatcher.suspects.counts:
            await self._dispatcher.suspects.clear(delivery.key)

    async def _hold_expired(self, delivery: Delivery) -> bool:
        """Record the verdict of an expired hold. Return whether the pipeline must be asked again."""
        held, now, message = delivery.verdict or Verdict.pending(), self._clock(), delivery.message
        # Who asks for a delay again and again gets none when the message's time is over.
        if policy.asked_again(held) and now < message.expires:
            on_it = Verdict(tags=held.tags, edits=held.edits, rewrite=held.rewrite)
            attempts = delivery.attempts
            change = Change(delivery, State.ACCEPTED, EventKind.DELAY_OVER, {}, now, on_it, attempts)
        else:
            verdict = policy.after_hold(held)
            change = Change(delivery, State.DECIDED, EventKind.HOLD_EXPIRED, {"then": verdict.to_json()}, now, verdict)
        await self._outcomes.record([change])
        if change.state is State.ACCEPTED:
            return True
        message.expires = max(message.expires, now + message.lifetime)
        return False

    # Before the queue

    def begin(self, message: Message, deliveries: Sequence[Delivery]) -> dict[int, asyncio.Task[PipelineResult]] | None:
        """Ask about deliveries whose sender waits. Return the answers that will come, by the delivery's number.

        None: this message may have killed the node while a sender waited. In the spool, it can be counted.
        """
        if message.digest in self._dispatcher.suspects.digests:
            return None
        routes = ((delivery, self._route(delivery)) for delivery in deliveries)
        return {d.n: self._dispatcher.begin(d, route) for d, route in routes if route is not None}

    def cancel(self, deliveries: Sequence[Delivery]) -> None:
        """End the questions about deliveries that will not be in the spool."""
        self._dispatcher.cancel(deliveries)

    async def settle(
        self,
        message: Message,
        deliveries: Sequence[Delivery],
        answers: Sequence[PipelineResult | None],
        result: Delivered,
        seconds: float,
    ) -> None:
        """Record answers, and the next hop's replies to a message whose sender waited. Never raises."""
        for delivery, answer in zip(deliveries, answers, strict=True):
            if answer is not None:
                await self._safely([delivery], self._decided(delivery, answer))
        await self._safely(deliveries, self._outcomes.settle(message, deliveries, result, seconds))

    # Carrying out

    async def _carry_out(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        """Carry out each delivery that is decided or needs no decision; equal ones share a transaction."""
        groups: dict[object, list[Delivery]] = {}
        for delivery in deliveries:
            await self._safely([delivery], self._act(message, delivery, groups))
        most = self._current.settings.recipients
        batches = [group[n : n + most] for group in groups.values() for n in range(0, len(group), most)]
        if len(batches) == 1:
            await self._safely(batches[0], self._deliver(message, batches[0]))
            return
        async with asyncio.TaskGroup() as tasks:
            for batch in batches:
                tasks.create_task(self._safely(batch, self._deliver(message, batch)))

    async def _act(self, message: Message, delivery: Delivery, groups: dict[object, list[Delivery]]) -> None:
        """Carry out effects that deliver nothing, and collect the deliveries in groups."""
        if delivery.state is State.HELD and await self._hold_expired(delivery):
            self._queue.wake()  # to be asked about like any other
            return
        if delivery.due is None or delivery.due > self._clock():
            return  # deferred meanwhile
        if self._route(delivery) is not None:
            self._queue.wake()  # deferred, and its time has come already: no verdict is no pass
            return
        if delivery.state is State.QUARANTINED:
            await self._outcomes.end(delivery, State.DISCARDED, "expired in quarantine")
            return
        verdict = delivery.verdict
        effect: policy.Effect = policy.DeliverEffect()
        if delivery.state is State.DECIDED and verdict is not None:
            effect = policy.effect(
                verdict,
                sender=message.envelope.sender,
                recipient=delivery.recipient,
                client=message.envelope.client,
                policy=self._current.settings.policy,
                now=self._clock(),
            )
        if isinstance(effect, policy.DeliverEffect):
            alike = (verdict.tags, verdict.edits, verdict.rewrite) if verdict else None
            groups.setdefault(alike, []).append(delivery)
        else:
            await self._other(message, delivery, effect)

    async def _other(self, message: Message, delivery: Delivery, effect: policy.Effect) -> None:
        match effect:
            case policy.QuarantineEffect(until, reason):
                await self._outcomes.keep(delivery, State.QUARANTINED, until, reason)
            case policy.HoldEffect(until, reason):
                await self._outcomes.keep(delivery, State.HELD, until, reason)
            case policy.DiscardEffect(reason):
                await self._outcomes.end(delivery, State.DISCARDED, reason)
            case policy.BounceEffect(reply, explanation):
                await self._outcomes.fail(
                    message, [(delivery, dsn.RecipientOutcome(delivery.recipient, reply, explanation))]
                )
            case policy.ForwardEffect(targets, keep_copy):
                marks, srs = self._current.settings.marks, self._current.settings.srs
                await self._queue.split(
                    delivery, lambda: self._outcomes.forward(delivery, targets, keep_copy, marks=marks, srs=srs)
                )

    async def _deliver(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        began = time.perf_counter()
        while True:
            settings = self._current.settings
            if not (settings.sending.try_acquire() or await settings.sending.acquire()):
                continue
            try:
                # What a rule has ended is not sent in another round.
                if not (deliveries := await self._send(settings, message, deliveries, began)):
                    return
            finally:
                settings.sending.release()

    async def _send(
        self, settings: Settings, message: Message, deliveries: Sequence[Delivery], began: float
    ) -> Sequence[Delivery]:
        """Hand it to the next hop and record the replies. Return the deliveries that must go another way, because that
        next hop was replaced before their transaction began."""
        if self._current.settings.rules and not (deliveries := await self._apply_rules(message, deliveries)):
            return ()
        content = await message.load()
        envelope, verdict = message.envelope_for(deliveries), deliveries[0].verdict
        # Now and not when it was forwarded: it may have waited, and a bounce finds back for some weeks only.
        if verdict is not None and verdict.rewrite and settings.srs is not None:
            envelope = replace(envelope, sender=settings.srs.rewritten(envelope.sender, self._clock()))
        composed = await compose(settings.composer, message, content, verdict)
        result = await settings.courier.deliver(envelope, composed)
        replaced = settings.courier is not self._current.settings.courier
        if replaced and all(outcome.reply is None for outcome in result.outcomes):
            return deliveries
        # In the same place: what a crash can repeat is never more than the places there are, and a spool that cannot
        # be written stops deliveries, not only their record.
        await self._outcomes.settle(message, deliveries, result, time.perf_counter() - began)
        return ()


def _whose(answer: PipelineResult) -> dict[str, object]:
    """Return the pipeline that gave no verdict, and the worker that ran it where it was one of the user's own."""
    by = {"worker": answer.worker, "file": answer.file} if answer.worker else {}
    return {"pipeline": answer.pipeline, "version": answer.version, **by}


async def compose(composer: Composer, message: Message, content: Content, verdict: Verdict | None) -> Content:
    """Return the content that leaves. A large header, and the head of a file, are read in a thread."""

    def made() -> Content:
        return composer.compose(
            content,
            message=message.text_id,
            client=message.envelope.client,
            received=message.received,
            verdict=verdict,
            utf8=message.envelope.smtputf8,
        )

    written = verdict.written if verdict is not None else 0
    in_thread = isinstance(content, InFile) or len(content.head()) + written > LARGE_HEADER
    return await asyncio.to_thread(made) if in_thread else made()
