"""Durations and sizes, as people write them."""

from __future__ import annotations

import pytest

from sendswitch.config.units import duration, size

# units


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1.5h", 5400), ("7d", 604800), ("250ms", 0.25), (5, 5)])
def test_durations(text: object, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(("text", "count"), [("25MB", 25_000_000), ("256KiB", 262_144), ("1", 1), (7, 7)])
def test_sizes(text: object, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "soon", "5x", "-5s", True, None, "1e9d", float("inf"), 10**400, "9" * 310])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="a duration like"):
        duration(text)
    with pytest.raises(ValueError, match="a size like"):
        size(text)
