"""Writing at the end of a turn of the event loop: the output of all connections goes out together.

A write wakes the peer, and a peer that was woken for one reply is asleep again before the next. When writes wait until
every socket that was readable in this turn has been read, they follow each other closely, the peer finds all of them
when it wakes, and both sides save most of the wake-ups. Nothing waits longer than the turn.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Flushable(Protocol):
    """A connection that has something to write."""

    def flush(self) -> None:
        """Write the pending output, if there is any and the connection is open."""
        ...


class Turn:
    """The connections that have something to write at the end of this turn of the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: list[Flushable] = []

    def add(self, connection: Flushable) -> None:
        """Have the connection's `flush` called at the end of this turn."""
        if not self._ready:
            self._loop.call_soon(self._end)
        self._ready.append(connection)

    def _end(self) -> None:
        ready, self._ready = self._ready, []
        for connection in ready:
            try:
                connection.flush()
            except Exception as error:  # one connection's trouble is not the others'
                self._loop.call_exception_handler({"message": "writing to a connection", "exception": error})
