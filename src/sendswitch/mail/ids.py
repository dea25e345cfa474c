"""Message ids: short, sortable by time, unique among nodes without asking anybody.

An id is a 63-bit integer: 42 bits milliseconds since 1970 (until 2109), 10 bits node, 11 bits sequence. It is the
spool's primary key, so new mail is always appended at the end of the B-tree; people see it as 13 characters of
Crockford's base 32 (no I, L, O, U).
"""

from __future__ import annotations

from sendswitch.clock import Clock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {character: n for n, character in enumerate(_ALPHABET)} | {"i": 1, "l": 1, "o": 0}
_LENGTH = 13

NODES = 1 << 10
_SEQUENCE = 1 << 11


_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def to_text(message: int) -> str:
    """Return the id as people and logs see it."""
    pairs = _PAIRS
    return (
        _ALPHABET[message >> 60]
        + pairs[message >> 50 & 1023]
        + pairs[message >> 40 & 1023]
        + pairs[message >> 30 & 1023]
        + pairs[message >> 20 & 1023]
        + pairs[message >> 10 & 1023]
        + pairs[message & 1023]
    )


def from_text(text: str) -> int:
    """Return the number of an id, in any case and with I, L, O for similar digits. Raises ValueError for other text."""
    value = 0
    if len(text) != _LENGTH:
        raise ValueError(f"{text!r} is no message id; one has {_LENGTH} letters and digits")
    for character in text.lower():
        if character not in _VALUES:
            raise ValueError(f"{text!r} is no message id: {character!r} does not occur in one")
        value = value << 5 | _VALUES[character]
    if value >> 63:
        raise ValueError(f"{text!r} is no message id; the first character of one is 0 to 7")
    return value


def received(message: int) -> float:
    """Return when the id was made, in seconds since the epoch."""
    return (message >> 21) / 1000


def node_of(message: int) -> int:
    """Return the number of the node that made the id."""
    return message >> 11 & NODES - 1


def first_at(seconds: float) -> int:
    """Return the least id a message of that moment (seconds since the epoch) can have."""
    return int(max(0.0, seconds) * 1000) << 21


class Sequence:
    """A source of rising ids, even when the clock steps back or more than 2,048 are needed in a millisecond.

    `last` is the highest id in the spool, so that a restart within the same millisecond repeats none.
    """

    def __init__(self, node: int, clock: Clock, last: int = 0) -> None:
        self._node, self._clock, self._last = node % NODES, clock, last

    def __call__(self) -> int:
        now = int(self._clock() * 1000)
        last_time, last_step = self._last >> 21, self._last % _SEQUENCE
        if now > last_time:
            step = 0
        else:
            now, step = last_time, last_step + 1
            if step == _SEQUENCE:
                now, step = now + 1, 0
        self._last = now << 21 | self._node << 11 | step
        return self._last
