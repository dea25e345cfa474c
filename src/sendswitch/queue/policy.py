"""The meaning of a verdict for one delivery. Pure: takes values, returns an effect; the caller does the I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sendswitch.mail.dsn import Kind, wanted
from sendswitch.mail.envelope import Client, Recipient
from sendswitch.mail.verdict import LATE, OFFLINE, Action, AfterHold, Deferral, Denial, PipelineResult, Verdict
from sendswitch.reply import Reply
from sendswitch.routing import Route

REFUSED = Reply(550, "5.7.1", "Message refused by the recipient's filter")


@dataclass(frozen=True, slots=True)
class DeliverEffect:
    """Hand it to the next hop."""


@dataclass(frozen=True, slots=True)
class ForwardEffect:
    """Deliver to these instead, and to the recipient with `keep_copy`."""

    targets: tuple[str, ...]
    keep_copy: bool


@dataclass(frozen=True, slots=True)
class BounceEffect:
    """Send a report to the sender."""

    reply: Reply
    explanation: str


@dataclass(frozen=True, slots=True)
class QuarantineEffect:
    """Put it into the quarantine until `until`."""

    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class HoldEffect:
    """Keep it back until `until`."""

    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class DiscardEffect:
    """End the delivery without a report."""

    reason: str


Effect = DeliverEffect | ForwardEffect | BounceEffect | QuarantineEffect | HoldEffect | DiscardEffect


@dataclass(frozen=True, slots=True)
class Policy:
    """The configured answers for verdicts that leave them open. Times in seconds."""

    hold: float
    hold_then: str
    quarantine: float


def on_timeout(route: Route) -> PipelineResult:
    """Return the verdict for a worker that had the task for the whole deadline and gave none."""
    reason = f"no verdict within {route.deadline:g} s, and on_timeout is {route.on_timeout}"
    return _instead(route.on_timeout, reason, LATE)


def when_offline(route: Route, reason: str) -> PipelineResult:
    """Return the verdict for mail that no worker was there for."""
    return _instead(route.when_offline, f"{reason}, and when_offline is {route.when_offline}", OFFLINE)


def _instead(choice: str, reason: str, why: str) -> PipelineResult:
    """Return what a person has configured in place of a verdict."""
    match choice:
        case "deny":
            return Verdict.deny(reason)
        case "hold":
            return Verdict.pending(reason)
        case "quarantine":
            return Verdict.quarantine(reason)
        case "pass":
            return Verdict.passed(reason)
    return Deferral(reason, why=why)


def completed(answer: PipelineResult, route: Route, policy: Policy) -> PipelineResult:
    """Return the answer with whose it is and everything filled in that the configuration adds, so that a restart needs
    only the verdict.
    """
    if isinstance(answer, Deferral):
        return replace(answer, pipeline=route.owner, version=route.version)
    done = replace(answer, pipeline=route.owner, version=route.version)
    if answer.action is Action.DENY and not (answer.denial == Denial.DISCARD and answer.reply is None):
        # A discard without a reply is thrown away in silence, before the queue too.
        return replace(done, reply=answer.reply or REFUSED, denial=Denial(route.deny))
    if answer.action is Action.PENDING:
        hold = policy.hold if answer.hold is None else min(answer.hold, policy.hold)
        return replace(done, hold=hold, then=answer.then or AfterHold(policy.hold_then))
    return done


def undecided(answer: PipelineResult) -> str:
    """Return why the answer decides nothing yet, '' when it does.

    A DENY with a 4xx reply asks the sender to come back; after the queue that is us.
    """
    if isinstance(answer, Deferral):
        return answer.reason
    if answer.action is Action.DENY and answer.reply is not None and answer.reply.temporary:
        return f"denied for now: {answer.reply}"
    return ""


def effect(
    verdict: Verdict, *, sender: str, recipient: Recipient, client: Client, policy: Policy, now: float
) -> Effect:
    """Return the effect of a completed verdict."""
    match verdict.action:
        case Action.PASS | None:
            return DeliverEffect()
        case Action.FORWARD:
            return ForwardEffect(tuple(verdict.forward), bool(verdict.keep_copy))
        case Action.QUARANTINE:
            return QuarantineEffect(now + policy.quarantine, verdict.reason)
        case Action.PENDING:
            return HoldEffect(now + (policy.hold if verdict.hold is None else verdict.hold), verdict.reason)
    return _denied(verdict, sender, recipient, client, policy, now)


def in_words(effect: Effect) -> str:
    """Return an effect as a sentence in the conditional, for a try."""
    match effect:
        case ForwardEffect(targets, keep_copy):
            return f"It would be forwarded to {', '.join(targets)}{', and delivered' if keep_copy else ''}."
        case BounceEffect(reply, _):
            return f"It would not be delivered, and the sender would be sent a report: {reply}."
        case QuarantineEffect(_, reason):
            return f"It would be put into quarantine: {reason}."
        case HoldEffect(_, reason):
            return f"It would be held: {reason}."
        case DiscardEffect(reason):
            return f"It would be thrown away: {reason}."
    return "It would be delivered."


def _denied(verdict: Verdict, sender: str, recipient: Recipient, client: Client, policy: Policy, now: float) -> Effect:
    reply = verdict.reply if verdict.reply is not None and verdict.reply.permanent else REFUSED
    if verdict.denial == Denial.DISCARD:
        return DiscardEffect(verdict.reason)
    if verdict.denial == Denial.QUARANTINE:
        return QuarantineEffect(now + policy.quarantine, verdict.reason)
    if not wanted(Kind.FAILED, sender, recipient):
        return QuarantineEffect(now + policy.quarantine, f"{verdict.reason}; denied, and the sender takes no reports")
    if not is_local(client):
        return QuarantineEffect(
            now + policy.quarantine, f"{verdict.reason}; denied, and a bounce could go to a forged sender"
        )
    # The sender reads the reply only: the reason is the recipient's, and may quote their lists.
    return BounceEffect(reply, "refused by the recipient's filter")


def is_local(client: Client) -> bool:
    """Return whether the mail was submitted here, so that its sender is real and a bounce reaches its author.

    XFORWARD SOURCE decides; without it, a client on the loopback interface or a unix socket is local.
    """
    if client.source:
        return client.source == "LOCAL"
    if not client.address:
        return True
    try:
        return ipaddress.ip_address(client.address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def asked_again(verdict: Verdict) -> bool:
    """Return whether the pipeline is asked anew after the hold: nothing but the delay was decided."""
    return verdict.action is Action.PENDING and verdict.then == AfterHold.ASK


def after_hold(verdict: Verdict) -> Verdict:
    """Return the verdict for an expired hold."""
    reason = f"{verdict.reason}; held until it expired, then {verdict.then or 'quarantine'}"
    base = replace(verdict, reason=reason, hold=None, then=AfterHold.UNSET, trace=())
    match verdict.then:
        case AfterHold.DENY:
            return replace(base, action=Action.DENY, denial=Denial.BOUNCE, reply=verdict.reply or REFUSED)
        case AfterHold.PASS:  # a person has configured it
            return replace(base, action=Action.PASS)
    return replace(base, action=Action.QUARANTINE)


def refused_by_all(answers: Sequence[PipelineResult | None]) -> Reply | None:
    """Return the reply for a sender who waits when every answer is a DENY, else None.

    A temporary refusal counts for all, because the sender comes back. A DENY without a reply discards the mail, which
    its sender must not learn. The answer of a recipient without a pipeline is None.
    """
    known = [a.reply for a in answers if isinstance(a, Verdict) and a.action is Action.DENY and a.reply is not None]
    if len(known) < len(answers):
        return None
    return next((reply for reply in known if reply.temporary), known[0])


def passes(answer: PipelineResult | None) -> bool:
    """Return whether the mail may go to the next hop as the answer has it."""
    return answer is None or (isinstance(answer, Verdict) and answer.action in (Action.PASS, None))


def pass_alike(answers: Sequence[PipelineResult | None]) -> bool:
    """Return whether all answers let the same message pass, so that one transaction can carry it."""
    return all(map(passes, answers)) and len({_put_on(answer) for answer in answers}) == 1


def _put_on(answer: PipelineResult | None) -> tuple[object, ...]:
    return (answer.tags, answer.edits) if isinstance(answer, Verdict) else ((), ())
