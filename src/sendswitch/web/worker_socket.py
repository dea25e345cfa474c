"""The place in the web port where workers of users' own connect, with a key in the header Authorization.

A worker needs nothing but this one WebSocket (RFC 6455), which goes through address translation and proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from sendswitch import logs
from sendswitch.accounts.access_keys import PREFIX
from sendswitch.broker import frames
from sendswitch.broker.codec import MAX_OUTSIDE
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.streams import Login, QueuedStream, Stream

PATH = "/api/v1/work"
# Most bytes of a message from a worker.
MOST = MAX_OUTSIDE + 64 * 1024
# Most bytes of the fields of a frame from a worker.
FIELDS = 64 * 1024
# Bytes that may wait for a worker. One that reads so slowly is disconnected.
WAITING = 64 * 1024 * 1024
# Characters of a key; keys that are checked at once, and connections that wait for that.
LONGEST, AT_ONCE, MOST_WAITING = 200, 2, 100

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

    def __init__(self, workers: Workers, check: Check, *, alone: bool = True) -> None:
        """Take the server of workers. Unless it is alone, a worker is refused: it would serve one of several nodes."""
        self._workers, self._check, self._alone = workers, check, alone
        self._places, self._waiting = asyncio.Semaphore(AT_ONCE), 0

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
        await self._workers.serve(_WebStream(socket), login=login)

    async def _login(self, socket: HTTPConnection) -> tuple[int, str, Login | None]:
        """Return who is there, or the status and the reason of a refusal."""
        if not self._alone:
            return 403, "there are several nodes behind this address; connect over RabbitMQ: --broker", None
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
        if not self._workers.room_for(login):
            return 429, "there are too many workers already", None
        return 200, "", login


class _WebStream(QueuedStream):
    """Frames as messages of a WebSocket (`broker.streams.Stream`)."""

    def __init__(self, socket: WebSocket) -> None:
        super().__init__(WAITING)
        self._socket = socket

    async def read(self) -> Frame | None:
        """Return the next frame. Raises BadFrame for a message of text."""
        try:
            message = await self._socket.receive()
        except RuntimeError:  # it was closed meanwhile
            return None
        if message["type"] == "websocket.disconnect":
            return None
        if (data := message.get("bytes")) is None:
            raise BadFrame("a message of text")
        return frames.decode(data, FIELDS)

    async def _post(self, frame: bytes) -> None:
        try:
            await self._socket.send_bytes(frame)
        except (RuntimeError, WebSocketDisconnect) as error:
            raise ConnectionError("the worker is gone") from error

    async def _close(self) -> None:
        await self._socket.close()

    def _cut(self) -> None:
        self._socket.scope["state"]["abort"]()
