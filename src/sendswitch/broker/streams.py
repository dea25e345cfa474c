"""Streams of frames between a node and a worker, over a socket or any other way (`frames`)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from sendswitch.broker import frames
from sendswitch.broker.frames import Frame


class Stream(Protocol):
    """One connection, as either end sees it."""

    async def read(self) -> Frame | None:
        """Return the next frame, None when the other end has gone. Raises BadFrame, OSError."""
        ...

    def write(self, frame: bytes) -> None:
        """Send an encoded frame, if the other end is there to read it; never waits. Raises BadFrame for a large one."""
        ...

    async def drain(self) -> None:
        """Wait until little waits to be read at the other end. Raises OSError."""
        ...

    def moves(self) -> bool:
        """Return whether frames wait to be sent, and some have left since this was last asked."""
        ...

    def finish(self) -> None:
        """Tell the other end that nothing more comes. What it still says can be read."""
        ...

    def abort(self) -> None:
        """End the connection at once."""
        ...


@dataclass(frozen=True, slots=True)
class Login:
    """The proof that a worker is a user's own: the user's address, and the number of the key (`access_keys`)."""

    address: str
    key: int


class SocketStream:
    """Frames over a stream of bytes, each with its length before it (`Stream`)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        writer.transport.set_write_buffer_limits(frames.BUFFERED)

    async def read(self) -> Frame | None:
        """Return the next frame. Raises BadFrame, OSError."""
        return await frames.read(self._reader)

    def write(self, frame: bytes) -> None:
        """Send a frame. Raises BadFrame."""
        if not self.writer.is_closing():
            self.writer.write(frames.with_length(frame))

    async def drain(self) -> None:
        """Wait until at most BUFFERED bytes wait. Raises OSError."""
        await self.writer.drain()

    def moves(self) -> bool:
        """Return False: on one machine nothing waits for a slow line."""
        return False

    def finish(self) -> None:
        """Close the half that we write. Raises OSError, RuntimeError."""
        self.writer.write_eof()

    def abort(self) -> None:
        """Close the socket."""
        self.writer.transport.abort()
