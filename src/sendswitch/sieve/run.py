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
    """One message going through a script. `sender` and `recipient` are the envelope's."""

    mail: Mail
    sender: str
    recipient: str
    variables: Variables = field(default_factory=Variables)
    out: Outcome = field(default_factory=Outcome)


class Stop(Exception):
    """The script is over."""


Do = Callable[[Run], None]
Ask = Callable[[Run], bool]
