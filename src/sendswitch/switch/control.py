"""The node's ear for commands: a unix socket in the data folder, one JSON line each way.

The spool and the database are the truth and carry what a command changed; `look` only says that there is something to
be seen, so that nothing polls. Asking where no node runs is no error: a node reads everything when it starts. What a
node is asked and cannot do comes back as the error it was there, with the same exit code.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from sendswitch import logs
from sendswitch.errors import InvalidConfiguration, NotFound, Refused, SendSwitchError, Temporary

NAME = "control"
MAX_LINE = 1024 * 1024

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Does what a command asks; gives facts. Raises SendSwitchError."""

_ERRORS: dict[str, type[SendSwitchError]] = {kind.__name__: kind for kind in (NotFound, Refused, Temporary)}


def ask(data: Path, do: str, *, timeout: float = 30.0, **facts: Any) -> dict[str, Any] | None:
    """Ask the node in this data folder; None when none runs there.

    Raises what the node raised; Temporary when it does not answer within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout)
        try:
            with _address(data) as address:
                line.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise Temporary(f"the node in {data} cannot be asked: {error.strerror}; be root or its user") from error
        try:
            line.sendall(orjson.dumps({"do": do, **facts}) + b"\n")
            with line.makefile("rb") as answers:
                answer = answers.readline(MAX_LINE)
        except OSError as error:
            raise Temporary(f"the node in {data} does not answer: {error}") from error
    if not answer:
        raise Temporary(f"the node in {data} ended while it was asked")
    told: dict[str, Any] = orjson.loads(answer)
    if "error" in told:
        if told["error"] == InvalidConfiguration.__name__:
            raise InvalidConfiguration(list(told["problems"]))
        raise _ERRORS.get(told["error"], SendSwitchError)("\n".join(told["problems"]))
    return told


def ring(data: Path) -> bool:
    """Tell the node in this data folder to look again; False when none is running or it does not listen."""
    try:
        return ask(data, "look", timeout=5.0) is not None
    except SendSwitchError:
        return False


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
        with _address(data) as address:
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


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The socket's path by way of an open folder: such a path may have 107 bytes only, and data folders are longer."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)
