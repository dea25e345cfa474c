"""The content of a signed S/MIME message (RFC 8551, RFC 5652), whose signature is not looked at.

Only as much of ASN.1 (X.690) is read as finds the content: tags, lengths, indefinite lengths, and octet strings in
pieces.
"""

from __future__ import annotations

import re

from sendswitch.mail.mime.base64 import unpacked

_SIGNED = bytes.fromhex("2a864886f70d010702")
_DATA = bytes.fromhex("2a864886f70d010701")
_COMPRESSED = bytes.fromhex("2a864886f70d0109100109")
_ENCRYPTED = (
    bytes.fromhex("2a864886f70d010703"),  # enveloped-data
    bytes.fromhex("2a864886f70d010706"),  # encrypted-data
    bytes.fromhex("2a864886f70d0109100117"),  # authenticated enveloped-data
    bytes.fromhex("2a864886f70d010704"),  # signed and enveloped
)
# Constructed values in each other, and values that are read; a message of 50 MB in pieces of a kilobyte has 50,000.
DEEPEST, MOST_VALUES = 20, 200_000
_ARMOR = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----(.*?)-----END", re.S)

Span = tuple[int, int, int, int]  # tag, where the content begins, where it ends, where the next value begins


class NotCms(ValueError):
    """The data is no CMS that can be read."""


class Encrypted(NotCms):
    """The content is encrypted."""


def signed_content(data: bytes) -> bytes:
    """Return the content of signed data. Raises Encrypted, NotCms."""
    if (armor := _ARMOR.search(data)) is not None:
        data = unpacked(armor[1])
    reader = _Reader(data)
    try:
        for _ in range(DEEPEST):
            data = reader.content()
            if data[:1] != b"\x30" or _SIGNED not in data[:40]:  # what is signed was not signed before
                return data
            reader.data = data
    except (IndexError, RecursionError) as error:
        raise NotCms("it ends too early") from error
    raise NotCms("it is nested too deeply")


class _Reader:
    """A reader of DER values, with a limit of a hundred times the number in honest messages."""

    def __init__(self, data: bytes) -> None:
        self.data, self._left = data, MOST_VALUES

    def content(self) -> bytes:
        """Return the content of a ContentInfo with signed data."""
        data = self.data
        outer = self._value(0, len(data), 0)
        if outer[0] != 0x30:
            raise NotCms("it does not begin with a sequence")
        kind = self._value(outer[1], outer[2], 1)
        oid = data[kind[1] : kind[2]]
        if oid in _ENCRYPTED:
            raise Encrypted("it is encrypted")
        if oid != _SIGNED:
            raise NotCms("it is compressed" if oid == _COMPRESSED else "it is of a kind that nobody knows")
        explicit = self._value(kind[3], outer[2], 1)
        signed = self._value(explicit[1], explicit[2], 2)
        at, end = signed[1], signed[2]
        for _ in range(3):  # version, digest algorithms, encapsulated content
            inner = self._value(at, end, 3)
            at = inner[3]
        name = self._value(inner[1], inner[2], 4)
        if name[3] >= inner[2]:
            return b""  # the content is elsewhere: a detached signature
        wrapped = self._value(name[3], inner[2], 4)
        octets = self._value(wrapped[1], wrapped[2], 5)
        return b"".join(self._octets(octets, 5))

    def _octets(self, span: Span, depth: int) -> list[bytes]:
        tag, start, end, _ = span
        if not tag & 0x20:
            return [self.data[start:end]]
        if depth > DEEPEST:
            raise NotCms("it is nested too deeply")
        pieces: list[bytes] = []
        while start < end:
            inner = self._value(start, end, depth + 1)
            pieces += self._octets(inner, depth + 1)
            start = inner[3]
        return pieces

    def _value(self, at: int, end: int, depth: int) -> Span:
        """Return the value at `at`: its tag, where its content is, and where the next one begins. Raises NotCms."""
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise NotCms("it is nested too deeply" if depth > DEEPEST else "it has more values than are looked at")
        if at + 2 > end:
            raise NotCms("it ends too early")
        data = self.data
        tag, length = data[at], data[at + 1]
        start = at + 2
        if length == 0x80:
            inner = start
            while data[inner : inner + 2] != b"\0\0":
                if inner >= end:
                    raise NotCms("it ends too early")
                inner = self._value(inner, end, depth + 1)[3]
            return tag, start, inner, inner + 2
        if length & 0x80:
            count = length & 0x7F
            if count > 6:
                raise NotCms("it has a length that nothing has")
            length = int.from_bytes(data[start : start + count], "big")
            start += count
        if start + length > end:
            raise NotCms("it ends too early")
        return tag, start, start + length, start + length
