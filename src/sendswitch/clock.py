"""Time as the mail path sees it: seconds since 1970 as float, handed in so that tests own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of wall-clock time. It may jump in either direction; nothing durable depends on order."""

    def __call__(self) -> float:
        """Return seconds since the Unix epoch."""
        ...


system_clock: Clock = time.time
