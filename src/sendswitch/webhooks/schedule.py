"""The times of retries, and the end of them. Pure."""

from __future__ import annotations

# Seconds between tries, as Standard Webhooks proposes: about three days in all.
PAUSES = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
# The longest that a receiver may ask for with Retry-After.
LONGEST = 86_400.0


def next_try(attempts: int, now: float, chance: float, after: float = 0.0) -> float | None:
    """Return the time of the next attempt after so many failures (seconds since the epoch), None behind the last.

    `chance`, from 0 to 1, spreads attempts by up to a tenth, so that events that failed together do not come back
    together. `after` is the delay that the receiver asked for, in seconds.
    """
    if attempts > len(PAUSES):
        return None
    pause = PAUSES[attempts - 1] * (1 + chance / 10)
    return now + max(pause, min(after, LONGEST))
