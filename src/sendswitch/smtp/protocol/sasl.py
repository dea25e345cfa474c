"""AUTH (RFC 4954) with the mechanisms that carry a password: PLAIN (RFC 4616) and LOGIN (for old clients).

Both show the password to every reader of the connection, so that the server half offers them only where there is none.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from sendswitch.reply import Reply

MECHANISMS = ("PLAIN", "LOGIN")
# "Username:" and "Password:", the words that clients of LOGIN wait for.
_QUESTIONS = ("VXNlcm5hbWU6", "UGFzc3dvcmQ6")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password to check. `repr` hides the password."""

    user: str
    password: str = field(repr=False)


class Exchange:
    """The dialog of one AUTH command. `mechanism` is one of MECHANISMS."""

    def __init__(self, mechanism: str) -> None:
        self._plain = mechanism == "PLAIN"
        self._answers: list[str] = []

    def step(self, answer: str | None) -> Reply | Credentials | None:
        """Take the client's answer, in base64, None where it gave none. Return the next question or the credentials.

        None means that the answer was malformed, and the exchange is over.
        """
        if answer is not None:
            text = _decoded(answer)
            if text is None:
                return None
            self._answers.append(text)
        if self._plain:
            return _plain(self._answers[0]) if self._answers else Reply(334, "", "")
        if len(self._answers) < len(_QUESTIONS):
            return Reply(334, "", _QUESTIONS[len(self._answers)])
        return _credentials(*self._answers)


def _plain(text: str) -> Credentials | None:
    """Read 'authorize-as NUL user NUL password' (RFC 4616 section 2). Acting as another user is not offered."""
    parts = text.split("\0")
    if len(parts) != 3 or parts[0] not in ("", parts[1]):
        return None
    return _credentials(parts[1], parts[2])


def _credentials(user: str, password: str) -> Credentials | None:
    # A NUL in either belongs to another mechanism, and what is empty is nobody's.
    return Credentials(user, password) if user and password and "\0" not in user + password else None


def _decoded(answer: str) -> str | None:
    if answer == "=":  # an initial response that is empty (RFC 4954 4)
        return ""
    try:
        return base64.b64decode(answer, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
