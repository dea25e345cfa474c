"""The control socket: a unix socket in the data folder where a node answers commands, one JSON line each way.

The spool and the database are the truth and carry what a command changed; `look` only says that there is something to
be seen, so that nothing polls. `ask` is the client's side.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from sendswitch import logs
from sendswitch.control import MAX_LINE, NAME, address_of
from sendswitch.errors import InvalidConfiguration, Refused, SendSwitchError

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Does what a command asks; gives facts. Raises SendSwitchError."""


class Control:
    """Answers commands, one a connection."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._server: asyncio.Server | None = None

    async def listen(self, data: Path) -> None:
        """Begin to listen; what a crashed node left of its socket is replaced."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.setblocking(False)
        with suppress(FileNotFoundError):
            (data / NAME).unlink()
        with address_of(data) as address:
            line.bind(address)
        (data / NAME).chmod(0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=line, limit=MAX_LINE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(await reader.readline())
            writer.write(orjson.dumps(answer, default=str) + b"\n")
            await writer.drain()
        except (OSError, ValueError):
            return  # who asked has gone
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            asked = orjson.loads(line)
            handler = self._handlers.get(asked.get("do"))
            if handler is None:
                raise Refused(f"this node knows no {asked.get('do')!r}; is it an older version?")
            return dict(await handler(asked))
        except InvalidConfiguration as error:
            return {"error": type(error).__name__, "problems": error.problems}
        except SendSwitchError as error:
            return {"error": type(error).__name__, "problems": [str(error)]}
        except Exception as error:
            logs.failed("a command", error=error)
            return {"error": "SendSwitchError", "problems": [f"{type(error).__name__}: {error}"]}

    def close(self, data: Path) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            with suppress(FileNotFoundError):
                (data / NAME).unlink()
