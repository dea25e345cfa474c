"""Streams of frames between a node and a worker, over a socket or any other way (`frames`)."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
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


# Most bytes that may wait in a socket's memory: twice the largest frame. An end that reads so little is not there.
WAITING = 2 * frames.MAX_FRAME
# The header of a worker's connection with the number of the node that is meant, of several behind one address.
NODE = "Sendswitch-Node"
# Most workers of a user's own that a node has.
OWN_MOST = 20


@dataclass(frozen=True, slots=True)
class Login:
    """The proof that a worker is a user's own: the user's address, and the number of the key (`access_keys`)."""

    address: str
    key: int


class SocketStream:
    """Frames over a stream of bytes, each with its length before it (`Stream`)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._written = self._left = 0
        writer.transport.set_write_buffer_limits(frames.BUFFERED)

    async def read(self) -> Frame | None:
        """Return the next frame. Raises BadFrame, OSError."""
        return await frames.read(self._reader)

    def write(self, frame: bytes) -> None:
        """Send a frame. Raises BadFrame."""
        if self.writer.is_closing():
            return
        framed = frames.with_length(frame)
        self.writer.write(framed)
        self._written += len(framed)
        if self.writer.transport.get_write_buffer_size() > WAITING:
            self.abort()

    async def drain(self) -> None:
        """Wait until at most BUFFERED bytes wait. Raises OSError."""
        await self.writer.drain()

    def moves(self) -> bool:
        """Return whether frames wait, and some bytes have left since this was last asked: they may be passed on over a
        slow line.
        """
        waiting = self.writer.transport.get_write_buffer_size()
        before, self._left = self._left, self._written - waiting
        return waiting > 0 and self._left > before

    def finish(self) -> None:
        """Close the half that we write. Raises OSError, RuntimeError."""
        self.writer.write_eof()

    def abort(self) -> None:
        """Close the socket."""
        self.writer.transport.abort()


class QueuedStream(ABC):
    """Frames over what can only be awaited, such as a WebSocket: they wait in memory until they are sent.

    When more than `most` bytes wait, the connection ends: the other end does not read. `drain` waits until at most
    `few` do.
    """

    def __init__(self, most: int, few: int = frames.BUFFERED) -> None:
        self._most, self._few = most, few
        self._waiting: deque[bytes] = deque()
        self._size, self._moved = 0, False
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._gone = self._finished = False
        self._sending = asyncio.get_running_loop().create_task(self._send())

    @abstractmethod
    async def _post(self, frame: bytes) -> None:
        """Send one frame. Raises OSError when the other end is gone."""

    @abstractmethod
    async def _close(self) -> None:
        """Close the connection in order. Raises OSError."""

    @abstractmethod
    def _cut(self) -> None:
        """Cut the connection."""

    def write(self, frame: bytes) -> None:
        """Send a frame, as soon as the other end reads."""
        if self._gone:
            return
        self._waiting.append(frame)
        self._size += len(frame)
        self._more.set()
        if self._size > self._most:
            self.abort()

    async def drain(self) -> None:
        """Wait until little waits. Raises ConnectionError."""
        while self._size > self._few and not self._gone:
            self._room.clear()
            await self._room.wait()
        if self._gone:
            raise ConnectionError("the other end is gone")

    def moves(self) -> bool:
        """Return whether frames wait, and some have left since this was last asked."""
        moved, self._moved = self._moved, False
        return moved and self._size > 0

    def finish(self) -> None:
        """Close the connection once all that waits is sent."""
        self._finished = True
        self._more.set()

    def abort(self) -> None:
        """End the connection at once. What waits is not sent."""
        self._gone = True
        self._room.set()
        self._sending.cancel()
        self._cut()

    async def _send(self) -> None:
        try:
            while self._waiting or not self._finished:
                while self._waiting:
                    frame = self._waiting.popleft()
                    await self._post(frame)
                    self._size -= len(frame)
                    self._moved = True
                    if self._size <= self._few:
                        self._room.set()
                if not self._finished:
                    self._more.clear()
                    await self._more.wait()
            await self._close()
        except OSError:
            pass  # `read` says so, too
        finally:
            self._gone = True
            self._room.set()
