"""Attachments in TNEF, the `winmail.dat` of Outlook ([MS-OXTNEF])."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

MAGIC = b"\x78\x9f\x3e\x22"
# MAPI properties: the long and the short name, and the content that is a message or a document.
_NAMES, _OBJECT = (0x3707, 0x3704, 0x3001, 0x370C), 0x3701
# Attributes that are read; a mail with a hundred attachments has some hundred.
MOST = 10_000
_FIXED = {
    0x0002: 4,
    0x0003: 4,
    0x0004: 4,
    0x0005: 8,
    0x0006: 8,
    0x0007: 8,
    0x000A: 4,
    0x000B: 4,
    0x0014: 8,
    0x0040: 8,
    0x0048: 16,
}


class NotTnef(ValueError):
    """The data is no TNEF that can be read."""


def attachments(data: bytes) -> Iterator[tuple[list[str], bytes]]:
    """Yield the names and the content of each attachment. Raises NotTnef, perhaps after some."""
    names: list[str] = []
    contents: list[bytes] = []
    for kind, value in _attributes(data):
        match kind:
            case 0x9002:  # an attachment begins
                yield from _one(names, contents)
                names, contents = [], []
            case 0x8010:  # its title
                names.append(_text(value))
            case 0x800F:  # its data
                contents.append(value)
            case 0x9005:  # its properties
                found = list(_properties(value))
                names[:0] = [_text(one) for number, one in found if number in _NAMES]
                contents += [
                    one[16:] for number, one in found if number == _OBJECT
                ]  # behind its interface's identifier
    yield from _one(names, contents)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and value of each attribute. Raises NotTnef."""
    if data[:4] != MAGIC:
        raise NotTnef("it does not begin like one")
    at, end = 6, len(data.rstrip(b"\0\r\n "))
    for _ in range(MOST):
        if at >= end:
            return
        if at + 9 > len(data):
            break
        _, attribute, size = struct.unpack_from("<BII", data, at)
        value = data[at + 9 : at + 9 + size]
        if len(value) < size:
            break
        yield attribute & 0xFFFF, value
        at += 9 + size + 2
    raise NotTnef("it ends too early")


def _one(names: list[str], contents: list[bytes]) -> Iterator[tuple[list[str], bytes]]:
    for content in contents or ([b""] if names else []):
        yield list(dict.fromkeys(names)), content


def _text(value: bytes) -> str:
    if len(value) % 2 == 0 and value[1::2].count(0) * 2 >= len(value) // 2 > 0:
        return value.decode("utf-16-le", "replace").rstrip("\0")
    try:
        return value.decode("utf-8").rstrip("\0")
    except UnicodeDecodeError:
        return value.decode("cp1252", "replace").rstrip("\0")


def _properties(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and value of MAPI properties; stops at one that cannot be read."""
    with suppress(struct.error):  # it would stand beyond the end
        yield from _values(data)


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and value of MAPI properties. Raises struct.error where the data end too early."""
    (count,) = struct.unpack_from("<I", data, 0)
    at = 4
    for _ in range(min(count, MOST)):
        kind, number = struct.unpack_from("<HH", data, at)
        at += 4
        if number >= 0x8000:
            at = _named(data, at)
        many, base = kind & 0x1000, kind & 0xFFF
        if many or base in (0x001E, 0x001F, 0x000D, 0x0102):
            (items,) = struct.unpack_from("<I", data, at)
            at += 4
        else:
            items = 1
        for _ in range(min(items, MOST)):
            if base in _FIXED:
                size = _FIXED[base]
            else:
                (size,) = struct.unpack_from("<I", data, at)
                at += 4
            value = data[at : at + size]
            at += size + (-size % 4)
            yield number, value
            if at > len(data):
                return


def _named(data: bytes, at: int) -> int:
    """Return where the value of a named property begins. Raises struct.error where the data end too early."""
    (kind,) = struct.unpack_from("<I", data, at + 16)
    at += 20
    if kind == 0:
        return at + 4
    size: int = struct.unpack_from("<I", data, at)[0]
    return at + 4 + size + (-size % 4)
