"""The content of a message while it comes in: in memory up to 256 KiB, beyond that in a file.

The file has a temporary name until it is complete: written, fsynced, renamed, and the folder fsynced, in that order, so
that a file with its final name is always whole. A temporary file found at start belongs to a message that was never
acknowledged, and is deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from sendswitch.durable import publish
from sendswitch.errors import SpoolUnavailable, caused_by
from sendswitch.mail.content import Content, InFile, InMemory
from sendswitch.mail.ids import to_text
from sendswitch.spool.schema import content_file

# Where SQLite stops being the faster store for a blob ("35% faster than the filesystem", sqlite.org/fasterthanfs,
# measured up to 100 kB) and memory for one message starts to matter with hundreds of them at once.
# Content up to this size is in the database, beyond it in a file, always.
LARGE = 256 * 1024
# Pieces kept as they come; a client that sends two bytes at a time must not cost fifty for them.
MANY = 16


class Body:
    """One message's content as it arrives (the listener's Sink)."""

    __slots__ = ("_file", "_folder", "_hashed", "_pieces", "_size", "_waiting", "id")

    def __init__(self, folder: Path, id_: int) -> None:
        self._folder, self.id = folder, id_
        self._pieces: list[bytes | bytearray] = []
        self._waiting = self._size = 0
        self._file: int | None = None
        self._hashed = hashlib.sha256()

    @property
    def size(self) -> int:
        """Return how many bytes have come so far."""
        return self._size

    @property
    def full(self) -> bool:
        """Return whether `drain` must be awaited before more is written."""
        return self._waiting > LARGE

    def write(self, data: bytes) -> None:
        """Take a piece; must not block."""
        pieces = self._pieces
        if len(pieces) < MANY:
            pieces.append(data)
        else:  # tiny pieces: one object for all of them
            if len(pieces) == MANY:
                pieces.append(bytearray())
            pieces[-1] += data
        self._waiting += len(data)
        self._size += len(data)

    async def drain(self) -> None:
        """Move the bytes in memory to the file. Raises SpoolUnavailable."""
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        await asyncio.to_thread(self._append, pieces)

    def in_memory(self) -> InMemory | None:
        """Return the content when it is small, else None."""
        if self._file is not None or self._waiting > LARGE:
            return None
        pieces = self._pieces
        return InMemory(pieces[0] if len(pieces) == 1 and isinstance(pieces[0], bytes) else b"".join(pieces))

    async def in_file(self) -> Content:
        """Return the content as a complete file, durable under its final name. Raises SpoolUnavailable."""
        await self.drain()
        await asyncio.to_thread(self._complete)
        return InFile(self._final, self._size, self._hashed.digest())

    def discard(self) -> None:
        """Forget the content; nothing of it stays, unless it was completed."""
        self._pieces = []
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._temporary.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        return self._folder / f"{to_text(self.id)}.tmp"

    @property
    def _final(self) -> Path:
        return content_file(self._folder, self.id)

    def _append(self, pieces: list[bytes | bytearray]) -> None:
        try:
            if self._file is None:
                self._file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            for piece in pieces:
                self._hashed.update(piece)
                view = memoryview(piece)
                while view:
                    written = os.write(self._file, view)
                    view = view[written:]
        except OSError as error:
            raise caused_by(error, SpoolUnavailable(f"cannot write {self._temporary}: {error.strerror}")) from error

    def _complete(self) -> None:
        assert self._file is not None
        try:
            os.fsync(self._file)
            publish(self._temporary, self._final)
        except OSError as error:
            raise caused_by(error, SpoolUnavailable(f"cannot complete {self._final}: {error.strerror}")) from error
        os.close(self._file)
        self._file = None
