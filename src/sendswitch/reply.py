"""SMTP replies: a code (RFC 5321 4.2), an enhanced status (RFC 3463) and text.

A reply is a value: the server half sends it, the client half receives it, a verdict may carry one and a
bounce quotes one. The first digit of the code is all that decisions look at (RFC 5321 4.2.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# RFC 5321 4.5.3.1.5 allows 512 octets for a reply line; what Postfix sends and logs stays well below.
MAX_TEXT = 400

_TEXT = re.compile(r"^(?P<code>[245]\d\d)(?:[ -]+(?P<enhanced>[245]\.\d{1,3}\.\d{1,3}))?(?:[ -]+(?P<text>.*))?$", re.S)
_UNSAFE = re.compile(r"[^\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete reply. `text` is printable ASCII without line breaks; `more` are further lines."""

    code: int
    enhanced: str
    text: str
    more: tuple[str, ...] = ()

    @property
    def positive(self) -> bool:
        """Return whether the command was accepted: 2xx, and 354."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        """Return whether trying again later may succeed: 4xx."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """Return whether the same command will not succeed later: 5xx."""
        return self.code >= 500

    def encode(self) -> bytes:
        """Return the reply as it goes over the wire, CRLF included."""
        status = f"{self.enhanced} " if self.enhanced else ""
        if not self.more:
            return f"{self.code} {status}{self.text}\r\n".encode("ascii", "replace")
        lines = (self.text, *self.more)
        last = len(lines) - 1
        return b"".join(
            f"{self.code}{' ' if n == last else '-'}{status}{line}\r\n".encode("ascii", "replace")
            for n, line in enumerate(lines)
        )

    def __str__(self) -> str:
        status = f"{self.enhanced} " if self.enhanced else ""
        return f"{self.code} {status}{' '.join((self.text, *self.more))}"


def printable(text: str) -> str:
    """Return `text` as it may stand in one reply line: control and non-ASCII characters become '?', 400 at most."""
    return _UNSAFE.sub("?", text)[:MAX_TEXT]


def parse_reply(text: str) -> Reply:
    """Read '550 5.7.1 No thanks' (the enhanced status and the text may be missing).

    Raises ValueError when it does not begin with a reply code of class 2, 4 or 5, or when the classes of
    code and enhanced status differ (RFC 3463 2).
    """
    found = _TEXT.match(text.strip())
    if not found:
        raise ValueError(f"not an SMTP reply: {text!r}; write it like '550 5.7.1 Not wanted here'")
    code = int(found["code"])
    enhanced = found["enhanced"] or ""
    if enhanced and enhanced[0] != found["code"][0]:
        raise ValueError(f"reply {text!r}: code {code} and status {enhanced} are of different classes")
    return Reply(code, enhanced, printable(found["text"] or ""))
