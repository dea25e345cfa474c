"""The asyncio shell over the client half: one connection to a next hop, and a pool of them.

The pool gives idle connections back within seconds: the re-injection service of Postfix has few processes
(maxproc), each connection holds one, and an idle pool can starve the very mail it is kept for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass

from sendswitch import metrics
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply, printable
from sendswitch.smtp.address import Endpoint
from sendswitch.smtp.protocol.client import (
    LOST,
    ClientConnection,
    Event,
    Failed,
    Finished,
    Outcome,
    Ready,
    SendContent,
    StartTls,
    State,
)
from sendswitch.smtp.protocol.content import DotEncoder


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to speak to a next hop. Times in seconds; the defaults are Postfix's smtp_*_timeout."""

    helo: str
    lmtp: bool = False
    tls: str = "off"
    context: ssl.SSLContext | None = None
    connect: float = 30.0
    command: float = 300.0
    content: float = 600.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """The outcomes of one transaction, and what the next hop is."""

    outcomes: tuple[Outcome, ...]
    dsn: bool = False


class Connection(asyncio.Protocol):
    """One connection. Use `connect`, then `deliver` one message at a time, then `close`."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._machine = ClientConnection(options.helo, lmtp=options.lmtp, tls=options.tls)
        self._transport: asyncio.Transport | None = None
        self._events: deque[Event | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._answered = False
        self._whole = True
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.deliveries = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's transports are not asyncio's classes

    def data_received(self, data: bytes) -> None:
        self._answered = True
        self._machine.receive_data(data)
        while (event := self._machine.next_event()) is not None:
            self._events.append(event)
        self._flush()
        if self._events or self._machine.state is State.CLOSED:
            self._wake()
        if self._machine.state is State.CLOSED:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        event = self._machine.lost()
        if event is not None:
            self._events.append(event)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the pool calls

    async def connect(self, endpoint: Endpoint) -> Failed | None:
        """Connect and say EHLO. Gives what failed, or None when messages can be delivered."""
        try:
            return await self._connect(endpoint)
        except asyncio.CancelledError:
            self.abort()
            raise

    async def _connect(self, endpoint: Endpoint) -> Failed | None:
        try:
            async with asyncio.timeout(self._options.connect):
                if endpoint.path:
                    await self._loop.create_unix_connection(lambda: self, endpoint.path)
                else:
                    await self._loop.create_connection(lambda: self, endpoint.host, endpoint.port)
        except (OSError, TimeoutError) as error:
            what = "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error))
            return Failed(Reply(451, "4.4.1", printable(f"Cannot connect to {endpoint}: {what}")))
        try:
            async with asyncio.timeout(self._options.command):
                event = await self._next()
                if isinstance(event, StartTls):
                    event = await self._start_tls()
        except TimeoutError:
            event = self._machine.lost(Reply(451, "4.4.2", f"Timed out while greeting {endpoint}"))
        if isinstance(event, Ready):
            return None
        self.close()
        return event if isinstance(event, Failed) else Failed(LOST)

    async def _start_tls(self) -> Event | None:
        assert self._transport is not None
        context = self._options.context or ssl.create_default_context()
        try:
            transport = await self._loop.start_tls(self._transport, self, context)
        except (OSError, ConnectionError) as error:
            return self._machine.lost(Reply(451, "4.7.5", printable(f"TLS with the next hop failed: {error}")))
        self._transport = transport
        self._machine.tls_started()
        self._flush()
        return await self._next()

    async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        """One transaction. Never raises for what the server does: every recipient gets an outcome."""
        self._answered = False
        self.deliveries += 1
        try:
            return await self._deliver(envelope, content, unanimous)
        except asyncio.CancelledError:
            self.abort()
            raise

    async def _deliver(self, envelope: Envelope, content: Content, unanimous: bool) -> Delivered:
        first = self._machine.send(envelope, content.size, content.whole(), unanimous=unanimous)
        if first is None:
            self._flush()
        self._wait_until(self._options.command)
        try:
            event = first or await self._next()
            if isinstance(event, SendContent):
                self._wait_until(self._options.content)
                await self._write(content)
                event = await self._next()
                if not self._whole:
                    self.close()  # the answer came early, and half a message is under way
        except OSError as error:
            # Our own copy cannot be read: cut the line, so that the server cannot take half of it for all.
            event = self._machine.lost(Reply(451, "4.3.0", printable(f"Cannot read the message: {error.strerror}")))
            self.close()
        self._deadline = 0.0
        if not isinstance(event, Finished):
            self.close()
            return Delivered((Outcome(LOST),) * len(envelope.recipients))
        return Delivered(event.outcomes, "DSN" in self._machine.extensions)

    @property
    def usable(self) -> bool:
        """True when another message can be delivered."""
        return self._transport is not None and self._machine.state is State.READY

    @property
    def stale(self) -> bool:
        """True when the last transaction met a connection that the server had closed while it was idle.

        Nothing at all was answered, not even to MAIL, so the transaction is made again on a new connection.
        """
        return self.deliveries > 1 and not self._answered and self._transport is None

    def quit(self) -> None:
        """Say QUIT and close."""
        self._machine.quit()
        self._flush()
        self.close()

    def abort(self) -> None:
        """Cut the connection: the server must not take what it has for all."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close; what was written still goes out."""
        if self._transport is not None:
            self._transport.close()

    # Inside

    def _wait_until(self, seconds: float) -> None:
        """Set the time for what comes next. One timer a connection, moved when it fires."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        if not self._deadline or self._transport is None:
            return
        left = self._deadline - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check_time)
            return
        event = self._machine.lost(Reply(451, "4.4.2", "Timed out waiting for the next hop"))
        if event is not None:
            self._events.append(event)
        self._transport.abort()
        self._wake()

    async def _write(self, content: Content) -> None:
        encoder = DotEncoder()
        pieces = content.chunks()
        self._whole = False
        while self._transport is not None and not self._events:
            piece = await asyncio.to_thread(next, pieces, None)
            if piece is None:
                self._whole = True
                break
            if self._transport is not None:
                self._transport.write(encoder.feed(piece))
                await self._writable.wait()
        if self._whole and self._transport is not None:
            self._machine.content_sent()
            self._transport.write(encoder.end())

    def _flush(self) -> None:
        if self._transport is not None and (data := self._machine.data_to_send()):
            self._transport.write(data)

    async def _next(self) -> Event | None:
        while not self._events and self._machine.state is not State.CLOSED:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft() if self._events else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """Connections to one next hop, at most `size`, each given back after `idle` seconds without work."""

    def __init__(self, endpoint: Endpoint, options: ClientOptions, *, size: int, idle: float) -> None:
        self.endpoint, self._options, self._size, self._keep = endpoint, options, size, idle
        self._idle: list[tuple[Connection, float]] = []
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._open = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """Connections open or being opened."""
        return self._open + len(self._idle)

    async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        """One transaction over some connection; waits while all are in use."""
        while self._open >= self._size:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_one()  # it was our turn: it is somebody else's now
                raise
        self._open += 1
        try:
            while True:
                connection = self._reuse()
                if connection is None:
                    return await self._deliver_new(envelope, content, unanimous)
                result = await connection.deliver(envelope, content, unanimous=unanimous)
                if connection.stale:
                    continue
                self._give_back(connection)
                return result
        finally:
            self._open -= 1
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _deliver_new(self, envelope: Envelope, content: Content, unanimous: bool) -> Delivered:
        connection = Connection(self._options)
        failed = await connection.connect(self.endpoint)
        if failed is not None:
            metrics.NEXT_HOP_CONNECT_FAILURES.inc()
            return Delivered((Outcome(failed.reply),) * len(envelope.recipients))
        result = await connection.deliver(envelope, content, unanimous=unanimous)
        self._give_back(connection)
        return result

    def _reuse(self) -> Connection | None:
        # The one used last, so that those not needed grow old and go.
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def _give_back(self, connection: Connection) -> None:
        if not connection.usable:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        self._idle.append((connection, loop.time()))
        if self._timer is None:
            self._timer = loop.call_later(self._keep, self._expire)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = None
        while self._idle and self._idle[0][1] + self._keep <= now + 0.01:
            self._idle.pop(0)[0].quit()
        if self._idle:
            due = self._idle[0][1] + self._keep - now
            self._timer = asyncio.get_running_loop().call_later(due, self._expire)

    async def check(self) -> Reply | None:
        """Connect and greet once. Gives what failed, or None when the next hop answers."""
        connection = Connection(self._options)
        failed = await connection.connect(self.endpoint)
        connection.quit()
        return failed.reply if failed else None

    def close(self) -> None:
        """Close what is idle."""
        if self._timer is not None:
            self._timer.cancel()
        while self._idle:
            self._idle.pop()[0].quit()
