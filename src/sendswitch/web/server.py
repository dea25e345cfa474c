"""An HTTP server (uvicorn) in the node's event loop, with the node's sockets and without signal handlers of its own.

It serves WebSockets (RFC 6455) too, for an application that has a place for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

# Bytes that may wait in a WebSocket's transport for the client to read, pings that are answered while it does not, and
# fragments of a message.
WAITING, PINGS, FRAGMENTS = 64 * 1024, 100, 1_000


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the node."""
        yield


class _WebSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose application can end it at once (`scope["state"]["abort"]`). In order, it would wait for ever
    for a client that does not read.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": self.transport.abort}
        self._pings = 0
        # What waits here may wait in the memory of the application, too.
        self.transport.set_write_buffer_limits(WAITING)

    def handle_ping(self) -> None:
        """Answer a ping, unless the client sends them and does not read. On a slow line some come meanwhile."""
        self._pings = self._pings + 1 if self.transport.get_write_buffer_size() > 2 * WAITING else 0
        if self._pings > PINGS:
            self.transport.abort()
        else:
            super().handle_ping()

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment of a message. Empty ones have no bytes that would count."""
        if len(self.frames) >= FRAGMENTS:
            self.transport.abort()
            return
        super().handle_cont(event)


class WebServer:
    """One HTTP application on one socket. A message over a WebSocket has at most `message` bytes."""

    def __init__(self, app: Starlette, *, message: int = 0) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=3,
            server_header=False,
            ws=_WebSocket if message else "none",
            ws_max_size=message or 1,
            ws_ping_interval=None,  # the applications have signs of life of their own
            ws_per_message_deflate=False,  # each compressor would take memory, also while it is idle
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Bind and serve. Raises OSError when the address is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(1024)  # here, because only now a busy port is noticed
        except OSError:
            bound.close()
            raise
        self.port = bound.getsockname()[1]
        await self.serve(bound)

    async def serve(self, bound: socket.socket) -> None:
        """Serve on a socket that listens."""
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[bound]))

    async def stop(self) -> None:
        """Finish the requests in hand, then close."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
