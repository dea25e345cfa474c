"""The processes that read strangers' content for the node: one nursery, and the readers that it forks.

The nursery has loaded what readers need and reads no mail, so that a reader is there in milliseconds and shares its
memory. A reader has one message at a time, a limit to its memory, and no secret of the node; it can be killed at any
moment, and only the message that it has is affected.

The nursery is asked on standard input, a unix socket: each byte comes with the socket of a new reader, and the answer
is its process number. A reader is asked on that socket: a line of JSON, then as many bytes as it says.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from sendswitch.config.load import validate
from sendswitch.mail.content import Content, InFile, InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.mime import reader as _mime  # noqa: F401 - loaded before the fork
from sendswitch.processors import base, registry
from sendswitch.processors.hosting.wire import context_from_json
from sendswitch.processors.services.payload import described

# Pipelines' steps that a reader keeps ready.
KEPT = 200
# Bytes of stack for the thread that watches the socket.
STACK = 256 * 1024
# Bytes of an answer; a webhook's may have a whole message in it.
LONGEST = 256 * 1024 * 1024


@lru_cache(maxsize=KEPT)
def _step(use: str, options: bytes) -> base.Reads:
    kind = registry.find(use)
    made = kind(validate(kind.Options, orjson.loads(options), use, {}))
    if not isinstance(made, base.Reads):
        raise TypeError(f"{use} reads nothing")
    return made


@lru_cache(maxsize=1)
def _mail(raw: bytes, path: str) -> Mail:
    """Return the message; the same one when it is asked about for its next recipient."""
    content: Content = InFile(Path(path), os.stat(path).st_size) if path else InMemory(raw)
    return Mail(content)


def _answer(call: dict[str, Any], raw: bytes) -> dict[str, Any]:
    try:
        mail = _mail(raw, call["path"])
        if call["use"] == "findings":
            return {"read": [(finding.kind, finding.text) for finding in mail.findings]}
        context = context_from_json(call["context"])
        if call["use"] == "described":
            return {"read": described(mail, context, thin=call["thin"])}
        read = _step(call["use"], orjson.dumps(call["options"])).read(mail, context)
        return {"read": read, "notes": context.notes}
    except MemoryError:
        return {"memory": True}
    except Exception as error:
        return {"error": str(error) or type(error).__name__}


def _serve(stream: BinaryIO, out: socket.socket) -> None:
    while line := stream.readline():
        call = orjson.loads(line)
        answer = orjson.dumps(_answer(call, stream.read(call["size"])), default=str)
        out.sendall(struct.pack("<Q", len(answer)) + answer)


def _end_with_asker(line: socket.socket) -> None:
    """End this process when the other end of its socket is closed, in the middle of a message too."""
    watched = select.poll()
    watched.register(line, select.POLLRDHUP)
    watched.poll()
    os._exit(1)


def _limit(memory: int) -> None:
    """Allow `memory` bytes more than there are."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _nursery(memory: int) -> None:
    """Fork readers until the node closes the socket."""
    for name in registry.names():
        if name in base.READING:
            registry.find(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    asked = socket.socket(fileno=0)
    while True:
        message, handles, _, _ = socket.recv_fds(asked, 1, 1)
        if not message:
            return
        child = os.fork()
        if child == 0:
            asked.close()
            mine = socket.socket(fileno=handles[0])
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _limit(memory)
            threading.stack_size(STACK)
            threading.Thread(target=_end_with_asker, args=(mine,), daemon=True).start()
            _serve(mine.makefile("rb"), mine)
            os._exit(0)
        for handle in handles:
            os.close(handle)
        asked.sendall(struct.pack("<Q", child))


if __name__ == "__main__":
    _nursery(int(sys.argv[1]))
