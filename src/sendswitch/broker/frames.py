"""The frames between a node and a worker in another process: fields as one line of JSON, then bytes.

    worker → node   login    {address, key}                       (socket) another node passes a user's worker on
                    hello    {format, name, places, queues}       first; `places` is how many tasks it takes at once
                    ready    {}                                   has taken the first settings, and wants tasks
                    answer   {token} and an answer                ends a lease (`codec.encode_answer`)
                    back     {token}                              ends a lease: another worker may have the task
                    discard  {token}                              ends a lease without an answer
                    fetch    {token}                              asks for content that did not come with the task
                    call     {id, name, arguments}                asks a service of the node
                    stop     {}                                   wants no more tasks
                    pong     {}                                   answers a ping
                    lost     {token}                              (RabbitMQ) the task came after another worker had it
                    working  {name, places, done, tokens}         (RabbitMQ) says once in a while what it has
    node → worker   welcome  {settings}                           answers hello, and comes again when settings change
                    task     {} and a task                        begins a lease (`codec.encode_task`)
                    content  {token, last} and bytes              a piece of content; {token, failed} for none
                    result   {id, result} or {id, error, errors}  answers a call
                    stopped  {}                                   answers stop: no task comes any more
                    ping     {}                                   wants a pong: a worker that is silent hangs

On a stream each frame has its length before it, four bytes in network order. In RabbitMQ each frame is a message; only
a task is one without a frame.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from sendswitch.errors import SendSwitchError

# The format of the frames. A node refuses a worker of another.
FORMAT = 1
# Most bytes of a frame: content that comes with its task, an answer, or the kept lists.
MAX_FRAME = 64 * 1024 * 1024
# Bytes of content that come with the task; more is fetched, in pieces of this size at most.
INLINE = 256 * 1024
# Bytes that may wait to be read at the other end before the writer waits.
BUFFERED = 1024 * 1024

_LENGTH = struct.Struct("!I")


class BadFrame(SendSwitchError):
    """The other end sent something that is no frame, or none that may come now."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its kind, its other fields, and its bytes."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""

    def get(self, name: str, kind: type[Any]) -> Any:
        """Return a field of this very type. Raises BadFrame."""
        value = self.fields.get(name)
        if type(value) is not kind:
            raise BadFrame(f"{self.kind}: {name} is {value!r:.100}, no {kind.__name__}")
        return value


def encode(kind: str, data: bytes = b"", /, **fields: Any) -> bytes:
    """Return a frame as bytes."""
    return orjson.dumps({"kind": kind} | fields) + b"\n" + data


def decode(body: bytes, most: int = MAX_FRAME) -> Frame:
    """Return the frame that `encode` encoded, with fields of `most` bytes. Raises BadFrame."""
    line, _, data = body.partition(b"\n")
    if len(line) > most:
        raise BadFrame(f"fields of {len(line)} bytes; at most {most} are read")
    try:
        fields = orjson.loads(line)
    except ValueError as error:
        raise BadFrame(f"no frame: {error}") from error
    if not isinstance(fields, dict) or not isinstance(kind := fields.pop("kind", None), str):
        raise BadFrame("a frame has a kind")
    return Frame(kind, fields, data)


def with_length(body: bytes) -> bytes:
    """Return a frame as it goes over a stream. Raises BadFrame when it is too large."""
    if len(body) > MAX_FRAME:
        raise BadFrame(f"a frame of {len(body)} bytes; at most {MAX_FRAME} are sent")
    return _LENGTH.pack(len(body)) + body


def digest(settings: Mapping[str, Any]) -> str:
    """Return a text that is another one for other settings."""
    return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


async def read(reader: asyncio.StreamReader) -> Frame | None:
    """Return the next frame of a stream, None at its end. Raises BadFrame, OSError."""
    body = await read_encoded(reader)
    return None if body is None else decode(body)


async def read_encoded(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next frame of a stream as it was encoded, None at its end. Raises BadFrame, OSError."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise BadFrame(f"a frame of {length} bytes; at most {MAX_FRAME} are read")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
