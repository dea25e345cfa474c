"""What a script knows of a message, and what it wants done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sendswitch.mail.message import Mail
from sendswitch.sieve.values import Variables


@dataclass(frozen=True, slots=True)
class Vacation:
    """An automatic answer (RFC 5230); `days` before the same sender is answered again."""

    reason: str
    days: int = 7
    subject: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What a script wants done. `implicit` is True while nothing took the place of keeping the mail, `kept` when the
    script says so; `did` tells the actions with their lines."""

    implicit: bool = True
    kept: bool = False
    folders: list[str] = field(default_factory=list)
    redirects: list[str] = field(default_factory=list)
    rejected: str | None = None
    vacation: Vacation | None = None
    did: list[str] = field(default_factory=list)

    @property
    def delivered(self) -> bool:
        """True when the mail reaches the mailbox, folders or not."""
        return self.implicit or self.kept or bool(self.folders)


@dataclass(slots=True)
class Run:
    """One message going through a script. `sender` and `recipient` are the envelope's; `left` is what comparisons may
    still cost, about in nanoseconds."""

    mail: Mail
    sender: str
    recipient: str
    left: int
    variables: Variables = field(default_factory=Variables)
    out: Outcome = field(default_factory=Outcome)
    _read: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _fields: dict[str, list[str]] = field(default_factory=dict)

    def once(self, kind: str, name: str, make: Callable[[str], list[str]]) -> list[str]:
        """What `make` reads of the message under that name, read once however often it is asked for."""
        if (known := self._read.get((kind, name))) is None:
            known = self._read[kind, name] = make(name)
        return known

    def raw(self, name: str) -> list[str]:
        """The values of the header fields of that name, in lower case, as they are written."""
        if not self._fields:
            for one in self.mail.fields:
                self._fields.setdefault(one.name.lower(), []).append(one.value)
        return self._fields.get(name, [])

    def afford(self, cost: int) -> bool:
        """Take from what is left; False when that is too little."""
        self.left -= cost
        return self.left >= 0


class Stop(Exception):
    """The script is over."""


Do = Callable[[Run], None]
Ask = Callable[[Run], bool]
