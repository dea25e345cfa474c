"""A limit on the mail of one sender in a period.

The counts are of this step, in this node's memory and for all its workers: a restart or a new version of the pipeline
begins again. A message that is offered again is counted once.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sendswitch.config.units import Duration
from sendswitch.mail.address import key
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict, parse_refusal
from sendswitch.processors import base
from sendswitch.processors.rate_counters import RateCounters


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


class Rate:
    """Has an opinion on mail that is too much."""

    Options: ClassVar[type[base.Options]] = RateOptions
    version = "1"
    waits = False

    def __init__(self, options: RateOptions) -> None:
        self._options, self._place = options, ""
        self._counters: base.Counters = RateCounters()

    def setup(self, services: base.Services) -> None:
        """Count together with the other workers, if there are any."""
        if services.counters is not None:
            self._counters, self._place = services.counters, services.place
            self.waits = True

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the `action` when there is too much mail."""
        options, who = self._options, self._who(context)
        message = f"{context.message} {context.recipient.address}"
        if await self._counters.within_limit(self._place, who, message, options.most, options.within, context.now):
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
