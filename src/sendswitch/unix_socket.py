"""Unix sockets in the data folder, however long its path is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Yield an address for a socket's path, by way of its open folder: an address has at most 107 bytes (unix(7)), and
    paths have more. Raises OSError.
    """
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at a path, for its owner only. One that a crash left is replaced. Raises OSError."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError):
        path.unlink()
    with address_of(path) as address:
        line.bind(address)
    path.chmod(0o600)
    line.listen(100)
    return line
