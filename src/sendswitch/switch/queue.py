"""The active queue: takes deliveries whose time has come, has them decided, carries the decisions out.

Theory of operation. Every delivery that is not final has a `due` in the spool. The queue holds a window of them in
memory (`active`), one task a message; what does not fit stays on disk and is loaded when there is room. A message
that was just accepted enters the window directly, so that light load never reads the disk.

Rules:
1. A delivery is in the window at most once: its key enters `active` before it can be seen on disk, and leaves
   after its new state is durable. What ends while a load reads the disk is remembered until that load is done.
2. A decision is durable before it is carried out: a second run of a pipeline can never undo a first one's effect.
3. What the next hop took is recorded before anything else happens to it; if the spool cannot be written then, the
   record is tried until it can, and the delivery is not repeated meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sendswitch import logs, metrics
from sendswitch.clock import Clock
from sendswitch.delivery.backoff import Backoff
from sendswitch.delivery.base import Courier
from sendswitch.delivery.compose import Composer
from sendswitch.errors import SpoolUnavailable, classify
from sendswitch.mail import dsn
from sendswitch.mail.content import Content, InFile
from sendswitch.mail.verdict import Answer, Deferral, Verdict
from sendswitch.reply import Reply, printable
from sendswitch.routing import Route, Routes
from sendswitch.smtp.client import Delivered
from sendswitch.smtp.protocol.client import Outcome
from sendswitch.spool.records import Change, Delivery, Message
from sendswitch.spool.spool import Spool
from sendswitch.spool.states import TERMINAL, State
from sendswitch.switch import decide
from sendswitch.switch.dispatcher import Dispatcher
from sendswitch.switch.forward import forward
from sendswitch.switch.reports import Reporter

# Deliveries in memory. With a worker that hangs for its deadline of 60 s this is what may wait for it before
# other mail must wait for a place: 166 a second.
WINDOW = 10_000
# Bytes of small messages kept in memory while they wait; beyond it they are read again from the spool.
CONTENT = 64 * 1024 * 1024
# Seconds in which recipients of one message that are decided one after the other may still share a transaction.
GATHER = 0.05
# Longest sleep of the feeder; a clock that jumps is noticed after this.
NAP = 60.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the queue works with."""

    spool: Spool
    dispatcher: Dispatcher
    courier: Courier
    composer: Composer
    reporter: Reporter
    backoff: Backoff
    recipients: int


class Queue:
    """The active queue of one node."""

    def __init__(self, parts: Parts, *, policy: decide.Policy, clock: Clock) -> None:
        self._parts, self._clock = parts, clock
        self._policy = policy
        self.routes = Routes()
        self._active: set[tuple[int, int]] = set()
        self._ended: set[tuple[int, int]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._more = True
        self._held = 0
        self._stopping = False

    @property
    def dispatcher(self) -> Dispatcher:
        """Whoever asks pipelines; the proxy asks the same one."""
        return self._parts.dispatcher

    @property
    def composer(self) -> Composer:
        """How messages look when they leave."""
        return self._parts.composer

    @property
    def active(self) -> int:
        """Deliveries in the window."""
        return len(self._active)

    # Entering and leaving the window

    def expect(self, deliveries: Sequence[Delivery]) -> bool:
        """Reserve places for deliveries that are about to be written; False when there is no room."""
        if self._stopping or len(self._active) + len(deliveries) > WINDOW:
            self._more = True
            return False
        self._active.update(delivery.key for delivery in deliveries)
        return True

    def forget(self, deliveries: Sequence[Delivery]) -> None:
        """Give reserved places back: they were not written."""
        self._leave(deliveries)

    def start(self, deliveries: Sequence[Delivery], asked: Mapping[int, asyncio.Task[Answer]] | None = None) -> None:
        """Begin with deliveries of one message whose places were reserved. `asked` are answers already on order."""
        message = deliveries[0].message
        if message.content is not None and not isinstance(message.content, InFile):
            if self._held + message.size > CONTENT:
                message.content = None
            else:
                self._held += message.size
        task = asyncio.get_running_loop().create_task(self._guard(message, deliveries, asked or {}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _leave(self, deliveries: Sequence[Delivery]) -> None:
        keys = [delivery.key for delivery in deliveries]
        self._active.difference_update(keys)
        if self._ended is not None:
            self._ended.update(keys)
        if (self._more and len(self._active) < WINDOW // 2) or any(d.due is not None for d in deliveries):
            self._wake.set()  # there is room, or a new time to wait for

    async def run(self) -> None:
        """Load what is due, until `stop`."""
        while not self._stopping:
            self._wake.clear()
            wait = NAP
            try:
                # One moment for both questions: what falls due between them would be in neither answer.
                now = self._clock()
                await self._load(now)
                if not self._more:
                    due = await self._parts.spool.next_due(now)
                    wait = NAP if due is None else max(0.001, min(NAP, due - self._clock()))
            except Exception as error:
                logs.failed("loading the queue", error=error)
                wait = 1.0
            if self._more and len(self._active) < WINDOW // 2:
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def look(self) -> None:
        """Look at the spool now: something may be due."""
        self._wake.set()

    async def stop(self, grace: float) -> None:
        """Take nothing new, let what is under way end for at most `grace` seconds; the rest stays in the spool."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _load(self, now: float) -> None:
        room = WINDOW - len(self._active)
        self._ended = set()
        try:
            limit = room + len(self._active)
            found = await self._parts.spool.due(now, limit)
            new = [d for d in found if d.key not in self._active and d.key not in self._ended]
        finally:
            self._ended = None
        self._more = len(found) == limit
        by_message: dict[int, list[Delivery]] = {}
        for delivery in new[:room]:
            self._active.add(delivery.key)
            by_message.setdefault(delivery.message.id, []).append(delivery)
        for deliveries in by_message.values():
            self.start(deliveries)

    # One message

    async def _guard(
        self, message: Message, deliveries: Sequence[Delivery], asked: Mapping[int, asyncio.Task[Answer]]
    ) -> None:
        held = message.size if message.content is not None and not isinstance(message.content, InFile) else 0
        try:
            first = deliveries[0]
            if len(deliveries) == 1 and first.state is State.ACCEPTED and self._route(first) is None:
                await self._deliver(message, deliveries)  # most mail: one recipient, no pipeline
            else:
                await self._journey(message, deliveries, asked)
        except Exception as error:
            await self._retry_all(message, deliveries, error)
        finally:
            for task in asked.values():
                task.cancel()
            self._held -= held
            self._leave(deliveries)

    def _route(self, delivery: Delivery) -> Route | None:
        """The recipient's route; a report of ours has none, or two pipelines could report to each other for ever."""
        return None if delivery.message.via == "report" else self.routes.find(delivery.recipient.address)

    async def _retry_all(self, message: Message, deliveries: Sequence[Delivery], error: Exception) -> None:
        """A program error must not become a busy loop: what is not final waits its turn like any failure."""
        logs.failed("a message's journey", error=error, msg_id=message.text_id)
        undone = [d for d in deliveries if d.state not in TERMINAL and d.due is not None and d.due <= self._clock()]
        if undone:
            await self._record([self._again(d, f"error: {classify(error)}") for d in undone])

    async def _journey(
        self, message: Message, deliveries: Sequence[Delivery], asked: Mapping[int, asyncio.Task[Answer]]
    ) -> None:
        ready: list[Delivery] = []
        asking: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        for delivery in deliveries:
            if delivery.state is State.ACCEPTED:
                route = self._route(delivery)
                answer = asked.get(delivery.n)
                if answer is None and route is not None:
                    if len(deliveries) == 1:
                        await self._decide(delivery, await self._parts.dispatcher.ask(delivery, route))
                        ready.append(delivery)
                        continue
                    answer = loop.create_task(self._parts.dispatcher.ask(delivery, route))
                if answer is not None:
                    asking.append(loop.create_task(self._decide_later(delivery, answer)))
                    continue
            elif delivery.state is State.HELD:
                await self._hold_expired(delivery)
            ready.append(delivery)
        if not asking:
            await self._carry_out(message, ready)
            return
        async with asyncio.TaskGroup() as group:
            if ready:
                group.create_task(self._carry_out(message, ready))
            await self._gather(message, [d for d in deliveries if d not in ready], asking, group)

    async def _gather(
        self,
        message: Message,
        deliveries: Sequence[Delivery],
        asking: Sequence[asyncio.Task[None]],
        group: asyncio.TaskGroup,
    ) -> None:
        """Carry decisions out as they come, those that come close together in one go."""
        owner = dict(zip(asking, deliveries, strict=True))
        waiting = set(asking)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                more, waiting = await asyncio.wait(waiting, timeout=GATHER)
                done |= more
            for task in done:
                task.result()
            group.create_task(self._carry_out(message, [owner[task] for task in done]))

    async def _decide_later(self, delivery: Delivery, answer: asyncio.Task[Answer]) -> None:
        await self._decide(delivery, await answer)

    async def _decide(self, delivery: Delivery, answer: Answer) -> None:
        if isinstance(answer, Deferral):
            trace = [step.to_json() for step in answer.trace]
            await self._put_off(delivery, answer.reason, trace=trace)
            return
        before = delivery.verdict
        verdict = answer
        if before is not None:  # what an earlier forward put on the message
            verdict = replace(answer, tags=before.tags + answer.tags, edits=before.edits + answer.edits)
        await self._record(
            [Change(delivery, State.DECIDED, "verdict", verdict.to_json(), delivery.due, verdict, delivery.attempts)]
        )

    async def _put_off(self, delivery: Delivery, why: str, *, state: State | None = None, **extra: object) -> None:
        """Undecided for now: ask again later, or give up when the message's time is over."""
        if self._clock() >= delivery.message.expires:
            outcome = _expired(delivery, Reply(451, "4.7.0", printable(why)))
            await self._fail(delivery.message, [(delivery, outcome)])
        else:
            await self._record([self._again(delivery, why, state=state, **extra)])

    async def _hold_expired(self, delivery: Delivery) -> None:
        verdict = decide.after_hold(delivery.verdict or Verdict.pending())
        data = {"then": verdict.to_json()}
        await self._record([Change(delivery, State.DECIDED, "hold expired", data, self._clock(), verdict)])

    async def _carry_out(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        """The effect of each delivery that is decided or needs no decision; equal ones share a transaction."""
        groups: dict[object, list[Delivery]] = {}
        for delivery in deliveries:
            if delivery.due is None or delivery.due > self._clock():
                continue  # deferred meanwhile
            if delivery.state is State.QUARANTINED:
                await self._end(delivery, State.DISCARDED, "expired in quarantine", Reply(250, "2.0.0", "expired"))
                continue
            effect = self._effect(message, delivery)
            if isinstance(effect, decide.Deliver):
                verdict = delivery.verdict
                groups.setdefault((verdict.tags, verdict.edits) if verdict else None, []).append(delivery)
            else:
                await self._other(message, delivery, effect)
        batches = [
            group[n : n + self._parts.recipients]
            for group in groups.values()
            for n in range(0, len(group), self._parts.recipients)
        ]
        if len(batches) == 1:
            await self._deliver(message, batches[0])
        elif batches:
            async with asyncio.TaskGroup() as tasks:
                for batch in batches:
                    tasks.create_task(self._deliver(message, batch))

    def _effect(self, message: Message, delivery: Delivery) -> decide.Effect:
        if delivery.state is State.ACCEPTED or delivery.verdict is None:
            return decide.Deliver()
        return decide.effect(
            delivery.verdict,
            sender=message.envelope.sender,
            recipient=delivery.recipient,
            client=message.envelope.client,
            policy=self._policy,
            now=self._clock(),
        )

    async def _other(self, message: Message, delivery: Delivery, effect: decide.Effect) -> None:
        match effect:
            case decide.Keep(until, reason):
                await self._keep(delivery, State.QUARANTINED, until, reason)
            case decide.Hold(until, reason):
                await self._keep(delivery, State.HELD, until, reason)
            case decide.Discard(reason):
                await self._end(delivery, State.DISCARDED, reason, Reply(250, "2.0.0", "discarded"))
            case decide.Retry(reason):
                # The verdict was "not now": it must be asked for again, so the delivery is undecided again.
                await self._put_off(delivery, reason, state=State.ACCEPTED)
            case decide.Bounce(reply, explanation):
                outcome = dsn.Outcome(delivery.recipient, reply, explanation)
                await self._fail(message, [(delivery, outcome)])
            case decide.Forward(targets, keep_copy):
                new = await forward(self._parts.spool, delivery, targets, keep_copy, now=self._clock())
                self._tell_end(delivery, State.FORWARDED, f"to {', '.join(targets)}")
                if new and self.expect(new):
                    self.start(new)

    async def _keep(self, delivery: Delivery, state: State, until: float, reason: str) -> None:
        await self._record(
            [Change(delivery, state, state.value, {"reason": reason, "until": until}, until, reply=reason)]
        )
        logs.kept(delivery.message.text_id, rcpt=delivery.recipient.address, state=state, reason=reason, until=until)

    async def _end(self, delivery: Delivery, state: State, reason: str, reply: Reply) -> None:
        await self._record([Change(delivery, state, state.value, {"reason": reason}, reply=str(reply))])
        self._tell_end(delivery, state, reason)

    # Delivering

    async def _deliver(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        began = time.perf_counter()
        content = await message.load()
        verdict = deliveries[0].verdict
        envelope = message.envelope_for(deliveries)

        def compose() -> Content:
            return self._parts.composer.compose(
                content,
                message=message.text_id,
                client=envelope.client,
                received=message.received,
                verdict=verdict,
            )

        # A file's head is read from disk, so not here.
        composed = await asyncio.to_thread(compose) if isinstance(content, InFile) else compose()
        result = await self._parts.courier.deliver(envelope, composed)
        await self._settle(message, deliveries, result, time.perf_counter() - began)

    async def _settle(
        self, message: Message, deliveries: Sequence[Delivery], result: Delivered, seconds: float
    ) -> None:
        """Record what the next hop said: delivered, tried again, or bounced."""
        changes: list[Change] = []
        failed: list[tuple[Delivery, dsn.Outcome]] = []
        relayed: list[dsn.Outcome] = []
        for delivery, outcome in zip(deliveries, result.outcomes, strict=True):
            reply = outcome.reply or Reply(451, "4.3.0", "not sent")
            if reply.positive:
                data = {"reply": str(reply), "seconds": round(seconds, 6)}
                changes.append(Change(delivery, State.DELIVERED, "delivered", data, reply=str(reply)))
                if not result.dsn and dsn.wanted(dsn.Kind.RELAYED, message.envelope.sender, delivery.recipient):
                    relayed.append(dsn.Outcome(delivery.recipient, reply, "handed on; no further reports"))
            elif reply.permanent:
                failed.append((delivery, dsn.Outcome(delivery.recipient, reply, "the next hop refused it")))
            elif self._clock() >= message.expires:
                failed.append((delivery, _expired(delivery, reply)))
            else:
                changes.append(self._undelivered(delivery, outcome, reply))
        if changes:
            await self._record(changes)
            for change in changes:
                if change.state is State.DELIVERED:
                    self._tell_end(change.delivery, change.state, change.reply, seconds)
        if relayed:
            await self._report(dsn.Kind.RELAYED, message, relayed, [])
        if failed:
            await self._fail(message, failed)

    def _undelivered(self, delivery: Delivery, outcome: Outcome, reply: Reply) -> Change:
        if outcome.uncertain:
            return self._again(delivery, str(reply), may_have_been_delivered=True)
        return self._again(delivery, str(reply))

    def _again(self, delivery: Delivery, why: str, *, state: State | None = None, **extra: object) -> Change:
        attempt, now = delivery.attempts + 1, self._clock()
        due = self._parts.backoff.next(attempt, now, random.random())  # noqa: S311 - jitter, not a secret
        due = max(now, min(due, delivery.message.expires)) if delivery.message.expires > now else due
        metrics.DEFERRALS.labels("pipeline" if "trace" in extra else "delivery").inc()
        logs.deferred(
            delivery.message.text_id, rcpt=delivery.recipient.address, why=why, attempt=attempt, retry_in=due - now
        )
        data = {"why": why, "attempt": attempt, "due": due, **extra}
        return Change(delivery, state or delivery.state, "deferred", data, due, attempts=attempt, reply=printable(why))

    async def _fail(self, message: Message, failed: Sequence[tuple[Delivery, dsn.Outcome]]) -> None:
        """End deliveries for good: with a report where one is wanted, else as failed."""
        told: list[dsn.Outcome] = []
        changes: list[Change] = []
        for delivery, outcome in failed:
            state = State.FAILED
            if dsn.wanted(dsn.Kind.FAILED, message.envelope.sender, delivery.recipient):
                state = State.BOUNCED
                told.append(outcome)
            data = {"reply": str(outcome.reply), "reason": outcome.explanation}
            changes.append(Change(delivery, state, state.value, data, reply=str(outcome.reply)))
        if told:
            await self._report(dsn.Kind.FAILED, message, told, changes)
        else:
            await self._record(changes)
        for change in changes:
            self._tell_end(change.delivery, change.state, change.reply)

    async def _report(
        self, kind: dsn.Kind, message: Message, outcomes: Sequence[dsn.Outcome], changes: Sequence[Change]
    ) -> None:
        """Write a report and the changes it tells of in one transaction, then send it like any mail."""
        report, delivery = await self._parts.reporter.make(kind, message, outcomes)
        reserved = self.expect([delivery])
        rows = self._parts.spool.rows(report, [delivery], {"about": message.text_id})
        await self._record(changes, rows)
        if reserved:
            self.start([delivery])

    async def _record(self, changes: Sequence[Change], more: Sequence[tuple[int, tuple[object, ...]]] = ()) -> None:
        """Make changes durable, however long it takes (rule 3)."""
        while True:
            try:
                await self._parts.spool.change(changes, more=more)
                return
            except SpoolUnavailable:
                await asyncio.sleep(1.0)  # the disk is full or gone: it is for a person to mend

    def _tell_end(self, delivery: Delivery, state: State, reply: str, seconds: float = 0.0) -> None:
        metrics.ended(state.value)
        message = delivery.message
        logs.ended(message.text_id, rcpt=delivery.recipient.address, state=state, reply=reply, dur_ms=seconds * 1000)


def _expired(delivery: Delivery, reply: Reply) -> dsn.Outcome:
    gone = Reply(554, "5.4.7", printable(f"Delivery time expired; last answer: {reply}"))
    return dsn.Outcome(delivery.recipient, gone, "it could not be delivered in time")
