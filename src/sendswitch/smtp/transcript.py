"""The dialogs of sessions, recorded on request and for a time, never with content.

With a sender to look for, a session is chosen at MAIL: until then its lines are kept, and recorded or dropped there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Lines kept for who asks; of one session until its sender is known.
MOST, BEFORE_MAIL = 5000, 40


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a dialog: its time, its session, the side (`C` or `S`), and its text. Numbers rise."""

    number: int
    at: float
    session: str
    who: str
    text: str


def number_at(seconds: float) -> int:
    """Return the number of a line that is heard then, in seconds since the epoch: numbers of all nodes rise with it."""
    return int(seconds * 1e6)


class Transcript:
    """One request: the sessions whose sender has `sender` in it, '' for all."""

    def __init__(self, sender: str, clock: Callable[[], float]) -> None:
        self.sender, self._clock = sender.lower(), clock
        self._lines: deque[Line] = deque(maxlen=MOST)
        self._number = 0

    def after(self, number: int) -> list[Line]:
        """Return the lines behind that number."""
        return [line for line in self._lines if line.number > number]

    def add(self, session: str, who: str, text: str, at: float | None = None) -> None:
        """Add one line that was said."""
        now = self._clock()
        self._number = max(self._number + 1, number_at(now))
        self._lines.append(Line(self._number, now if at is None else at, session, who, text))

    def session(self, name: str) -> Tap:
        """Return the ear for one session."""
        return Tap(self, name, self._clock)


class Tap:
    """Hears one session."""

    def __init__(self, trace: Transcript, name: str, clock: Callable[[], float]) -> None:
        self._trace, self._name, self._clock = trace, name, clock
        self._told = not trace.sender
        self._kept: deque[tuple[str, str, float]] = deque(maxlen=BEFORE_MAIL)

    def heard(self, line: bytes) -> None:
        """Note a command of the client."""
        text = line.decode("utf-8", "backslashreplace")
        if self._trace.sender and text[:10].upper() == "MAIL FROM:":
            self._told = self._trace.sender in text.lower()
        self._add("C", text)

    def said(self, data: bytes) -> None:
        """Note replies of the server."""
        for line in data.decode("utf-8", "backslashreplace").splitlines():
            self._add("S", line)

    def _add(self, who: str, text: str) -> None:
        if not self._told:
            self._kept.append((who, text, self._clock()))
            return
        while self._kept:
            kept_who, kept, at = self._kept.popleft()
            self._trace.add(self._name, kept_who, kept, at)
        self._trace.add(self._name, who, text)
