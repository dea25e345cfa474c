"""Let mail wait, and only then ask the later steps: blocklists and scanners know more in ten minutes.

The mail is held; when its time is over the whole pipeline is asked again, and this step lets it pass by. Put it before
the steps that shall wait, and before those that cost something.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sendswitch.config.units import Duration
from sendswitch.mail.ids import from_text, received
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base


class DelayOptions(base.Options):
    """Options of `delay`."""

    time: Duration = Field(gt=0, description="How long after it came the mail goes on; at most hold.expires.")


class Delay:
    """Holds mail until it is old enough, then has no opinion."""

    Options: ClassVar[type[base.Options]] = DelayOptions
    version = "1"
    waits = False

    def __init__(self, options: DelayOptions) -> None:
        self._time = options.time

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return PENDING for the rest of the time."""
        message = from_text(context.message)
        left = self._time - (context.now - received(message)) if message else self._time
        # A wait to the exact millisecond may have to be done twice.
        if left < 0.01:
            return None
        return Verdict.pending(f"it waits {self._time:g} s before it goes on", hold=left, then="ask")
