"""The Sender Rewriting Scheme: forwarded mail gets a sender of our own domain, so that the next host's SPF check
passes, and a bounce to that sender returns to the original sender.

Shevek, "The Sender Rewriting Scheme" (2004): `SRS0=hash=day=domain=local` stands for a sender, and
`SRS1=hash=domain=rest` for one that another forwarder had rewritten, so that addresses do not grow with each forward.
The address holds everything; nothing is stored. Only we make and check the hash, so that we may choose its kind.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from dataclasses import dataclass, field

from sendswitch.mail.address import domain_key, split, valid

# Days in which a bounce finds back; mail systems give up after five.
VALID = 21
# Characters of a hash, five bits each, whatever a sender writes. The paper asks for 20 bits, and each guess costs a
# session, but what can be guessed is mail to anybody.
HASH = 8

_DAY = 86_400
# A day is two characters of five bits, so it comes again after 1,024.
_DAYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_REWRITTEN, _SECOND = re.compile(r"SRS[01][-+=]", re.I), re.compile(r"SRS0([-+=].+)\Z", re.I | re.S)
_SRS0 = re.compile(r"SRS0[-+=]([^=]+)=([A-Z2-7]{2})=([^=]+)=(.+)\Z", re.I | re.S)
_SRS1 = re.compile(r"SRS1[-+=]([^=]+)=([^=]+)=([-+=].+)\Z", re.I | re.S)


def looks_rewritten(address: str) -> bool:
    """Return whether an address is written as rewritten senders are."""
    return _REWRITTEN.match(address) is not None


@dataclass(frozen=True, slots=True)
class Srs:
    """The rewriter of senders to addresses of `domain`, and back. Every node with the same `secret` gets the same
    result.
    """

    domain: str
    secret: bytes = field(repr=False)

    def ours(self, address: str) -> bool:
        """Return whether an address is of the domain."""
        return domain_key(split(address)[1]) == domain_key(self.domain)

    def rewritten(self, sender: str, now: float) -> str:
        """Return the address that stands for a sender, or the sender itself where none can: the null path, and
        addresses that would be too long.
        """
        local, domain = split(sender)
        if not domain or local.startswith('"') or "=" in domain:
            return sender
        if (third := _SRS1.match(local)) is not None:
            kind, text = "SRS1", f"{third[2]}={third[3]}"
        elif (second := _SECOND.match(local)) is not None:
            kind, text = "SRS1", f"{domain}={second[1]}"
        else:
            kind, text = "SRS0", f"{_day(now)}={domain}={local}"
        address = f"{kind}={self._hash(kind, text)}={text}@{self.domain}"
        return address if valid(address) else sender

    def reversed(self, address: str, now: float) -> str:
        """Return the sender that an address of ours stands for. Raises ValueError that says why it stands for none."""
        local, _ = split(address)
        if (found := _SRS0.match(local)) is not None:
            given, day, domain, rest = found.groups()
            kind, text, sender = "SRS0", f"{day}={domain}={rest}", f"{rest}@{domain}"
        elif (found := _SRS1.match(local)) is not None:
            given, domain, rest = found.groups()
            day, kind, text, sender = "", "SRS1", f"{domain}={rest}", f"SRS0{rest}@{domain}"
        else:
            raise ValueError(f"nobody has a mailbox at {self.domain}")
        if not hmac.compare_digest(given.upper().encode(), self._hash(kind, text).encode()):
            raise ValueError("it was not made here")
        # One day ahead is a clock that is a little late, at midnight.
        if day and (_count(_day(now)) - _count(day) + 1) % len(_DAYS) ** 2 > VALID + 1:
            raise ValueError(f"it is older than {VALID} days")
        return sender

    def _hash(self, kind: str, text: str) -> str:
        # On its way an address may lose its case.
        said = f"{kind}={text}".lower().encode("utf-8", "replace")
        return b32encode(hmac.digest(self.secret, said, "sha256"))[:HASH].decode()


def _day(now: float) -> str:
    high, low = divmod(int(now // _DAY) % len(_DAYS) ** 2, len(_DAYS))
    return _DAYS[high] + _DAYS[low]


def _count(day: str) -> int:
    high, low = (_DAYS.index(character) for character in day.upper())
    return high * len(_DAYS) + low
