"""Our own mark on forwarded mail, which finds loops and which nobody else can make.

A field that anybody can write, such as Delivered-To, must not decide where mail goes: a stranger who writes the
recipient's address there would undo the recipient's forward. So the field has a message authentication code over the
address and over the message's identity.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from sendswitch.mail.address import key
from sendswitch.mail.headers import fields

FIELD = "X-SendSwitch-Forwarded"
# Hexadecimal digits of a mark, four bits each; marks of one message that are looked at.
LENGTH, MOST = 32, 100
# What stays the same on the way of a message (RFC 5322 section 3.6).
_SAME = ("message-id", "date", "from")


@dataclass(frozen=True, slots=True)
class Marks:
    """The maker and checker of marks. All nodes with the same `secret` know each other's."""

    secret: bytes = field(repr=False)

    def make(self, head: bytes, address: str) -> str:
        """Return the mark of a message, given its header, that was forwarded by `address`."""
        block = fields(head)
        same = "\n".join(f"{name}:{one.value}" for name in _SAME for one in block if one.name.lower() == name)
        about = f"{key(address)}\n{same}".encode("utf-8", "replace")
        return hmac.digest(self.secret, about, "sha256").hex()[:LENGTH]

    def forwarded_by(self, head: bytes, address: str) -> bool:
        """Return whether `address` has forwarded this message before."""
        if FIELD.lower().encode() not in head.lower():
            return False
        mark = self.make(head, address)
        found = [one.value.strip() for one in fields(head) if one.name.lower() == FIELD.lower()]
        return any(hmac.compare_digest(one.encode("utf-8", "replace"), mark.encode()) for one in found[:MOST])
