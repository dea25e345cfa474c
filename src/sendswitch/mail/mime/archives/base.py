"""Members of archives, and the budget that all readers of archives in one message share."""

from __future__ import annotations

import bz2
import lzma
import zlib
from dataclasses import dataclass, field

from sendswitch.mail.mime.findings import Finding, Kind

# Archives in archives, names in all of them, and bytes that are unpacked to find more: honest mail stays far below.
DEEPEST, MOST_NAMES, MOST_BYTES = 6, 10_000, 50_000_000
# Bytes of memory that LZMA may use; larger dictionaries are no mail.
MEMORY = 100_000_000
_STEP = 256 * 1024


class Unreadable(Exception):
    """An archive, or a member of one, cannot be looked into."""

    def __init__(self, text: str, kind: Kind = Kind.UNREADABLE) -> None:
        super().__init__(text)
        self.finding = Finding(kind, text)


@dataclass(slots=True)
class Budget:
    """Names and unpacked bytes that may still be looked at in one message."""

    names: int = MOST_NAMES
    size: int = MOST_BYTES

    def take(self, names: int, size: int) -> None:
        """Take names and bytes from the budget. Raises Unreadable when less is left."""
        self.names -= names
        self.size -= size
        if self.names < 0 or self.size < 0:
            raise Unreadable("there is more in it than is looked at", Kind.TOO_LARGE)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive: all its names, its content where it could be unpacked, and findings about it."""

    names: tuple[str, ...]
    data: bytes | None = field(default=None, repr=False)
    findings: tuple[Finding, ...] = ()


def inflate(data: bytes, budget: Budget) -> tuple[bytes, int]:
    """Unpack a deflated stream, as far as it goes; return it and how many bytes are left behind it.

    Raises Unreadable over budget or when nothing can be unpacked.
    """
    unpacker = zlib.decompressobj(-15)
    out: list[bytes] = []
    rest = data
    try:
        while rest and not unpacker.eof:
            piece = unpacker.decompress(rest, min(_STEP, budget.size + 1))
            budget.take(0, len(piece))
            out.append(piece)
            rest = unpacker.unconsumed_tail
            if not piece and not rest:
                break
    except zlib.error as error:
        if not any(out):
            raise Unreadable(f"it cannot be unpacked: {error}") from error
    return _some(out, ended=unpacker.eof), len(unpacker.unused_data)


def _some(out: list[bytes], *, ended: bool) -> bytes:
    if not ended and not any(out):
        raise Unreadable("it cannot be unpacked: it ends too early")
    return b"".join(out)


def gunzip(data: bytes, budget: Budget) -> bytes:
    """Unpack every member of a gzip file (RFC 1952). Raises Unreadable."""
    out: list[bytes] = []
    while data[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(31)
        rest, begun = data, len(out)
        try:
            while rest and not unpacker.eof:
                piece = unpacker.decompress(rest, min(_STEP, budget.size + 1))
                budget.take(0, len(piece))
                out.append(piece)
                rest = unpacker.unconsumed_tail
                if not piece and not rest:
                    break
        except zlib.error as error:
            if len(out) == begun:
                raise Unreadable(f"it cannot be unpacked: {error}") from error
            break
        if not unpacker.eof:
            return _some(out, ended=False)
        data = unpacker.unused_data.lstrip(b"\0")
    return b"".join(out)


def bunzip(data: bytes, budget: Budget) -> bytes:
    """Unpack bzip2, every stream of it. Raises Unreadable."""
    if data[:3] != b"BZh":
        raise Unreadable("it cannot be unpacked: it is no bzip2")
    out: list[bytes] = []
    while data[:3] == b"BZh":
        unpacker = bz2.BZ2Decompressor()
        feed = data
        try:
            while not unpacker.eof:
                piece = unpacker.decompress(feed, min(_STEP, budget.size + 1))
                feed = b""
                budget.take(0, len(piece))
                out.append(piece)
                if not piece and unpacker.needs_input:
                    break
        except (OSError, ValueError, EOFError) as error:
            if not any(out):
                raise Unreadable(f"it cannot be unpacked: {error}") from error
            break
        if not unpacker.eof:
            return _some(out, ended=False)
        data = unpacker.unused_data
    return b"".join(out)


def unxz(data: bytes, budget: Budget) -> bytes:
    """Unpack every stream of xz, or lzma. Raises Unreadable."""
    out: list[bytes] = []
    while data:
        unpacker = lzma.LZMADecompressor(memlimit=MEMORY)
        out.append(unlzma(data, budget, unpacker))
        data = unpacker.unused_data.lstrip(b"\0") if unpacker.eof else b""
        if data[:6] != b"\xfd7zXZ\0":
            break
    return b"".join(out)


def unlzma(data: bytes, budget: Budget, unpacker: lzma.LZMADecompressor) -> bytes:
    """Decompress data with `unpacker`. Raises Unreadable."""
    out: list[bytes] = []
    try:
        feed = data
        while not unpacker.eof:
            piece = unpacker.decompress(feed, min(_STEP, budget.size + 1))
            feed = b""
            budget.take(0, len(piece))
            out.append(piece)
            if not piece and unpacker.needs_input:
                break
    except (lzma.LZMAError, ValueError, EOFError, MemoryError) as error:
        if not any(out):
            raise Unreadable(f"it cannot be unpacked: {error}") from error
    return _some(out, ended=unpacker.eof)
