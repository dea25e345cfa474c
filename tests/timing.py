"""Processor time that a test may take, whatever else the machine does."""

from __future__ import annotations

import sys
import time

# How much longer it takes while coverage is measured.
TRACED = 4


def took(began: float) -> float:
    """Return the seconds of processor time since `began`, as they would be without coverage."""
    return (time.process_time() - began) / (TRACED if sys.gettrace() is not None else 1)
