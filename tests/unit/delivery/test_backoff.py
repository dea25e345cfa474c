"""The times of attempts."""

from __future__ import annotations

import pytest

from sendswitch.delivery.backoff import Backoff

# backoff


def test_backoff_doubles_to_a_limit_and_is_spread() -> None:
    backoff = Backoff(10, 100, 0.2)
    assert [backoff.next(n, 0, 0.5) for n in (1, 2, 3, 4, 5, 6, 1000)] == [10, 20, 40, 80, 100, 100, 100]
    assert backoff.next(1, 1000, 0.0) == 1008
    assert backoff.next(1, 1000, 0.999999) == pytest.approx(1012)
