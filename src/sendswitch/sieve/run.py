"""The facts about a message that a script can use, and the actions it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sendswitch.mail.message import Mail
from sendswitch.sieve.grammar import Spent
from sendswitch.sieve.match import Match
from sendswitch.sieve.strings import Variables

# Nanoseconds of an action, and actions that are told.
ACTION, MOST_TOLD = 20_000, 100


@dataclass(frozen=True, slots=True)
class Vacation:
    """An automatic answer (RFC 5230); `days` before the same sender is answered again."""

    reason: str
    days: int = 7
    subject: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(slots=True)
class ScriptOutcome:
    """The actions of a script. `implicit` is True while no action has replaced the implicit keep, `kept` after a keep;
    `did` has a sentence for each action.
    """

    implicit: bool = True
    kept: bool = False
    folders: list[str] = field(default_factory=list)
    redirects: list[str] = field(default_factory=list)
    rejected: str | None = None
    vacation: Vacation | None = None
    did: list[str] = field(default_factory=list)

    @property
    def delivered(self) -> bool:
        """Return whether the mail reaches the mailbox, folders or not."""
        return self.implicit or self.kept or bool(self.folders)


@dataclass(slots=True)
class Run:
    """One run of a script over a message. `sender` and `recipient` are the envelope's; `left` is the budget for
    comparisons, about in nanoseconds.
    """

    mail: Mail
    sender: str
    recipient: str
    left: int
    variables: Variables = field(default_factory=Variables)
    out: ScriptOutcome = field(default_factory=ScriptOutcome)
    _read: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _ready: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    _fields: dict[str, list[str]] = field(default_factory=dict)

    def once(self, kind: str, name: str, make: Callable[[str], list[str]]) -> list[str]:
        """Return the result of `make` for a name. It is made once and kept."""
        if (known := self._read.get((kind, name))) is None:
            known = self._read[kind, name] = make(name)
        return known

    def raw(self, name: str) -> list[str]:
        """Return the values of the header fields of that name, in lower case, as they are written."""
        if not self._fields:
            for one in self.mail.fields:
                self._fields.setdefault(one.name.lower(), []).append(one.value)
        return self._fields.get(name, [])

    def __post_init__(self) -> None:
        self.variables.spend = self.spend

    def ready(self, match: Match, text: str) -> Any:
        """Return a text made ready to be compared, once for all that it is compared with. Raises Spent."""
        place = ("patterned" if match.patterned else "plain", match.comparator, text)
        if (known := self._ready.get(place)) is None:
            self.spend(len(text) // 4 if text.isascii() else 30 * len(text))
            known = self._ready[place] = match.value(text)
        return known

    def did(self, what: str) -> None:
        """Record a sentence about an action; of very many only the first. Raises Spent."""
        self.spend(ACTION)
        if len(self.out.did) < MOST_TOLD:
            self.out.did.append(what)

    def spend(self, cost: int) -> None:
        """Take from the budget. Raises Spent when it is too small."""
        self.left -= cost
        if self.left < 0:
            raise Spent


class Stop(Exception):
    """The script is over."""


Do = Callable[[Run], None]
Ask = Callable[[Run], bool]
