"""Encoded words (RFC 2047, with the languages of RFC 2231), read in one pass.

Each word is decoded by itself: a word in an unknown charset, or with bad bytes, leaves the others readable.
"""

from __future__ import annotations

import re

from sendswitch.mail.mime.base64 import unpacked
from sendswitch.mail.mime.charsets import LONGEST_LABEL, decode
from sendswitch.mail.text import storable

_BEGIN = re.compile(rf"=\?([^?\s]{{1,{LONGEST_LABEL}}})\?([bBqQ])\?")
_HEX = re.compile(rb"=([0-9A-Fa-f]{2})")


def decoded(value: str) -> str:
    """Return a header value with its encoded words decoded, fit to be stored; never raises."""
    if "=?" not in value:
        return storable(value, len(value))
    out: list[str] = []
    run: list[tuple[str, bytes]] = []  # adjacent words, whose bytes may share a character
    at = 0
    while (begin := _BEGIN.search(value, at)) is not None:
        end = value.find("?=", begin.end())
        if end < 0:
            break
        between = value[at : begin.start()]
        if between.strip() or (between and not run):
            out.append(_text(run) + between)
            run = []
        charset = begin[1].partition("*")[0]
        data = _bytes(begin[2], value[begin.end() : end])
        if run and run[-1][0].lower() == charset.lower():
            data = run.pop()[1] + data
        run.append((charset, data))
        at = end + 2
    out.append(_text(run) + value[at:])
    text = "".join(out)
    return storable(text, len(text))


def _text(run: list[tuple[str, bytes]]) -> str:
    return "".join(decode(data, charset) for charset, data in run)


def _bytes(encoding: str, text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if encoding in "bB":
        return b"".join(map(unpacked, data.split(b"=")))
    return _HEX.sub(lambda found: bytes((int(found[1], 16),)), data.replace(b"_", b" "))
