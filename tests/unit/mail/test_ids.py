"""Ids of messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail import ids
from sendswitch.testing import FakeClock

# ids


@given(st.integers(0, 2**63 - 1))
def test_ids_are_read_as_they_are_written(number: int) -> None:
    assert ids.from_text(ids.to_text(number)) == number
    assert ids.from_text(ids.to_text(number).upper()) == number


@pytest.mark.parametrize("text", ["", "short", "x" * 14, "38fvqqgvckj0u", "38fvqqgvckj0!", "8000000000000"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="no message id"):
        ids.from_text(text)


def test_ids_rise_whatever_the_clock_does(clock: FakeClock) -> None:
    sequence = ids.Sequence(7, clock)
    taken = [sequence() for _ in range(5000)]
    clock.advance(-3600)
    taken += [sequence() for _ in range(10)]
    assert taken == sorted(set(taken))
    assert abs(ids.received(taken[0]) - 1_700_000_000) < 1
    assert {ids.node_of(one) for one in taken} == {7}
    again = ids.Sequence(7, clock, taken[-1])
    assert again() > taken[-1]


def test_the_first_id_of_a_moment() -> None:
    first = ids.first_at(1000.5)
    assert ids.received(first) == 1000.5
    assert ids.received(first - 1) < 1000.5
    assert ids.first_at(-5) == 0
