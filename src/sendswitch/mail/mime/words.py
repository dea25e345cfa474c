"""Encoded words (RFC 2047, with the languages of RFC 2231), read in one pass.

Each word is decoded by itself: a word in an unknown charset, or with bad bytes, leaves the others readable.
"""

from __future__ import annotations

import re

from sendswitch.mail.mime.base64 import unpacked
from sendswitch.mail.mime.charsets import LONGEST_LABEL, decode
from sendswitch.mail.text import storable

# Readers pass over white space and control characters round the charset.
_BEGIN = re.compile(rf"=\?[\x00-\x20]*([^?]{{0,{LONGEST_LABEL}}}?)\?[\x00-\x20]*([bBqQ])[\x00-\x20]*\?")
_END = re.compile(r"\?[\x00-\x20]*=")
_HEX = re.compile(rb"=([0-9A-Fa-f]{2})")
# An encoded word without its end.
_UNENDED = re.compile(r"=\?[^?]*\?[bBqQ]\?[^?]*\Z")
_BLANK = re.compile(r"[\x00-\x20]+")

# How the padding of Base64 is read where it does not stand at the end.
SPLIT, STOP, PASS_OVER, ZERO = "split", "stop", "pass over", "zero"


def decoded(value: str, padding: str = SPLIT) -> str:
    """Return a header value with its encoded words decoded, fit to be stored; never raises."""
    if "=?" not in value:
        return storable(value, len(value))
    out: list[str] = []
    run: list[tuple[str, bytes]] = []  # adjacent words, whose bytes may share a character
    at = 0
    while (begin := _BEGIN.search(value, at)) is not None:
        end = _END.search(value, begin.end())
        if end is None:
            break
        between = value[at : begin.start()]
        if between.strip() or (between and not run):
            out.append(_text(run) + between)
            run = []
        charset = _BLANK.sub("", begin[1].partition("*")[0])
        data = _bytes(begin[2], value[begin.end() : end.start()], padding)
        if run and run[-1][0].lower() == charset.lower():
            data = run.pop()[1] + data
        run.append((charset, data))
        at = end.end()
    out.append(_text(run) + value[at:])
    text = "".join(out)
    return storable(text, len(text))


def readings(value: str) -> list[str]:
    """Return a value with its encoded words decoded in each way that readers decode malformed ones."""
    if "=?" not in value:
        return [storable(value, len(value))]
    found = [decoded(value, padding) for padding in (SPLIT, STOP, PASS_OVER, ZERO)]
    found.append(decoded(_BLANK.sub("", value)))
    if _UNENDED.search(value) is not None:
        found.append(decoded(value + "?="))
    return list(dict.fromkeys(found))


def _text(run: list[tuple[str, bytes]]) -> str:
    return "".join(decode(data, charset) for charset, data in run)


def _bytes(encoding: str, text: str, padding: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if encoding not in "bB":
        return _HEX.sub(lambda found: bytes((int(found[1], 16),)), data.replace(b"_", b" "))
    if padding == PASS_OVER:
        return unpacked(data.replace(b"=", b""))
    if padding == ZERO:
        return unpacked(data.replace(b"=", b"A")).rstrip(b"\0")
    pieces = data.split(b"=")
    return unpacked(pieces[0]) if padding == STOP else b"".join(map(unpacked, pieces))
