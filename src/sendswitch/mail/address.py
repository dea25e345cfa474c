"""Mail addresses as RFC 5321 4.1.2 writes them, and the keys they are looked up by.

An address is kept as it was given; comparison happens on a key. A domain is compared without case (RFC 5321
2.4). A local part is too: no site that runs Postfix gives `Joe` and `joe` to different people, and a list
entry that misses by case would be a hole.
"""

from __future__ import annotations

import re
from email.errors import MessageError
from email.header import decode_header, make_header
from email.utils import getaddresses

from sendswitch.mail.text import storable

# A path in angle brackets: an optional source route that is ignored (RFC 5321 C), then the mailbox. A quoted
# local part may hold any character, '>' and '@' included.
_PATH = re.compile(r'<(?:@[^<>:]*:)?((?:"(?:[^"\\]|\\.)*"|[^<>"\s])*)>')
_ATOM = re.compile(r"[^\s<>()\[\],;:\"\\@\x00-\x1f\x7f]+")
_LOCAL = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"|[^\s<>()\[\],;:"\\@\x00-\x1f\x7f]+)\Z')
_DOMAIN = re.compile(r"(?:\[[0-9A-Za-z.:\-]+\]|[^\s<>()\[\],;:\"\\@\x00-\x1f\x7f]+)\Z")
# What stands between the separators of a header's value, in one pass: an address is such a word with an '@' in it.
_WORD = re.compile(r"[^\s<>()\[\],;:\"\\\x00-\x1f]+")
# Most fields: one address of plain atoms, alone or behind a name of plain words, about which all readers agree.
_DOTTED = r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
_PLAIN = re.compile(rf"[ \t]*(?:[A-Za-z0-9 '_+-]*<({_DOTTED})>|({_DOTTED}))[ \t]*\Z")
# Characters of a field given to the standard parser, whose time may grow faster than its input.
MAX_PARSED = 8000

# RFC 5321 4.5.3.1: 64 for the local part, 255 for the domain, 256 for the path. Real mail exceeds the first
# (VERP, SRS), so only the whole is limited.
MAX_ADDRESS = 320


def split(address: str) -> tuple[str, str]:
    """Local part and domain; the domain is '' for an address without '@' (`postmaster`)."""
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (address, "")


def valid(address: str) -> bool:
    """True when `address` may stand in a path: it cannot break out of the brackets or carry a line break."""
    if not address or len(address) > MAX_ADDRESS:
        return False
    if not address.isascii() and storable(address, MAX_ADDRESS) != address:
        return False
    local, domain = split(address)
    if not domain:
        return "@" not in address and bool(_ATOM.fullmatch(local))
    return bool(_LOCAL.match(local) and _DOMAIN.match(domain))


def parse_path(text: str) -> tuple[str, str] | None:
    """Split '<path> rest' into the address and the rest; None when it does not begin with a valid path.

    The null path gives ''. Whether a non-ASCII address is allowed here (SMTPUTF8) is for the caller to say.
    """
    found = _PATH.match(text)
    if not found:
        return None
    address = found[1]
    if address and not valid(address):
        return None
    rest = text[found.end() :]
    if rest and not rest.startswith(" "):
        return None
    return address, rest.strip()


def key(address: str) -> str:
    """What two addresses share when they are the same mailbox: lower case, no quotes that need not be."""
    if '"' not in address:
        return address.lower()
    local, domain = split(address)
    bare = re.sub(r"\\(.)", r"\1", local[1:-1]) if local[:1] == '"' and local[-1:] == '"' else local
    local = bare if _ATOM.fullmatch(bare) else local
    return f"{local}@{domain}".lower() if domain else local.lower()


def without_extension(address_key: str, delimiters: str) -> str:
    """The key without its address extension (Postfix `recipient_delimiter`), or itself when it has none.

    A delimiter as first character is part of the name, as in Postfix.
    """
    local, domain = split(address_key)
    for n, character in enumerate(local):
        if n and character in delimiters:
            return f"{local[:n]}@{domain}" if domain else local[:n]
    return address_key


def in_header(values: list[str]) -> list[str]:
    """Every address key a reader could take for the author in these header values, in order, each once.

    Deliberately wide: mail clients disagree on malformed fields, so an address counts when any reading finds
    it: the standard parser's, or any word with an '@'. Encoded words are decoded for names only
    after addresses were found, so that an encoded name cannot add one to the strict reading.
    """
    if len(values) == 1 and (plain := _PLAIN.match(values[0])):
        return [(plain[1] or plain[2]).lower()]
    found: dict[str, None] = {}
    for _, address in getaddresses([value[:MAX_PARSED] for value in values]):
        if "@" in address:
            found[key(address)] = None
    for value in values:
        for word in _WORD.findall(value):
            if "@" in word.strip("@"):
                found[key(word)] = None
    return list(found)


def only(values: list[str], found: list[str]) -> str | None:
    """The one author's key when the field is beyond doubt (one field, one reading, one address), else None.

    `found` is what `in_header` gives for `values`. Letting mail through because of its author asks for this; keeping
    mail out asks for any of `found`.
    """
    return found[0] if len(values) == len(found) == 1 and len(values[0]) <= MAX_PARSED else None


def display(value: str) -> str:
    """A header value with its encoded words decoded as far as they can be, fit to be kept; never raises."""
    try:
        return storable(make_header(decode_header(value)), len(value))
    except (ValueError, LookupError, MessageError):
        return value
