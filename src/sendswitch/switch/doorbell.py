"""A bell beside the spool: a command that changed the spool or the database rings it, and the node looks again.

The spool and the database are the truth and carry the change; the bell only says that there is one, so that
nothing polls. Ringing where nobody listens is no error: a node reads everything when it starts.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NAME = "doorbell"


def ring(data: Path) -> bool:
    """Tell the node in this data folder to look again; False when none is running."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.setblocking(False)
        try:
            with _in_folder(data):
                bell.sendto(b"1", NAME)
        except BlockingIOError:
            return True  # the bell is ringing already
        except OSError:
            return False
    return True


class Doorbell(asyncio.DatagramProtocol):
    """Calls a function for each ring."""

    def __init__(self, rung: Callable[[], None]) -> None:
        self._rung = rung
        self._transport: asyncio.DatagramTransport | None = None

    async def listen(self, data: Path) -> None:
        """Begin to listen; what a crashed node left of its bell is replaced."""
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        with suppress(FileNotFoundError):
            (data / NAME).unlink()
        with _in_folder(data):
            bell.bind(NAME)
        (data / NAME).chmod(0o600)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=bell)

    def datagram_received(self, data: bytes, addr: object) -> None:
        """One ring."""
        self._rung()

    def close(self, data: Path) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()
            with suppress(FileNotFoundError):
                (data / NAME).unlink()


class _in_folder:
    """Be in a folder for a moment: a unix socket's path may have 107 bytes only, and data folders are longer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        os.chdir(self._folder)

    def __exit__(self, *_: object) -> None:
        os.fchdir(self._before)
        os.close(self._before)
