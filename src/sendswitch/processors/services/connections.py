"""Shared clients of services: all pipelines of an event loop share them, because a thousand users must not mean a
thousand scans at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from sendswitch.mail.content import Content
from sendswitch.smtp.endpoint import parse_endpoint


class Closable(Protocol):
    """Holds connections."""

    async def aclose(self) -> None:
        """Close them."""
        ...


Client = TypeVar("Client", bound=Closable)


@dataclass(slots=True)
class _Shared(Generic[Client]):
    client: Client
    places: asyncio.Semaphore
    steps: int = 0
    uses: int = 0


# A loop's clients end with it; they are of no use to another.
CLIENTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Shared[Any]]] = WeakKeyDictionary()


class SharedClient(Generic[Client]):
    """A reference-counted handle to a shared client. At most `size` of the steps with the same key use the client at
    once.

    The first step makes the client, and the last one closes it, so that a step that is replaced finishes its work.
    """

    def __init__(self, make: Callable[[], Client], size: int, *key: Hashable) -> None:
        self._make, self._size, self._key = make, size, (*key, size)
        self._shared: _Shared[Client] | None = None
        self._released = False

    @property
    def client(self) -> Client | None:
        """Return the client, None until it is used."""
        return self._shared.client if self._shared else None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Client]:
        """Lend the client, in turn."""
        if self._shared is None:
            loop = asyncio.get_running_loop()
            here = CLIENTS.setdefault(loop, {})
            if self._key not in here:
                here[self._key] = _Shared(self._make(), asyncio.Semaphore(self._size))
            self._shared = here[self._key]
            self._shared.steps += 1
        shared = self._shared
        shared.uses += 1
        try:
            async with shared.places:
                yield shared.client
        finally:
            shared.uses -= 1
            if self._released and self._shared is shared:
                self._shared = None
                shared.steps -= 1
            await self._close_unused(shared)

    async def release(self) -> None:
        """Release the handle when its present uses have ended."""
        self._released = True
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.steps -= 1
            await self._close_unused(shared)

    async def _close_unused(self, shared: _Shared[Client]) -> None:
        if shared.steps == 0 and shared.uses == 0:
            here = CLIENTS[asyncio.get_running_loop()]
            if here.get(self._key) is shared:
                del here[self._key]
            await shared.client.aclose()


async def connect(address: str, who: str, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to host:port or unix:/path. A line of more than `limit` bytes is an error.

    Raises OSError with the name of the peer.
    """
    where = parse_endpoint(address)
    try:
        if where.path:
            return await asyncio.open_unix_connection(where.path, limit=limit)
        return await asyncio.open_connection(where.host, where.port, limit=limit)
    except OSError as error:
        raise OSError(f"{who} at {address} cannot be reached: {error.strerror or error}") from error


async def pieces(content: Content) -> AsyncIterator[bytes]:
    """Yield the content in pieces. A file is read outside the event loop."""
    if (data := content.whole()) is not None:
        yield data
        return
    read = content.chunks()
    while (piece := await asyncio.to_thread(next, read, None)) is not None:
        yield piece


async def write_while(answering: asyncio.Task[Any], writer: asyncio.StreamWriter, data: AsyncIterator[bytes]) -> None:
    """Write data until all is written or the answer begins, whichever comes first. Never raises a broken connection.

    A scanner says at once what it does not take, and closes: its words are worth more than our failed write, and they
    are lost with the connection unless `answering` reads meanwhile.
    """
    with suppress(ConnectionError, RuntimeError):  # the second is uvloop's word for a closed transport
        async for piece in data:
            if answering.done():
                return
            writer.write(piece)
            await writer.drain()


class Nothing:
    """A client without state: only the limit is shared."""

    async def aclose(self) -> None:
        """Do nothing: nothing is held."""
