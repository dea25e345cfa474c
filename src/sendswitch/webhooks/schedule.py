"""When an event is tried again, and when it is given up. Pure."""

from __future__ import annotations

# Seconds between tries, as Standard Webhooks proposes: about three days in all.
PAUSES = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
# The longest that a receiver may ask for with Retry-After.
LONGEST = 86_400.0


def next_try(attempts: int, now: float, chance: float, after: float = 0.0) -> float | None:
    """Return when the next try is due after so many that failed (seconds since the epoch), None when that was the last.

    `chance`, from 0 to 1, spreads tries by up to a tenth, so that what failed together does not come back together.
    `after` is what the receiver asked for, in seconds.
    """
    if attempts > len(PAUSES):
        return None
    pause = PAUSES[attempts - 1] * (1 + chance / 10)
    return now + max(pause, min(after, LONGEST))
