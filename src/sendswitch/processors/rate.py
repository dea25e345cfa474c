"""A limit on the mail of one sender in a period.

The counts are of this pipeline, in this node's memory: a restart or a new version of the pipeline begins again. The
count of the last period fades while the new one begins, so that about `most` messages pass in any period, exactly so
when they came evenly. A message that is offered again is counted once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from sendswitch.config.units import Duration
from sendswitch.mail.address import key
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict, parse_refusal
from sendswitch.processors import base

# Senders that are counted at once; of more the least heard of are forgotten.
SENDERS = 10_000
# Messages whose counting is remembered, for those that are offered again.
COUNTED = 10_000


class RateOptions(base.Options):
    """Options of `rate`."""

    most: int = Field(ge=1, le=1_000_000, description="Messages that are let through in a period.")
    within: Duration = Field(3600.0, gt=0, description="The period.")
    per: Literal["sender", "domain", "client"] = Field(
        "sender", description="What is counted: by the envelope's sender, its domain, or the client's address."
    )
    action: Literal["defer", "deny", "quarantine", "tag"] = Field("defer", description="What is too much means.")
    tag: base.Tag = Field("RATE", description="The tag that is set in any case.")
    reply: base.Refusal = Field("550 5.7.1 Too many messages", description="What a denied sender is told.")


@dataclass(slots=True)
class _Count:
    began: float
    now: int = 0
    before: int = 0


class Rate:
    """Has an opinion on mail that is too much."""

    Options: ClassVar[type[base.Options]] = RateOptions
    version = "1"
    waits = False

    def __init__(self, options: RateOptions) -> None:
        self._options = options
        self.counts: OrderedDict[str, _Count] = OrderedDict()
        self.counted: OrderedDict[str, bool] = OrderedDict()

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the `action` when there is too much mail."""
        options, who = self._options, self._who(context)
        if self._within_limit(who, context):
            return None
        reason = f"{who or 'the null sender'} sent more than {options.most} messages in {options.within:g} s"
        tags = (options.tag,)
        match options.action:
            case "defer":
                reply = parse_refusal("451 4.7.1 Too many messages, try again later")
                return Verdict(Action.DENY, tags=tags, reason=reason, reply=reply)
            case "deny":
                return Verdict(Action.DENY, tags=tags, reason=reason, reply=parse_refusal(options.reply))
            case "quarantine":
                return Verdict(Action.QUARANTINE, tags=tags, reason=reason)
        return Verdict(tags=tags, reason=reason)

    def _who(self, context: base.Context) -> str:
        if self._options.per == "client":
            return context.client.address
        sender = key(context.sender)
        return sender.rpartition("@")[2] if self._options.per == "domain" else sender

    def _within_limit(self, who: str, context: base.Context) -> bool:
        message = f"{context.message} {context.recipient.address}"
        if self.counted.get(message):
            return True
        count = self._count(who, context.now)
        share = 1 - (context.now - count.began) / self._options.within
        allowed = count.now + count.before * min(1.0, max(0.0, share)) < self._options.most
        if allowed:
            count.now += 1
            self.counted[message] = True
            if len(self.counted) > COUNTED:
                self.counted.popitem(last=False)
        return allowed

    def _count(self, who: str, now: float) -> _Count:
        count = self.counts.setdefault(who, _Count(now))
        self.counts.move_to_end(who)
        if len(self.counts) > SENDERS:
            self.counts.popitem(last=False)
        periods = int((now - count.began) / self._options.within)
        if periods:
            count.before = count.now if periods == 1 else 0
            count.now = 0
            count.began += periods * self._options.within
        return count
