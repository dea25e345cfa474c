"""The place in the web port where workers of users' own connect, with a key in the header Authorization.

A worker needs nothing but this one WebSocket (RFC 6455), which goes through address translation and proxies.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from sendswitch import logs, unix_socket
from sendswitch.accounts.access_keys import PREFIX
from sendswitch.broker import frames
from sendswitch.broker.codec import MAX_OUTSIDE
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.streams import NODE, OWN_MOST, Login, QueuedStream, Stream

PATH = "/api/v1/work"
# Most bytes of a message from a worker.
MOST = MAX_OUTSIDE + 64 * 1024
# Most bytes of the fields of a frame from a worker.
FIELDS = 64 * 1024
# Bytes that may wait for a worker. One that reads so slowly is disconnected.
WAITING = 64 * 1024 * 1024
# Of a worker that is passed on, bytes that may wait before no more are read from the other node; seconds for some of
# them to leave, and for the other node to take the last ones of a worker that has gone.
PASSED, PATIENCE, GOODBYE = 64 * 1024, 60.0, 10.0
# Characters of a key; keys that are checked at once, and connections that wait for that.
LONGEST, AT_ONCE, MOST_WAITING = 200, 2, 100

NO_OTHERS: Mapping[int, Path] = MappingProxyType({})

Check = Callable[[str], Awaitable[tuple[int, str] | None]]
"""Returns the number of a key and its user's address, None for no key. Raises Temporary."""


class Workers(Protocol):
    """The server of workers (`broker.worker_server`)."""

    def room_for(self, login: Login) -> bool:
        """Return whether a user may have one more worker."""
        ...

    async def serve(self, stream: Stream, *, login: Login) -> None:
        """Serve one worker until it goes."""
        ...


class WorkerSocket:
    """The application behind PATH."""

    def __init__(self, workers: Workers, check: Check, others: Mapping[int, Path] | None = NO_OTHERS) -> None:
        """Take the server of workers, and the sockets of the other nodes of this machine by their numbers: a worker
        that means one of them is passed on. None where another node does that.
        """
        self._workers, self._check, self._others = workers, check, others
        self._places, self._waiting = asyncio.Semaphore(AT_ONCE), 0
        self._passed: Counter[tuple[Path, str]] = Counter()

    def route(self) -> WebSocketRoute:
        """Return its place."""
        return WebSocketRoute(PATH, self._serve)

    async def _serve(self, socket: WebSocket) -> None:
        status, why, login = await self._login(socket)
        if login is None:
            logs.worker_refused(client=socket.client.host if socket.client else "", why=why)
            await socket.send_denial_response(JSONResponse({"status": status, "detail": why}, status))
            return
        await socket.accept()
        if (other := self._meant(socket)) is None:
            await self._workers.serve(_WebStream(socket, frames.BUFFERED), login=login)
            return
        self._passed[other, login.address] += 1
        try:
            await _pass_on(_WebStream(socket, PASSED), other, login)
        finally:
            self._passed[other, login.address] -= 1

    def _meant(self, socket: HTTPConnection) -> Path | None:
        """Return the socket of the other node that a worker means, None for this one. Raises KeyError."""
        number = socket.headers.get(NODE, "1")
        return None if number == "1" else {str(n): path for n, path in (self._others or {}).items()}[number]

    async def _login(self, socket: HTTPConnection) -> tuple[int, str, Login | None]:
        """Return who is there, or the status and the reason of a refusal."""
        if self._others is None:
            return 403, "this is one of several nodes; connect to the first one's web port", None
        if self._others and NODE not in socket.headers:
            return 403, "there are several nodes behind this address, which this worker does not know; update it", None
        try:
            other = self._meant(socket)
        except KeyError:
            return 409, "there is no node of this number now", None
        scheme, _, key = socket.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.startswith(PREFIX) or len(key) > LONGEST:
            return 401, "a worker sends its key: Authorization: Bearer ssk_...", None
        if self._waiting >= MOST_WAITING:
            return 503, "too many connect at once; try again", None
        self._waiting += 1
        try:
            async with self._places:
                found = await self._check(key)
        except Exception as error:
            logs.failed("checking a key", error=error)
            return 503, "keys cannot be checked now; try again", None
        finally:
            self._waiting -= 1
        if found is None:
            return 401, "this key is not valid, or not for workers; `sendswitch key add USER` makes one", None
        login = Login(found[1], found[0])
        room = self._workers.room_for(login) if other is None else self._passed[other, login.address] < OWN_MOST
        if not room:
            return 429, "there are too many workers already", None
        return 200, "", login


async def _pass_on(worker: _WebStream, other: Path, login: Login) -> None:
    """Pass the frames of a worker on to another node of this machine, and back, until one of both goes."""
    try:
        with unix_socket.address_of(other) as address:
            reader, writer = await asyncio.open_unix_connection(address)
    except OSError:  # it is being started again; the worker calls again
        worker.abort()
        return
    writer.write(frames.with_length(frames.encode("login", address=login.address, key=login.key)))
    back = asyncio.ensure_future(_pass_back(reader, worker))
    there = asyncio.ensure_future(_pass_there(worker, writer))
    try:
        await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        if there.done() and there.exception() is None:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            await _ended(reader)  # its last answers are on their way
    finally:
        there.cancel()
        back.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
        writer.transport.abort()
        worker.abort()


async def _ended(reader: asyncio.StreamReader) -> None:
    """Wait until the other node has read everything and closes, GOODBYE at most."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(GOODBYE):
            while await reader.read(PASSED):
                pass


async def _pass_there(worker: _WebStream, writer: asyncio.StreamWriter) -> None:
    """Pass on what a worker says until it goes. Raises BadFrame, OSError."""
    while (body := await worker.read_encoded()) is not None:
        frames.decode(body, FIELDS)  # the other node trusts what comes over its socket
        writer.write(frames.with_length(body))
        await writer.drain()
    writer.write_eof()


async def _pass_back(reader: asyncio.StreamReader, worker: _WebStream) -> None:
    """Pass on what the other node says, no faster than the worker reads. Raises BadFrame, OSError."""
    while (body := await frames.read_encoded(reader)) is not None:
        worker.write(body)
        while not await _drained(worker):
            if not worker.moves():
                raise ConnectionError("the worker reads nothing")


async def _drained(worker: _WebStream) -> bool:
    """Return whether little waits for a worker within PATIENCE. Raises ConnectionError."""
    try:
        async with asyncio.timeout(PATIENCE):
            await worker.drain()
    except TimeoutError:
        return False
    return True


class _WebStream(QueuedStream):
    """Frames as messages of a WebSocket (`broker.streams.Stream`)."""

    def __init__(self, socket: WebSocket, few: int) -> None:
        super().__init__(WAITING, few)
        self._socket = socket

    async def read(self) -> Frame | None:
        """Return the next frame. Raises BadFrame for a message of text."""
        body = await self.read_encoded()
        return None if body is None else frames.decode(body, FIELDS)

    async def read_encoded(self) -> bytes | None:
        """Return the next frame as it was encoded. Raises BadFrame for a message of text."""
        try:
            message = await self._socket.receive()
        except RuntimeError:  # it was closed meanwhile
            return None
        if message["type"] == "websocket.disconnect":
            return None
        if (data := message.get("bytes")) is None:
            raise BadFrame("a message of text")
        return bytes(data)

    async def _post(self, frame: bytes) -> None:
        try:
            await self._socket.send_bytes(frame)
        except (RuntimeError, WebSocketDisconnect) as error:
            raise ConnectionError("the worker is gone") from error

    async def _close(self) -> None:
        await self._socket.close()

    def _cut(self) -> None:
        self._socket.scope["state"]["abort"]()
