"""One connection to a next hop: the asyncio shell over the client half.

Theory of operation. A `Job` is one message for the next hop, which the pool gives to a connection that is free. While
all are in use, a connection that has just written a message's content sends the next job's commands along with it, so
that a transaction costs one write and one read. Everything happens in the callbacks of the socket; only large content
needs a task, which writes it.

Rules:
1. A job ends with one result. It is done on another connection when the server took none of it for sure: it was sent
   ahead and never began, or a connection that was used before went, or said 421, before the content was out. In the
   second case the other connection is a new one, and what happens there counts.
2. A cancelled job's connection is cut, so that the server cannot take what it has for all; a job that was sent ahead
   is cut off when its turn comes, not while another's reply is due.
3. Where TLS may be used and fails, mail goes in clear text over another connection (RFC 7435). Where it is required it
   never does.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sendswitch import logs
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply, printable
from sendswitch.smtp.endpoint import Endpoint
from sendswitch.smtp.protocol.client import (
    LOST,
    ClientConnection,
    ClientState,
    Event,
    Failed,
    Finished,
    Outcome,
    Ready,
    SendContent,
    StartTls,
)
from sendswitch.smtp.protocol.content import DotEncoder

if TYPE_CHECKING:
    from sendswitch.smtp.pool import Pool

# Seconds in which QUIT must be out; a server that reads nothing would keep the socket for ever.
QUIT_LIMIT = 5.0
_TCP = (socket.AF_INET, socket.AF_INET6)
OUR_ERROR = Reply(451, "4.3.0", "Error: the message could not be handed on, see the log")


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The settings for a next hop. Times in seconds; the defaults are Postfix's smtp_*_timeout."""

    helo: str
    lmtp: bool = False
    tls: str = "off"
    context: ssl.SSLContext | None = None
    connect: float = 30.0
    command: float = 300.0
    content: float = 600.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """The outcomes of one transaction, with the kind of the next hop: whether it sends reports, or is the mailbox
    itself.
    """

    outcomes: tuple[Outcome, ...]
    dsn: bool = False
    final: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """One message for the next hop: it waits, or is under way on `connection`."""

    envelope: Envelope
    content: Content
    data: bytes | None  # the content, when it is in memory
    unanimous: bool
    result: asyncio.Future[Delivered]
    connection: Connection | None = None
    returned: bool = False  # a connection gave it back


class Connection(asyncio.Protocol):
    """One connection. `connect`, then `start` a job; `owner` hears when it is free, closed, or returns a job."""

    def __init__(self, options: ClientOptions, owner: Pool | None = None) -> None:
        self._options, self._owner = options, owner
        self._loop = asyncio.get_running_loop()
        self._machine = ClientConnection(options.helo, lmtp=options.lmtp, tls=options.tls)
        self._transport: asyncio.Transport | None = None
        self._tcp: socket.socket | None = None
        self._job: Job | None = None
        self._ahead: Job | None = None
        self.used = False  # a transaction ended on it
        self.without_tls = False  # TLS failed, and the server may be spoken to without it
        self._greeting: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's transports are not asyncio's classes
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family in _TCP:
            # A handle of our own: uvloop's makes another socket object for each option that is set.
            with suppress(OSError):
                self._tcp = connected.dup()

    def data_received(self, data: bytes) -> None:
        machine, ready = self._machine, False
        machine.receive_data(data)
        while (event := machine.next_event()) is not None:
            self._take(event)
            ready = True
        if machine.can_send_ahead and self._owner is not None and (job := self._owner.next_ahead()) is not None:
            self._send_ahead(job)
        if machine.only_waits:
            self._acknowledge()
        self._flush_soon()
        if machine.content_is_out:
            self._deadline = self._loop.time() + self._options.content
        elif machine.state is ClientState.CLOSED:
            self._give_back_ahead()
            self.abort()
        elif ready and self._owner is not None and self.usable:
            self._owner.free(self)

    def _acknowledge(self) -> None:
        """Send the ACK for the data read now. Linux would send it up to 40 ms later.

        A server with Nagle's algorithm that writes its replies one by one (Postfix behind BDAT) waits for it.
        """
        if self._tcp is not None:
            with suppress(OSError):  # the connection may have been cut
                self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _let_go(self) -> None:
        """Close our own handle, or the connection would stay open although the transport has closed its own."""
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._let_go()
        self._take(self._machine.lost())
        if self._timer is not None:
            self._timer.cancel()
        self._give_back_ahead()
        if self._job is not None:  # cannot be; but a job without an end would hold its message for ever
            job, self._job = self._job, None
            self._end(job, Finished((Outcome(LOST, uncertain=True),) * len(job.envelope.recipients)))
        self._writable.set()
        self._wake()
        if self._owner is not None:
            self._owner.gone(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # The greeting

    async def connect(self, endpoint: Endpoint) -> Failed | None:
        """Connect and say EHLO. Return the failure, None when messages can be delivered."""
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
                event = await self._greeted()
                if isinstance(event, StartTls):
                    event = await self._start_tls(endpoint)
        except TimeoutError:
            if self._machine.greeted:  # in the same turn; a job may be under way already
                return None
            self._tls_failed()
            event = self._machine.lost(Reply(451, "4.4.2", f"Timed out while greeting {endpoint}"))
        if isinstance(event, Ready):
            return None
        self.close()
        return event if isinstance(event, Failed) else Failed(LOST)

    async def _start_tls(self, endpoint: Endpoint) -> Event | None:
        assert self._transport is not None
        context = self._options.context or ssl.create_default_context()
        try:
            name = endpoint.host or self._options.helo  # a socket in the file system has no name but ours
            transport = await self._loop.start_tls(self._transport, self, context, server_hostname=name)
        except (OSError, ConnectionError) as error:
            self._tls_failed()
            return self._machine.lost(Reply(451, "4.7.5", printable(f"TLS with the next hop failed: {error}")))
        self._transport = transport
        self._machine.tls_started()
        self.flush()
        return await self._greeted()

    def _tls_failed(self) -> None:
        self.without_tls = self._machine.state is ClientState.TLS and self._options.tls == "may"

    async def _greeted(self) -> Event | None:
        while not self._greeting and self._machine.state is not ClientState.CLOSED:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._greeting.popleft() if self._greeting else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Jobs

    @property
    def usable(self) -> bool:
        """Return whether a job can be started."""
        return self._transport is not None and self._job is None and self._machine.state is ClientState.READY

    def start(self, job: Job) -> None:
        """Begin a job on a usable connection. Its result comes, or `owner` gets it back."""
        job.connection, self._job = self, job
        try:
            event = self._machine.send(self._fitting(job), job.content.size, job.data, unanimous=job.unanimous)
        except Exception as error:
            self._job = None
            self._cannot_say(job, error)
            return
        self._wait_until(self._options.content if self._machine.content_is_out else self._options.command)
        self._take(event)
        self._flush_soon()

    def _fitting(self, job: Job) -> Envelope:
        """Return the job's envelope, without extensions that this server lacks and the content does not need.

        For content in a file the sender's declaration counts (RFC 6152); only its header is read.
        """
        envelope, offered = job.envelope, self._machine.extensions
        if envelope.body == "8BITMIME" and "8BITMIME" not in offered and job.data is not None and job.data.isascii():
            envelope = replace(envelope, body="")
        if envelope.smtputf8 and "SMTPUTF8" not in offered and job.content.head().isascii():
            envelope = replace(envelope, smtputf8=False)
        return envelope

    def cancel(self, job: Job) -> None:
        """Cancel a job whose result is no longer wanted (rule 2)."""
        if self._job is job:
            self.abort()

    def _send_ahead(self, job: Job) -> None:
        assert job.data is not None
        try:
            event = self._machine.send_ahead(self._fitting(job), job.content.size, job.data)
        except Exception as error:
            self._cannot_say(job, error)
            return
        if event is None:
            job.connection, self._ahead = self, job
        elif isinstance(event, Finished):
            self._end(job, event)

    def _cannot_say(self, job: Job, error: Exception) -> None:
        """End one job after an error of ours, before anything was said to the server."""
        logs.failed("a transaction", error=error)
        self._end(job, Finished((Outcome(OUR_ERROR),) * len(job.envelope.recipients)))

    def _take(self, event: Event | None, *, final: bool = False) -> None:
        """Act on an event of the connection. `final` says that its job has waited long enough."""
        if isinstance(event, Finished):
            job, self._job = self._job, None
            assert job is not None
            if self._machine.state is not ClientState.CLOSED:
                self._job, self._ahead = self._ahead, None
            if self._writer is not None:
                self.abort()  # the answer came early, and half a message is under way
            if event.answered or final or not self.used:
                self._end(job, event)
            else:
                job.returned = True
                self._give_back(job)
            self.used = True
            if self._job is None:
                self._deadline = 0.0
            elif self._job.result.cancelled():
                self.abort()
            else:
                self._wait_until(self._options.command)
        elif isinstance(event, SendContent):
            self._writer = self._loop.create_task(self._write(self._job))
        elif event is not None:
            self._greeting.append(event)
            self._wake()

    def _end(self, job: Job, event: Finished) -> None:
        if not job.result.done():
            job.result.set_result(Delivered(event.outcomes, "DSN" in self._machine.extensions))

    def _give_back(self, job: Job) -> None:
        job.connection = None
        if self._owner is not None:
            self._owner.submit(job)

    def _give_back_ahead(self) -> None:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._give_back(ahead)

    async def _write(self, job: Job | None) -> None:
        """Write large content, piece by piece. The task ends with the job, and never raises."""
        assert job is not None
        try:
            encoder, pieces = DotEncoder(), job.content.chunks()
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                if self._transport is None or self._job is not job:
                    return
                self._transport.write(encoder.feed(piece))
                await self._writable.wait()
        except OSError as error:
            # Our own copy cannot be read: cut the line, so that the server cannot take half of it for all.
            self._take(self._machine.lost(Reply(451, "4.3.0", printable(f"Cannot read the message: {error.strerror}"))))
            self.abort()
        else:
            if self._transport is not None and self._job is job:
                self._machine.content_sent()
                self._transport.write(encoder.end())
                self._wait_until(self._options.content)
        finally:
            self._writer = None

    # Time and ends

    def _wait_until(self, seconds: float) -> None:
        """Set the time limit of the next reply. Each connection has one timer, which moves when it fires."""
        self._deadline = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
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
        self._take(self._machine.lost(Reply(451, "4.4.2", "Timed out waiting for the next hop")), final=True)
        self.abort()

    def quit(self) -> None:
        """Say QUIT and close."""
        self._machine.quit()
        self.flush()
        self._let_go()
        if self._transport is not None:
            self._wait_until(QUIT_LIMIT)
            self._transport.close()

    def close(self) -> None:
        """Close. Data that could not be written yet is dropped."""
        self._let_go()
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection, so that the server cannot take an incomplete message for a whole one."""
        self._let_go()
        if self._transport is not None:
            self._transport.abort()

    def _flush_soon(self) -> None:
        if self._owner is not None:
            self._owner.turn.add(self)
        else:
            self.flush()

    def flush(self) -> None:
        """Write the pending output."""
        if self._transport is not None and (data := self._machine.data_to_send()):
            self._transport.write(data)
