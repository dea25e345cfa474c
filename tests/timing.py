"""Processor time that a test may take, whatever else the machine does."""

from __future__ import annotations

import sys
import time

# How much longer it takes while coverage is measured.
TRACED = 4
# Rounds of a loop, and the seconds they take on the machines for which limits are written.
ROUNDS, USUAL = 300_000, 0.016
# However slow this machine seems, a limit grows no further than so many times.
MOST = 3.0


def took(began: float) -> float:
    """Return the seconds of processor time since `began`, as they would be without coverage on a usual machine."""
    seconds = time.process_time() - began
    return seconds / (TRACED if sys.gettrace() is not None else _slowness())


def _slowness() -> float:
    """Return how many times as long as usual this machine takes now: at least 1, at most MOST."""
    began, total = time.process_time(), 0
    for n in range(ROUNDS):
        total += n
    return min(MOST, max(1.0, (time.process_time() - began) / USUAL))
