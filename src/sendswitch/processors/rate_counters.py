"""The counts of `rate` steps in the memory of one process.

The count of the last period fades while the new one begins, so that about `most` messages pass in any period, exactly
so when they came evenly.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

# Steps that are counted for at once, senders of each, and messages whose counting is remembered, for those that are
# offered again. Of more the least heard of are forgotten.
PLACES, SENDERS, COUNTED = 1_000, 10_000, 10_000


@dataclass(slots=True)
class _Count:
    """The messages of one sender in the period that began at `began`, and in the one before."""

    began: float
    now: int = 0
    before: int = 0


@dataclass(slots=True)
class _Counts:
    """The counts of one step, by sender."""

    senders: OrderedDict[str, _Count] = field(default_factory=OrderedDict)
    counted: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def of(self, who: str, now: float, period: float) -> _Count:
        """Return the count of a sender in the period of `now`."""
        count = self.senders.setdefault(who, _Count(now))
        self.senders.move_to_end(who)
        if len(self.senders) > SENDERS:
            self.senders.popitem(last=False)
        periods = int((now - count.began) / period)
        if periods:
            count.before = count.now if periods == 1 else 0
            count.now = 0
            count.began += periods * period
        return count


class RateCounters:
    """The counts of many steps (`processors.base.Counters`)."""

    def __init__(self) -> None:
        self.places: OrderedDict[str, _Counts] = OrderedDict()

    async def within_limit(self, place: str, who: str, message: str, most: int, period: float, now: float) -> bool:
        """Count a message and return True when `most` in `period` seconds allow it; a message is counted once."""
        counts = self.places.setdefault(place, _Counts())
        self.places.move_to_end(place)
        if len(self.places) > PLACES:
            self.places.popitem(last=False)
        if message in counts.counted:
            return True
        count = counts.of(who, now, period)
        share = 1 - (now - count.began) / period
        allowed = count.now + count.before * min(1.0, max(0.0, share)) < most
        if allowed:
            count.now += 1
            counts.counted[message] = None
            if len(counts.counted) > COUNTED:
                counts.counted.popitem(last=False)
        return allowed
