"""The time of the next attempt. Pure: takes the time and a random number, returns a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays grow from `first` to `last` seconds by doubling; each is spread by ±`spread` of itself.

    300 and 4,000 seconds are Postfix's minimal_backoff_time and maximal_backoff_time; `first` is shorter because
    a re-injection service on this machine that is down is usually back at once. The spread keeps mail that
    failed together from coming back together (a thundering herd).
    """

    first: float = 30.0
    last: float = 4000.0
    spread: float = 0.2

    @property
    def longest(self) -> float:
        """Return seconds that no attempt is ever put off for."""
        return self.last * (1 + self.spread)

    def next(self, attempt: int, now: float, random: float) -> float:
        """Return when to make the attempt after number `attempt` (from 1); `random` is in [0, 1)."""
        doubled = min(self.last, self.first * 2.0 ** min(max(attempt, 1) - 1, 30))
        return now + doubled * (1 - self.spread + 2 * self.spread * random)
