"""A next hop that remembers what it got and misbehaves as told; our own server half in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Self

import uvloop

from sendswitch.bench.peers import free_port
from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply
from sendswitch.smtp.endpoint import Endpoint
from sendswitch.smtp.handler import Sink
from sendswitch.smtp.protocol.server import Limits
from sendswitch.smtp.server import Listener, Options
from sendswitch.testing import Inbox, MemorySink, Parcel


class _Slow(Inbox):
    """Answers after a delay, and with what `answer` says."""

    def __init__(self, hop: NextHop) -> None:
        super().__init__()
        self._hop = hop

    def recipient(self, recipient: object) -> Reply:
        address: str = recipient.recipient.address  # type: ignore[attr-defined]
        return self._hop.refuse.get(address, Reply(250, "2.1.5", "Ok"))

    def message(self, envelope: Envelope, sink: Sink) -> asyncio.Future[tuple[Reply, ...]]:
        assert isinstance(sink, MemorySink)
        return asyncio.get_running_loop().create_task(self._later(envelope, sink))

    async def _later(self, envelope: Envelope, sink: MemorySink) -> tuple[Reply, ...]:
        self._hop.at_once += 1
        self._hop.most_at_once = max(self._hop.most_at_once, self._hop.at_once)
        try:
            if self._hop.delay:
                await asyncio.sleep(self._hop.delay)
        finally:
            self._hop.at_once -= 1
        reply = self._hop.answer(bytes(sink.data))
        if reply.positive:
            self._hop.parcels.append(Parcel(envelope, bytes(sink.data)))
        return (reply,)


class NextHop:
    """Start it, tell it how to behave, look at `parcels`."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.parcels: list[Parcel] = []
        self.refuse: dict[str, Reply] = {}
        self.answer: Callable[[bytes], Reply] = lambda data: Reply(250, "2.0.0", "Ok: taken")
        self.delay = 0.0
        self.at_once = self.most_at_once = 0
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listener = Listener(_Slow(self), Options(host="next.example.test", limits=Limits(size=10**9)))
        await listener.start(Endpoint("127.0.0.1", self.port))
        self._ready.set()
        await self._stop.wait()
        await listener.stop(0.1)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


class Rude:
    """A raw next hop: `script` gets each connection's socket and does as it likes."""

    def __init__(self, script: Callable[[socket.socket], None]) -> None:
        self.port = free_port()
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self._script = script
        self.connections = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._script(connection)
            except OSError:
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
