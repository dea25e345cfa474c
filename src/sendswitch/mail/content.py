"""The content of a message: bytes in memory, or a file too large to hold.

Content is immutable and has CRLF line ends only (the listener sees to both), so that what a processor reads is
what leaves. `Edited` is content with another head: header edits never copy or touch the body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# A header larger than this is cut for reading (not for sending): Postfix's header_size_limit is 102400 per
# header, and no honest message has a megabyte of them.
MAX_HEAD = 1024 * 1024
CHUNK = 256 * 1024


class Content(Protocol):
    """Bytes of one message that can be read more than once."""

    @property
    def size(self) -> int:
        """Return the length in bytes."""
        ...

    def head(self) -> bytes:
        """Return the header block with its closing empty line, or all there is up to 1 MiB if there is none."""
        ...

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from `start` on, in pieces of at most 256 KiB. Reading a file blocks. Raises OSError."""
        ...

    def whole(self) -> bytes | None:
        """Return all bytes when they are in memory already, else None."""
        ...


def head_of(data: bytes) -> bytes:
    """Return the header block of `data`, its closing empty line included."""
    if data.startswith(b"\r\n"):
        return data[:2]
    end = data.find(b"\r\n\r\n")
    return data[: end + 4] if end >= 0 else data[:MAX_HEAD]


@dataclass(frozen=True, slots=True)
class InMemory:
    """Content that is small enough to hold."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def head(self) -> bytes:
        return head_of(self.data)

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        yield self.data[start:] if start else self.data

    def whole(self) -> bytes | None:
        return self.data


@dataclass(frozen=True, slots=True)
class InFile:
    """Content in a file of its own that never changes. `digest` is SHA-256, b"" for unknown."""

    path: Path
    size: int
    digest: bytes = b""

    def head(self) -> bytes:
        with self.path.open("rb") as file:
            return head_of(file.read(MAX_HEAD))

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while piece := file.read(CHUNK):
                yield piece

    def whole(self) -> bytes | None:
        return None


@dataclass(frozen=True, slots=True)
class Edited:
    """`original` with its first `cut` bytes replaced by `front`."""

    original: Content
    front: bytes
    cut: int = 0

    @property
    def size(self) -> int:
        return len(self.front) + self.original.size - self.cut

    def head(self) -> bytes:
        return head_of(self.front + self.original.head()[self.cut :])

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        if start < len(self.front):
            yield self.front[start:]
        yield from self.original.chunks(self.cut + max(0, start - len(self.front)))

    def whole(self) -> bytes | None:
        data = self.original.whole()
        return None if data is None else self.front + data[self.cut :]


@dataclass(frozen=True, slots=True)
class Spliced:
    """`original` with other bytes in some places: (start, end, instead), in order and without overlap."""

    original: Content
    cuts: tuple[tuple[int, int, bytes], ...]

    @property
    def size(self) -> int:
        return self.original.size + sum(len(instead) - (end - start) for start, end, instead in self.cuts)

    def head(self) -> bytes:
        return self.original.head()  # nothing is cut there

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        skip = start
        for piece in self._pieces():
            if skip < len(piece):
                yield piece[skip:] if skip else piece
            skip = max(0, skip - len(piece))

    def _pieces(self) -> Iterator[bytes]:
        at = 0
        for start, end, instead in self.cuts:
            yield from self._original(at, start)
            yield instead
            at = end
        yield from self._original(at, self.original.size)

    def _original(self, start: int, end: int) -> Iterator[bytes]:
        left = end - start
        for piece in self.original.chunks(start):
            if left <= 0:
                return
            yield piece[:left]
            left -= len(piece)

    def whole(self) -> bytes | None:
        return None if self.original.whole() is None else b"".join(self._pieces())


def read_all(content: Content) -> bytes:
    """Return every byte, in memory; for a processor that asks for the whole message."""
    data = content.whole()
    return b"".join(content.chunks()) if data is None else data


class Damaged(Exception):
    """Content that differs from what was stored."""


def digest_of(content: Content) -> bytes:
    """Return the SHA-256 of content. Reading a file blocks. Raises OSError."""
    if isinstance(content, InFile) and content.digest:
        return content.digest
    hashed = hashlib.sha256()
    for piece in content.chunks():
        hashed.update(piece)
    return hashed.digest()


def verify(content: Content, size: int, digest: bytes | None) -> Content:
    """Return content that has this length and SHA-256, which is None for content that was stored without one.

    Reads all of it; a file blocks. Raises Damaged, OSError.
    """
    if content.size != size:
        raise Damaged(f"it has {content.size} bytes, and {size} were stored")
    if digest is not None and digest_of(content) != digest:
        raise Damaged("its bytes are others than were stored")
    return content
