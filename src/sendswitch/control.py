"""Ask the running node: the client's side of the control socket (see `control`).

Asking where no node runs is no error: a node reads everything when it starts. What a node is asked and cannot do comes
back as the error it was there, with the same exit code.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from sendswitch.errors import InvalidConfiguration, NotFound, Refused, SendSwitchError, Temporary, in_words

NAME = "control"
MAX_LINE = 1024 * 1024

_ERRORS: dict[str, type[SendSwitchError]] = {kind.__name__: kind for kind in (NotFound, Refused, Temporary)}


def ask(data: Path, do: str, *, timeout: float = 30.0, **facts: Any) -> dict[str, Any] | None:
    """Ask the node in this data folder; None when none runs there.

    Raises what the node raised; Temporary when it does not answer within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout)
        try:
            with address_of(data) as address:
                line.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise Temporary(f"the node in {data} cannot be asked: {in_words(error)}") from error
        try:
            line.sendall(orjson.dumps({"do": do, **facts}) + b"\n")
            with line.makefile("rb") as answers:
                answer = answers.readline(MAX_LINE)
        except OSError as error:
            raise Temporary(f"the node in {data} does not answer: {in_words(error)}") from error
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


@contextmanager
def address_of(folder: Path) -> Iterator[str]:
    """Give the socket's path by way of an open folder. Such a path has at most 107 bytes; data folders have more."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)
