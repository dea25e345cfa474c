"""The content of a signed S/MIME message (RFC 8551, RFC 5652), whose signature is not looked at.

Only as much of ASN.1 (X.690) is read as finds the content: tags, lengths, indefinite lengths, and octet strings in
pieces.
"""

from __future__ import annotations

import base64
import re

_SIGNED = bytes.fromhex("2a864886f70d010702")
_DATA = bytes.fromhex("2a864886f70d010701")
_COMPRESSED = bytes.fromhex("2a864886f70d0109100109")
_ENCRYPTED = (
    bytes.fromhex("2a864886f70d010703"),  # enveloped-data
    bytes.fromhex("2a864886f70d010706"),  # encrypted-data
    bytes.fromhex("2a864886f70d0109100117"),  # authenticated enveloped-data
    bytes.fromhex("2a864886f70d010704"),  # signed and enveloped
)
# Constructed values in each other.
DEEPEST = 20
_ARMOR = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----(.*?)-----END", re.S)

Span = tuple[int, int, int, int]  # tag, where the content begins, where it ends, where the next value begins


class NotCms(ValueError):
    """The data is no CMS that can be read."""


class Encrypted(NotCms):
    """The content is encrypted."""


def signed_content(data: bytes) -> bytes:
    """Return the content of signed data. Raises Encrypted, NotCms."""
    if (armor := _ARMOR.search(data)) is not None:
        data = base64.b64decode(armor[1] + b"==")
    try:
        return _content(data)
    except (IndexError, RecursionError) as error:
        raise NotCms("it ends too early") from error


def _content(data: bytes) -> bytes:
    outer = _value(data, 0, len(data), 0)
    if outer[0] != 0x30:
        raise NotCms("it does not begin with a sequence")
    kind = _value(data, outer[1], outer[2], 1)
    oid = data[kind[1] : kind[2]]
    if oid in _ENCRYPTED:
        raise Encrypted("it is encrypted")
    if oid != _SIGNED:
        raise NotCms("it is compressed" if oid == _COMPRESSED else "it is of a kind that nobody knows")
    explicit = _value(data, kind[3], outer[2], 1)
    signed = _value(data, explicit[1], explicit[2], 2)
    at, end = signed[1], signed[2]
    for _ in range(3):  # version, digest algorithms, encapsulated content
        inner = _value(data, at, end, 3)
        at = inner[3]
    oid_span = _value(data, inner[1], inner[2], 4)
    if oid_span[3] >= inner[2]:
        return b""  # the content is elsewhere: a detached signature
    wrapped = _value(data, oid_span[3], inner[2], 4)
    octets = _value(data, wrapped[1], wrapped[2], 5)
    return b"".join(_octets(data, octets, 5))


def _octets(data: bytes, span: Span, depth: int) -> list[bytes]:
    tag, start, end, _ = span
    if not tag & 0x20:
        return [data[start:end]]
    if depth > DEEPEST:
        raise NotCms("it is nested too deeply")
    pieces: list[bytes] = []
    while start < end:
        inner = _value(data, start, end, depth + 1)
        pieces += _octets(data, inner, depth + 1)
        start = inner[3]
    return pieces


def _value(data: bytes, at: int, end: int, depth: int) -> Span:
    """Return the value at `at`: its tag, where its content is, and where the next one begins. Raises NotCms."""
    if depth > DEEPEST:
        raise NotCms("it is nested too deeply")
    if at + 2 > end:
        raise NotCms("it ends too early")
    tag, length = data[at], data[at + 1]
    start = at + 2
    if length == 0x80:
        inner = start
        while data[inner : inner + 2] != b"\0\0":
            if inner >= end:
                raise NotCms("it ends too early")
            inner = _value(data, inner, end, depth + 1)[3]
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
