"""Frames over a socket whose other end reads slowly, or not at all."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sendswitch.broker import streams
from sendswitch.broker.streams import SocketStream


async def connected() -> tuple[SocketStream, socket.socket]:
    """A stream, and the other end of it."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return SocketStream(*await asyncio.open_connection(sock=ours)), theirs


async def read(line: socket.socket, size: int) -> None:
    loop = asyncio.get_running_loop()
    while size > 0:
        size -= len(await loop.sock_recv(line, min(size, 100_000)))


async def test_it_moves_while_the_other_end_reads() -> None:
    stream, theirs = await connected()
    assert not stream.moves()
    for _ in range(20):
        stream.write(b"x" * 100_000)
    stream.moves()  # some are with the system
    assert not stream.moves()
    await read(theirs, 800_000)
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while not stream.moves():
            await asyncio.sleep(0.001)
    await read(theirs, 20 * 100_004 - 800_000)
    stream.moves()
    stream.write(b"ping")
    assert not stream.moves()  # it is with the system, and nothing waits
    stream.abort()
    theirs.close()


async def test_an_end_that_reads_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "WAITING", 1_000_000)
    stream, theirs = await connected()
    for _ in range(20):
        stream.write(b"x" * 100_000)
    assert stream.writer.is_closing()
    theirs.close()
