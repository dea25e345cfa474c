"""A worker's end of a WebSocket to the web port of a node (RFC 6455)."""

from __future__ import annotations

import json
import logging
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from sendswitch.broker import frames
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.remote import Connect
from sendswitch.broker.streams import NODE, QueuedStream
from sendswitch.errors import Refused

# Where workers connect, below the URL of a node.
PATH = "/api/v1/work"
# Seconds for a connection to be made, and for the node to answer a ping.
PATIENCE, ALIVE = 15.0, 30.0
# Bytes that may wait for a node that does not read.
WAITING = 256 * 1024 * 1024
# The answers of a node to a key that it does not know.
NOT_ALLOWED = (401, 403)

# What goes wrong is in our log already, in our words.
logging.getLogger("websockets").setLevel(logging.CRITICAL)


def place_of(url: str) -> str:
    """Return the URL of the WebSocket. Raises ValueError for a URL over which the key could be read."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no URL such as https://mail.example")
    secure = parts.scheme in ("https", "wss")
    if not secure and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError(f"{url!r}: the key could be read on the way; use https")
    path = parts.path.rstrip("/")
    return parts._replace(scheme="wss" if secure else "ws", path=path if path.endswith(PATH) else path + PATH).geturl()


def connector(place: str, key: str, number: int = 1) -> Connect:
    """Return a function that connects to a node as the user to whom a key belongs.

    `number` is which of several nodes behind the place is meant.
    """

    async def connected() -> WebStream:
        try:
            line = await connect(
                place,
                additional_headers={"Authorization": f"Bearer {key}", NODE: str(number)},
                compression=None,
                max_size=frames.MAX_FRAME,
                max_queue=(4, 1),
                write_limit=frames.BUFFERED,
                open_timeout=PATIENCE,
                ping_interval=ALIVE / 2,
                ping_timeout=ALIVE,
                close_timeout=1.0,
            )
        except InvalidStatus as error:
            answer = error.response
            if answer.status_code in NOT_ALLOWED:
                raise Refused(_detail(answer.body) or f"the node answered {answer.status_code}") from error
            raise OSError(f"the node answered {answer.status_code}") from error
        except (InvalidHandshake, TimeoutError, EOFError) as error:
            raise OSError(str(error) or "no answer") from error
        return WebStream(line)

    return connected


def _detail(body: bytes | bytearray | None) -> str:
    try:
        return str(json.loads(body or b"{}")["detail"])[:500]
    except (ValueError, KeyError, TypeError):
        return ""


class WebStream(QueuedStream):
    """Frames as messages of a WebSocket (`broker.streams.Stream`)."""

    def __init__(self, line: ClientConnection) -> None:
        super().__init__(WAITING)
        self._line = line

    async def read(self) -> Frame | None:
        """Return the next frame. Raises BadFrame."""
        try:
            data = await self._line.recv()
        except ConnectionClosed:
            return None
        if isinstance(data, str):
            raise BadFrame("a message of text")
        return frames.decode(data)

    async def _post(self, frame: bytes) -> None:
        try:
            await self._line.send(frame)
        except ConnectionClosed as error:
            raise ConnectionError(str(error)) from error

    async def _close(self) -> None:
        await self._line.close()

    def _cut(self) -> None:
        self._line.transport.abort()
