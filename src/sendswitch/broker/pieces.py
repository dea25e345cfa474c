"""Content that comes in pieces: collected in memory, or in a file that goes with its last reader."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import IO

from sendswitch.errors import Temporary
from sendswitch.mail.content import Content, InFile, InMemory

# Bytes of content that are kept in memory.
IN_MEMORY = 1024 * 1024


class _OwnFile(InFile):
    """Content in a file that is removed with the last reference to it."""


class Pieces:
    """The pieces of one content of `size` bytes. A large one goes into a file of `folder`."""

    def __init__(self, folder: Path, size: int) -> None:
        self._size, self.got = size, 0
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        if size > IN_MEMORY:
            self._file = tempfile.NamedTemporaryFile(dir=folder, delete=False)  # noqa: SIM115 - closed in `content`

    def add(self, piece: bytes) -> bool:
        """Add a piece. Return whether more are missing. Raises Temporary for too many bytes, OSError."""
        self.got += len(piece)
        if self.got > self._size:
            raise Temporary(f"more bytes of content came than {self._size}")
        if self._file is None:
            self._pieces.append(piece)
        else:
            self._file.write(piece)
        return self.got < self._size

    def content(self) -> Content:
        """Return the content. Raises Temporary when a piece is missing, OSError."""
        if self.got < self._size:
            raise Temporary(f"{self.got} bytes of content came instead of {self._size}")
        if self._file is None:
            return InMemory(b"".join(self._pieces))
        self._file.close()
        path = Path(self._file.name)
        self._file = None
        content = _OwnFile(path, self._size)
        weakref.finalize(content, path.unlink, missing_ok=True)
        return content

    def drop(self) -> None:
        """Remove what nobody took as content."""
        if self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
            self._file = None
