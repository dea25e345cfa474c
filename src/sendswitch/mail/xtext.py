"""xtext, the encoding of DSN parameters and XFORWARD values (RFC 3461 4; Postfix XFORWARD_README)."""

from __future__ import annotations

import re

_HEXCHAR = re.compile(rb"\+([0-9A-Fa-f]{2})")
_PLAIN = re.compile(r"[\x21-\x2a\x2c-\x3c\x3e-\x7e]*\Z")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def decode(text: str) -> str:
    """Return the text of an xtext. Invalid sequences stay as they are; control characters become '?'.

    Bytes beyond ASCII are UTF-8 if they can be (RFC 6533 3, and Postfix sends them so), else Latin-1.
    """
    if "+" not in text and text.isascii() and text.isprintable():
        return text  # most of what comes
    raw = _HEXCHAR.sub(lambda found: bytes((int(found[1], 16),)), text.encode("utf-8", "surrogateescape"))
    try:
        plain = raw.decode("utf-8")
    except UnicodeDecodeError:
        plain = raw.decode("latin-1")
    return _CONTROL.sub("?", plain)


def encode(text: str) -> str:
    """Return xtext of `text`; characters beyond ASCII become the xtext of their UTF-8 bytes."""
    if _PLAIN.match(text):
        return text
    return "".join(
        chr(byte) if 0x21 <= byte <= 0x7E and byte not in b"+=" else f"+{byte:02X}"
        for byte in text.encode("utf-8", "surrogateescape")
    )


def ascii_only(orcpt: str) -> str:
    """Return an ORCPT value in the form for servers without SMTPUTF8 (RFC 6533 section 3, utf-8-addr-xtext)."""
    return "".join(c if c.isascii() else f"\\x{{{ord(c):02X}}}" for c in orcpt)
