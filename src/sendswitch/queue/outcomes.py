"""The outcomes of deliveries: recorded, deferred, reported.

Rules:
1. A delivery that the next hop took is recorded before anything else happens to it. If the spool cannot be written
   then, the record is tried until it can, and the delivery is not repeated meanwhile.
2. A program error makes neither a busy loop nor an endless one: the delivery waits as after any failure, and ends when
   the message's lifetime is over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

from sendswitch import logs, metrics
from sendswitch.clock import Clock
from sendswitch.errors import ContentDamaged, SpoolUnavailable, classify
from sendswitch.journal.events import EventKind
from sendswitch.mail import dsn
from sendswitch.mail.hops import Marks
from sendswitch.mail.srs import Srs
from sendswitch.mail.verdict import PipelineResult, Verdict
from sendswitch.queue.active import ActiveQueue
from sendswitch.queue.forward import forward
from sendswitch.queue.settings import Current
from sendswitch.reply import Reply, printable
from sendswitch.smtp.client import Delivered
from sendswitch.spool.records import Change, Delivery, Message, Record
from sendswitch.spool.rules import AdminRule, Kind
from sendswitch.spool.spool import Spool
from sendswitch.spool.states import TERMINAL, State

# Seconds between tries to write to a spool that cannot be written; it is for a person to mend.
RETRY_SPOOL = 1.0
# Seconds that mail with damaged content is held before it goes to quarantine.
DAMAGED_FOR = 14 * 86400.0
# Seconds a delivery is held back when not even its failure could be recorded, because of an error of ours.
HOLD_BACK = 60.0


# How a report tells of mail that was handed on, and of mail that was put into a mailbox of ours.
SERVED = {
    False: (dsn.Kind.RELAYED, "handed on; no further reports"),
    True: (dsn.Kind.DELIVERED, "delivered"),
}


class Outcomes:
    """The recorder of outcomes."""

    def __init__(self, spool: Spool, queue: ActiveQueue, current: Current, clock: Clock) -> None:
        self._spool, self._queue, self._current, self._clock = spool, queue, current, clock

    async def record(self, changes: Sequence[Change], more: Sequence[Record] = ()) -> None:
        """Make changes durable, however long it takes (rule 1)."""
        while True:
            with suppress(SpoolUnavailable):
                await self._spool.change(changes, more=more)
                return
            await asyncio.sleep(RETRY_SPOOL)

    async def settle(self, message: Message, deliveries: Sequence[Delivery], result: Delivered, seconds: float) -> None:
        """Record the next hop's reply: delivered, deferred, or failed."""
        changes: list[Change] = []
        failed: list[tuple[Delivery, dsn.RecipientOutcome]] = []
        for delivery, outcome in zip(deliveries, result.outcomes, strict=True):
            reply = outcome.reply or Reply(451, "4.3.0", "not sent")
            if reply.positive:
                text = str(reply)
                data = {"reply": text, "seconds": round(seconds, 6)}
                changes.append(Change(delivery, State.DELIVERED, EventKind.DELIVERED, data, reply=text))
            elif reply.permanent:
                why = "the next hop cannot take it" if outcome.ours else "the next hop refused it"
                failed.append((delivery, dsn.RecipientOutcome(delivery.recipient, reply, why, said=not outcome.ours)))
            elif self._clock() >= message.expires:
                failed.append((delivery, _expired(delivery, str(reply))))
            else:
                told = {"may_have_been_delivered": True} if outcome.uncertain else {}
                changes.append(self._again(delivery, str(reply), **told))
        if served := _confirmations(message, deliveries, result):
            await self._report(SERVED[result.final][0], message, served, changes)
        elif changes:
            await self.record(changes)
        for change in changes:
            if change.state is State.DELIVERED:
                self.tell_end(change.delivery, change.state, change.reply, seconds)
        if failed:
            await self.fail(message, failed)

    async def confirm(self, message: Message, deliveries: Sequence[Delivery], result: Delivered) -> None:
        """Send a report of success to a sender who asked for it (NOTIFY=SUCCESS). Never raises.

        For mail that is not in the spool, and that the sender was or will be told is accepted.
        """
        if not (served := _confirmations(message, deliveries, result)):
            return
        try:
            report, delivery = await self._current.settings.reporter.make(SERVED[result.final][0], message, served)
            about = {"about": message.text_id}
            await self._queue.enqueue([delivery], lambda: self._spool.accept(report, [delivery], data=about))
        except Exception as error:
            logs.failed("a report of success", error=error, msg_id=message.text_id)

    async def record_answered(
        self, message: Message, deliveries: Sequence[Delivery], answers: Sequence[PipelineResult | None], reply: Reply
    ) -> None:
        """Record a message whose sender was answered before the queue, by a pipeline or by the next hop. Never raises.

        The sender was or will be answered; a spool that cannot be written changes nothing. A message that was refused
        for now is not ours and comes again, so that nothing is recorded here. `answers` are the pipelines' answers,
        None where there is none.
        """
        if reply.temporary:
            return
        state = State.DELIVERED if reply.positive else State.REJECTED
        verdicts = {}
        for delivery, answer in zip(deliveries, answers, strict=True):
            delivery.state, delivery.due, delivery.reply = state, None, str(reply)
            delivery.verdict = answer if isinstance(answer, Verdict) else None
            if isinstance(answer, Verdict):
                verdicts[str(delivery.n)] = answer.to_json()
        try:
            await self._spool.accept(message, deliveries, data={state.value: str(reply), "verdicts": verdicts})
            if self._spool.records(deliveries):
                message.content = None  # a file of it is the spool's now
        except SpoolUnavailable as error:
            logs.failed("recording a message before the queue", error=error, msg_id=message.text_id)
        for delivery in deliveries:
            self.tell_end(delivery, state, str(reply))

    async def put_off(self, delivery: Delivery, why: str, **extra: object) -> None:
        """Defer a delivery, or give up when the message's lifetime is over.

        A held or quarantined delivery has a longer lifetime of its own, and its sender gets no report.
        """
        kept = delivery.state in (State.HELD, State.QUARANTINED)
        if not kept and self._clock() >= delivery.message.expires:
            await self.fail(delivery.message, [(delivery, _expired(delivery, why))])
        else:
            await self.record([self._again(delivery, why, **extra)])

    async def after_error(self, deliveries: Sequence[Delivery], error: Exception) -> None:
        """Put deliveries off after an error of ours, or when the spool cannot be read (rule 2). Hold damaged mail."""
        logs.failed("a delivery", error=error, msg_id=deliveries[0].message.text_id)
        for delivery in deliveries:
            if delivery.state in TERMINAL or delivery.due is None or delivery.due > self._clock():
                continue
            done = False
            try:
                if isinstance(error, ContentDamaged):
                    await self.hold_damaged(delivery, str(error))
                else:
                    await self.put_off(delivery, f"error: {classify(error)}")
                done = True
            except Exception as second:
                logs.failed("putting a delivery off", error=second, msg_id=delivery.message.text_id)
            if not done:
                await asyncio.sleep(HOLD_BACK)

    def _again(self, delivery: Delivery, why: str, **extra: object) -> Change:
        attempt, now, message = delivery.attempts + 1, self._clock(), delivery.message
        due = self._current.settings.backoff.next(attempt, now, random.random())  # noqa: S311 - jitter, not a secret
        if message.expires > now:
            due = min(due, message.expires)  # the last attempt is made when the time is over
        metrics.DEFERRALS.labels("pipeline" if "trace" in extra else "delivery").inc()
        logs.deferred(message.text_id, rcpt=delivery.recipient.address, why=why, attempt=attempt, retry_in=due - now)
        data = {"why": why, "attempt": attempt, "due": due, **extra}
        return Change(delivery, delivery.state, EventKind.DEFERRED, data, due, attempts=attempt, reply=printable(why))

    async def keep(self, delivery: Delivery, state: State, until: float, reason: str, **extra: object) -> None:
        """Hold or quarantine."""
        data = {"reason": reason, "until": until, **extra}
        await self.record([Change(delivery, state, EventKind(state.value), data, until, reply=printable(reason))])
        logs.kept(delivery.message.text_id, rcpt=delivery.recipient.address, state=state, reason=reason, until=until)

    async def put_poison_aside(self, delivery: Delivery, keep_for: float) -> None:
        """Put a delivery into quarantine whose pipeline was begun again and again and never ended."""
        metrics.POISON.inc()
        reason = "poison: what ran its pipeline broke three times"
        await self.keep(delivery, State.QUARANTINED, self._clock() + keep_for, reason, **{"class": "poison"})
        logs.poison(delivery.message.text_id, rcpt=delivery.recipient.address)

    async def hold_damaged(self, delivery: Delivery, why: str) -> None:
        """Hold a delivery whose content is damaged, so that a person sees it. It is never sent."""
        metrics.DAMAGED.inc()
        verdict = Verdict.pending(why, hold=DAMAGED_FOR, then="quarantine")
        until = self._clock() + DAMAGED_FOR
        data = {"reason": why, "until": until, "class": "damaged"}
        await self.record([Change(delivery, State.HELD, EventKind.HELD, data, until, verdict, reply=printable(why))])
        logs.kept(delivery.message.text_id, rcpt=delivery.recipient.address, state=State.HELD, reason=why, until=until)

    async def forward(
        self, delivery: Delivery, targets: Sequence[str], keep_copy: bool, *, marks: Marks, srs: Srs | None
    ) -> list[Delivery]:
        """End a delivery as forwarded. Return the deliveries that take its place, which are in the spool then."""
        new = await forward(self._spool, delivery, targets, keep_copy, now=self._clock(), marks=marks, srs=srs)
        self.tell_end(delivery, State.FORWARDED, f"to {', '.join(targets)}")
        return new

    async def end(self, delivery: Delivery, state: State, reason: str) -> None:
        """End without the next hop and without a report."""
        data = {"reason": reason}
        await self.record([Change(delivery, state, EventKind(state.value), data, reply=f"250 2.0.0 {reason}")])
        self.tell_end(delivery, state, reason)

    async def apply(
        self, message: Message, deliveries: Sequence[Delivery], rule: AdminRule, *, quarantine: float
    ) -> Sequence[Delivery]:
        """Apply an administrator's rule. Return the deliveries that it does not affect.

        They are all when it was cancelled meanwhile. `quarantine` is for how many seconds it keeps mail.
        """
        told = {"rule": rule.id, "by": rule.author, "reason": rule.reason}
        match rule.kind:
            case Kind.SUSPEND:
                data, due = told | {"until": rule.expires}, rule.expires
                reply = printable(f"{rule.mark} {rule.reason}")
                changes = [
                    Change(d, d.state, EventKind.SUSPENDED, data, due, attempts=d.attempts, reply=reply)
                    for d in deliveries
                ]
                return _left(deliveries, await self._spool.change_by_rule(rule.id, changes))
            case Kind.QUARANTINE:
                until = self._clock() + quarantine
                reply = printable(f"quarantined by rule {rule.id}: {rule.reason}")
                data = told | {"until": until}
                changes = [
                    Change(d, State.QUARANTINED, EventKind.QUARANTINED, data, until, reply=reply) for d in deliveries
                ]
                return _left(deliveries, await self._spool.change_by_rule(rule.id, changes, keeps=True))
            case Kind.DROP:
                reply = printable(f"dropped by rule {rule.id}: {rule.reason}")
                changes = [Change(d, State.DISCARDED, EventKind.DROPPED, told, reply=reply) for d in deliveries]
                done = await self._spool.change_by_rule(rule.id, changes)
                for change in done:
                    self.tell_end(change.delivery, State.DISCARDED, reply)
                return _left(deliveries, done)
            case Kind.BOUNCE:
                if not await self._spool.in_force(rule.id):
                    return deliveries
                refusal = Reply(554, "5.7.0", printable(f"Delivery was ended by the administrator: {rule.reason}"))
                why = f"ended by rule {rule.id} of {rule.author}"
                await self.fail(message, [(d, dsn.RecipientOutcome(d.recipient, refusal, why)) for d in deliveries])
                return ()

    async def fail(self, message: Message, failed: Sequence[tuple[Delivery, dsn.RecipientOutcome]]) -> None:
        """End deliveries for good: with a report where one is wanted, else as failed."""
        told: list[dsn.RecipientOutcome] = []
        changes: list[Change] = []
        for delivery, outcome in failed:
            state = State.FAILED
            if dsn.wanted(dsn.Kind.FAILED, message.envelope.sender, delivery.recipient):
                state = State.BOUNCED
                told.append(outcome)
            data = {"reply": str(outcome.reply), "reason": outcome.explanation}
            changes.append(Change(delivery, state, EventKind(state.value), data, reply=str(outcome.reply)))
        if told:
            await self._report(dsn.Kind.FAILED, message, told, changes)
        else:
            await self.record(changes)
        for change in changes:
            self.tell_end(change.delivery, change.state, change.reply)

    async def _report(
        self, kind: dsn.Kind, message: Message, outcomes: Sequence[dsn.RecipientOutcome], changes: Sequence[Change]
    ) -> None:
        """Write a report and the changes it is about in one transaction, then deliver it like any mail."""
        report, delivery = await self._current.settings.reporter.make(kind, message, outcomes)
        row = self._spool.row(report, [delivery], {"about": message.text_id})
        await self._queue.enqueue([delivery], lambda: self.record(changes, [row]))

    def tell_end(self, delivery: Delivery, state: State, reply: str, seconds: float = 0.0) -> None:
        """Count and log an end."""
        metrics.ended(state)
        message = delivery.message
        logs.ended(message.text_id, rcpt=delivery.recipient.address, state=state, reply=reply, dur_ms=seconds * 1000)


def _confirmations(message: Message, deliveries: Sequence[Delivery], result: Delivered) -> list[dsn.RecipientOutcome]:
    """Return the recipients of a report of success, none where the next hop sends one itself or it was not
    asked for.
    """
    if result.dsn:
        return []
    kind, told_as = SERVED[result.final]
    sender = message.envelope.sender
    return [
        dsn.RecipientOutcome(delivery.recipient, outcome.reply, told_as, said=not result.final)
        for delivery, outcome in zip(deliveries, result.outcomes, strict=True)
        if outcome.reply is not None and outcome.reply.positive and dsn.wanted(kind, sender, delivery.recipient)
    ]


def _left(deliveries: Sequence[Delivery], done: Sequence[Change]) -> Sequence[Delivery]:
    changed = {change.delivery.n for change in done}
    return [delivery for delivery in deliveries if delivery.n not in changed]


def _expired(delivery: Delivery, last: str) -> dsn.RecipientOutcome:
    gone = Reply(554, "5.4.7", printable(f"Delivery time expired; last answer: {last}"))
    return dsn.RecipientOutcome(delivery.recipient, gone, "it could not be delivered in time")
