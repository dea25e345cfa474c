"""The processors that always answer the same: pass, deny, tag, forward, hold, quarantine."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sendswitch.config.units import Duration
from sendswitch.mail.address import valid
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.mail.verdict_checks import checked_tags
from sendswitch.processors import base


class _Fixed:
    """A step that returns the same verdict each time."""

    Options: ClassVar[type[base.Options]] = base.Options
    version = "1"
    waits = False
    _verdict: Verdict

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the verdict of the options."""
        return self._verdict


class Pass(_Fixed):
    """Deliver; later steps are not asked."""

    def __init__(self, options: base.Options) -> None:
        self._verdict = Verdict.passed("the step says pass")


class DenyOptions(base.Options):
    """Options of `deny`."""

    reply: base.Refusal = Field(
        "550 5.7.1 Message refused by the recipient's filter", description="What the sender is told."
    )
    reason: str = Field("the step says deny", description="What the recipient reads.")


class Deny(_Fixed):
    """Refuse."""

    Options = DenyOptions

    def __init__(self, options: DenyOptions) -> None:
        self._verdict = Verdict.deny(options.reason, reply=options.reply)


class TagOptions(base.Options):
    """Options of `tag`."""

    tags: tuple[str, ...] = Field(min_length=1, description="Tags to add.")

    @field_validator("tags")
    @classmethod
    def _words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_tags(value)


class Tag(_Fixed):
    """Add tags and go on."""

    Options = TagOptions

    def __init__(self, options: TagOptions) -> None:
        self._verdict = Verdict.tagged(*options.tags)


class ForwardOptions(base.Options):
    """Options of `forward`."""

    to: tuple[str, ...] = Field(min_length=1, max_length=50, description="Addresses to deliver to.")
    keep_copy: bool = Field(False, description="Deliver to the recipient, too.")

    @field_validator("to")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if not valid(address) or "@" not in address:
                raise ValueError(f"{address!r} is no mail address")
        return value


class Forward(_Fixed):
    """Deliver to other addresses."""

    Options = ForwardOptions

    def __init__(self, options: ForwardOptions) -> None:
        self._verdict = Verdict.forwarded(*options.to, keep_copy=options.keep_copy, reason="the step says forward")


class HoldOptions(base.Options):
    """Options of `hold`."""

    time: Duration | None = Field(None, gt=0, description="How long; default hold.expires.")
    then: Literal["", "pass", "deny", "quarantine"] = Field("", description="What then; default hold.then.")
    reason: str = Field("the step says hold", description="What who decides about it reads.")


class Hold(_Fixed):
    """Keep it back for a time."""

    Options = HoldOptions

    def __init__(self, options: HoldOptions) -> None:
        self._verdict = Verdict.pending(options.reason, hold=options.time, then=options.then)


class QuarantineOptions(base.Options):
    """Options of `quarantine`."""

    reason: str = Field("the step says quarantine", description="What the recipient reads.")


class Quarantine(_Fixed):
    """Put it aside."""

    Options = QuarantineOptions

    def __init__(self, options: QuarantineOptions) -> None:
        self._verdict = Verdict(Action.QUARANTINE, reason=options.reason)
