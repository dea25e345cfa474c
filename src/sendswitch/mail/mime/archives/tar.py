"""Tar archives as the union of what their readers see.

Readers differ in which blocks they take for headers (checksums with and without sign, damaged numbers, unknown types)
and in which of several names and sizes they believe (ustar, GNU, pax). So every block that any of them may take for a
header is one, every name counts, and content is taken in each size that is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sendswitch.mail.mime.archives.base import Budget, Member
from sendswitch.mail.mime.charsets import decode

BLOCK = 512
# Blocks of nothing before the first header; bytes of pax records and long names.
MOST_EMPTY, LONGEST_RECORDS = 64, 65_536
_USTAR = b"ustar"
_LONG, _PAX = b"LK", b"xgX"
_OCTAL = re.compile(rb"[\0 ]*([0-7]+)")
_DIGITS = re.compile(rb"[0-9]{1,14}\Z")
_PAX_RECORD = re.compile(rb"\d+ (path|linkpath|GNU\.sparse\.name|size|GNU\.sparse\.realsize)=([^\n]*)\n")


def looks_like(data: bytes) -> bool:
    """Return whether the first block that is not empty may be a header."""
    for at in range(0, min(len(data), MOST_EMPTY * BLOCK), BLOCK):
        block = data[at : at + BLOCK]
        if block.strip(b"\0"):
            return _is_header(block)
    return False


def end(data: bytes) -> int:
    """Return where the archive ends for a reader that goes from header to header."""
    at = 0
    while _is_header(data[at : at + BLOCK]):
        size = _number(data[at + 124 : at + 136])
        at += BLOCK + size + (-size % BLOCK)
    return min(at, len(data))


def members(data: bytes, budget: Budget) -> Iterator[Member]:
    """Yield every member that a reader may see. Raises Unreadable over budget."""
    names: list[str] = []  # of records before a header
    sizes: list[int] = []
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        if not _is_header(block):
            continue
        budget.take(1, 0)
        kind, size = block[156:157], _number(block[124:136])
        begin = at + BLOCK
        if kind in _LONG:
            names.append(_text(data[begin : begin + min(size, LONGEST_RECORDS)]))
        elif kind in _PAX:
            found = _PAX_RECORD.findall(data, begin, begin + min(size, LONGEST_RECORDS))
            names += [_text(value) for key, value in found if not key.endswith(b"size")]
            sizes += [
                int(value) for key, value in found if key.endswith(b"size") and value.isdigit() and len(value) < 15
            ]
        every = dict.fromkeys([_name(block), _text(block[157:257]), *names])
        yield Member(tuple(name for name in every if name))
        if kind in _LONG + _PAX:
            continue
        for length in dict.fromkeys([size, *sizes]):
            if length:
                content = data[begin : begin + length]
                budget.take(0, len(content))
                yield Member(tuple(name for name in every if name), content)
        names, sizes = [], []


def _is_header(block: bytes) -> bool:
    """Return whether a reader may take a block for a header: by the magic of POSIX, or by its checksum."""
    if len(block) < BLOCK or not block[:1].strip(b"\0"):
        return False
    if block[257:262] == _USTAR:
        return True
    told = _number(block[148:156])
    if not told:
        return False
    rest = block[:148] + b"        " + block[156:]
    unsigned = sum(rest)
    return told in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes) -> int:
    """Return a number as lenient readers read it: octal up to the first other character, or base 256."""
    if field[:1] in (b"\x80", b"\xff"):
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else 0
    found = _OCTAL.match(field)
    return int(found[1], 8) if found else 0


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500]) if block[257:262] == _USTAR else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return decode(field.partition(b"\0")[0], "")
