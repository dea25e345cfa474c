"""One session: the asyncio shell over the server half. It reads, asks the handler and writes; it has TLS and timeouts.

A session is a Protocol rather than a coroutine over streams, because nothing may await per line on the path every
message takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from sendswitch import logs, metrics
from sendswitch.errors import Permanent, SendSwitchError, SpoolUnavailable, Temporary, classify
from sendswitch.mail.address import MAX_ADDRESS
from sendswitch.mail.envelope import Client, Envelope
from sendswitch.reply import Reply
from sendswitch.smtp.endpoint import within
from sendswitch.smtp.handler import Sink
from sendswitch.smtp.protocol import haproxy, replies
from sendswitch.smtp.protocol.sasl import Credentials
from sendswitch.smtp.protocol.server import (
    Aborted,
    ContentPiece,
    EndOfData,
    Event,
    MailCommand,
    RcptCommand,
    ServerConnection,
    StartTls,
)
from sendswitch.smtp.transcript import Tap, Transcript

if TYPE_CHECKING:
    from sendswitch.smtp.server import Listener

# Bytes a client may pipeline while its message is being stored: a few hundred commands.
MAX_AHEAD = 64 * 1024
# Seconds for a TLS handshake, as the idle timeout where that is less.
TLS_LIMIT = 60.0
# Seconds in which a client may still read our last reply. Closing at once with unread input would make the
# kernel send RST, and that can overtake the reply.
LINGER = 5.0
# Seconds for the reply to MAIL or RCPT when it needs a question to somebody else.
QUESTION_LIMIT = 60.0
# Seconds before a failed login is answered, whatever the cause (Postfix smtpd_error_sleep_time).
WRONG_PASSWORD = 1.0


class Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._work: asyncio.Future[Any] | None = None
        self._question: asyncio.Future[Reply] | None = None  # for the reply to MAIL or RCPT
        self._storing: Sink | None = None
        self._envelope: Envelope | None = None  # of the message that is being stored
        self._timer: asyncio.TimerHandle | None = None
        self._last = self._loop.time()
        self._began = 0.0  # when the transaction did, 0 outside one
        self._ending = self._blocked = self._paused = self._eof = False
        self._header: bytes | None = None  # of a balancer, while it comes in
        self._tap: Tap | None = None
        self.address = ""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        if self._transport is not None:  # the same session, now over TLS
            return
        self._transport = transport  # type: ignore[assignment] # uvloop's transports are not asyncio's classes
        peer = transport.get_extra_info("peername")
        self.address, port = (str(peer[0]), str(peer[1])) if isinstance(peer, tuple) else ("", "")
        # A reload gives the listener other options; a session keeps those it began with.
        self._options = self._listener.options
        self._machine = self._make_machine(port)
        if not self._listener.admit(self):
            self._close(replies.TOO_MANY_CONNECTIONS)
            return
        self._timer = self._loop.call_later(self._options.timeouts.idle, self._check_time)
        if within(self.address, self._options.haproxy_from):
            self._header = b""
        else:
            self._greet()

    def _make_machine(self, port: str) -> ServerConnection:
        options = self._options
        return ServerConnection(
            options.host,
            limits=options.limits,
            client=Client(address=self.address, port=port, protocol="LMTP" if options.lmtp else "ESMTP"),
            lmtp=options.lmtp,
            extensions=options.extensions_for(self.address),
        )

    def _greet(self) -> None:
        if self._listener.trace is not None:
            self.listen_in(self._listener.trace)
        refusal = self._listener.handler.admit()
        if refusal is not None:
            self._close(refusal)
            return
        self._machine.greet()
        self.flush()

    def _read_header(self, data: bytes) -> bytes:
        """Read a balancer's PROXY header before anything else. Return the bytes behind it.

        A connection that does not begin with it is cut: a client that leaves it out could pretend to be anybody.
        """
        self._header = (self._header or b"") + data
        try:
            found = haproxy.read(self._header)
        except ValueError as error:
            logs.session_failed(client=self.address, error=error)
            self._header = None
            self.abort()
            return b""
        if found is None:
            return b""
        source, length = found
        rest, self._header = self._header[length:], None
        if source.address:
            self._machine = self._renamed(source)
            if not self._listener.within_limits(self):
                self._close(replies.TOO_MANY_CONNECTIONS)
                return b""
        self._greet()
        return rest

    def _renamed(self, source: haproxy.Source) -> ServerConnection:
        self._listener.rename(self, source.address)
        return self._make_machine(source.port)

    def data_received(self, data: bytes) -> None:
        self._last = self._loop.time()
        if self._ending:
            return
        if self._header is not None:
            data = self._read_header(data)
            if not data or self._ending:
                return
        self._machine.receive_data(data)
        if self._work is None and not self._blocked:
            self._advance()
        elif self._machine.buffered > MAX_AHEAD:
            self._pause()

    def eof_received(self) -> bool:
        """Keep a half-closed connection open until the reply it waits for is out."""
        self._eof = True
        self.flush()
        return self._work is not None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._listener.leave(self)
        if self._work is None:
            self._discard()
        elif self._question is not None:
            self._question.cancel()
        # A message whose end was received is still stored: the client will send it again, and may not need to.
        self._transport = None

    def pause_writing(self) -> None:
        # The client does not read its replies: take no more commands until it does.
        self._blocked = True
        self._pause()

    def resume_writing(self) -> None:
        self._blocked = False
        if self._work is None:
            self._advance()
            self._resume()

    # The session

    def _advance(self) -> None:
        machine = self._machine
        while self._work is None and (event := machine.next_event()) is not None:
            self._take_event(event)
        self._listener.turn.add(self)
        if machine.more:
            # Many commands at once: others have their turn first.
            self._pause()
            self._start(self._take_turns())
        if not machine.in_transaction:
            self._began = 0.0
        elif not self._began:
            self._began = self._last
        if self._work is None:
            self._end_if_over()

    def _take_event(self, event: Event) -> None:
        if isinstance(event, ContentPiece):
            self._take(event.data)
        elif isinstance(event, MailCommand):
            self._say_when_known(self._listener.handler.mail(event))
        elif isinstance(event, RcptCommand):
            self._say_when_known(self._listener.handler.recipient(event))
        elif isinstance(event, EndOfData):
            self._finish_message(event)
        elif isinstance(event, Aborted):
            self._discard()
        elif isinstance(event, StartTls):
            self._machine.reply(replies.READY_FOR_TLS)
            self._start(self._start_tls())
        else:
            self._start(self._log_in(event))

    def _say_when_known(self, reply: Reply | asyncio.Future[Reply]) -> None:
        if isinstance(reply, Reply):
            self._say(reply)
        else:
            self._work = self._question = reply
            limit = self._loop.call_later(QUESTION_LIMIT, reply.cancel)
            reply.add_done_callback(lambda future: self._known(future, limit))

    def _known(self, future: asyncio.Future[Reply], limit: asyncio.TimerHandle) -> None:
        """Say the reply that came later. Without one the client tries again."""
        limit.cancel()
        self._question = None
        error = future.exception() if not future.cancelled() else Temporary("no answer to what a command asks about")
        if self._transport is not None:
            if error is not None:
                logs.session_failed(client=self.address, error=classify(error))
            self._say(future.result() if error is None else classify(error).reply)
        self._go_on()

    def _say(self, reply: Reply) -> None:
        if not reply.positive:
            self._listener.handler.refused(self._machine.refused(), reply)
        self._machine.reply(reply)

    def _end_if_over(self) -> None:
        if self._machine.closed:
            # A client that said QUIT sends nothing more; unread input would make the kernel send RST.
            self._end(linger=self._paused or not self._machine.quitted)
        elif self._listener.stopping and not self._machine.in_transaction:
            self._close(replies.SHUTTING_DOWN, linger=False)

    def _take(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            sink = self._sink = self._listener.handler.sink()
        sink.write(data)
        if sink.full:
            self._pause()
            self._start(self._drain(sink))

    async def _take_turns(self) -> None:
        await asyncio.sleep(0)

    async def _drain(self, sink: Sink) -> None:
        try:
            await sink.drain()
        except Exception as error:
            logs.session_failed(client=self.address, error=classify(error))
            self._discard()
            self._machine.close(Reply(421, "4.3.0", classify(error).reply.text))

    def _finish_message(self, event: EndOfData) -> None:
        if event.refusal is not None:
            self._discard()
            self._listener.handler.refused(event.envelope, event.refusal)
            self._answer(event.refusal)
            return
        sink = self._sink or self._listener.handler.sink()
        self._sink, self._storing, self._envelope = None, sink, event.envelope
        try:
            self._work = self._listener.handler.message(event.envelope, sink)
        except Exception as error:
            self._answer(*self._failed(error))
        else:
            self._work.add_done_callback(self._stored)

    def _stored(self, future: asyncio.Future[tuple[Reply, ...]]) -> None:
        error = future.exception() if not future.cancelled() else SendSwitchError("the node is stopping")
        given = self._failed(error) if error is not None else future.result()
        if error is None and given[0].temporary and self._envelope is not None:
            self._listener.handler.refused(self._envelope, given[0])
        self._answer(*given)
        self._go_on()

    def _failed(self, error: BaseException) -> tuple[Reply]:
        known = classify(error)
        if not isinstance(known, Permanent):  # what the message is at fault for was told where it was refused
            logs.session_failed(client=self.address, error=known)
        if self._storing is not None:
            self._storing.discard()
        if self._envelope is not None and not isinstance(known, SpoolUnavailable):  # what writes to it
            self._listener.handler.refused(self._envelope, known.reply, str(known))
        return (known.reply,)

    def _answer(self, *given: Reply) -> None:
        self._storing = self._envelope = None
        self._began = 0.0  # the next transaction has its own time
        if self._options.lmtp and len(given) == 1:
            given *= self._machine.accepted
        self._machine.reply(*given)

    async def _start_tls(self) -> None:
        assert self._transport is not None
        context = self._options.tls
        assert context is not None
        self.flush()
        limit = min(self._options.timeouts.idle, TLS_LIMIT)
        try:
            self._transport = await self._loop.start_tls(
                self._transport, self, context, server_side=True, ssl_handshake_timeout=limit
            )
        except (OSError, ConnectionError, RuntimeError) as error:
            # The transport under a failed handshake is gone, and nobody calls connection_lost for it.
            logs.tls_failed(client=self.address, error=error)
            if self._transport is not None:
                self._transport.abort()
            self.connection_lost(None)
            return
        self._machine.tls_started()

    async def _log_in(self, given: Credentials) -> None:
        assert self._options.authenticate is not None
        login, known = "", False
        try:
            with self._listener.logging_in(self.address):
                login, known = await self._options.authenticate(given.user, given.password), True
        except Exception as error:
            logs.session_failed(client=self.address, error=classify(error))
        if not known:
            await asyncio.sleep(WRONG_PASSWORD)
            self._machine.logged_in("", replies.LOGIN_UNKNOWN)
            return
        metrics.LOGINS.labels("accepted" if login else "refused").inc()
        if not login:
            logs.login_refused(client=self.address, user=given.user[:MAX_ADDRESS])
            await asyncio.sleep(WRONG_PASSWORD)
        self._machine.logged_in(login)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._work = self._loop.create_task(work)
        self._work.add_done_callback(self._done)

    def _done(self, work: asyncio.Future[Any]) -> None:
        if work.cancelled():
            self._work = None
            self._discard()
        else:
            self._go_on()

    @property
    def _idle(self) -> bool:
        """Return whether no work is in hand. `_go_on` may not ask `_work` itself again: see tests/house."""
        return self._work is None

    def _go_on(self) -> None:
        """Go on with the next command when the work in hand has ended."""
        self._work = None
        if self._transport is None:
            self._discard()
            return
        self._last = self._loop.time()
        if not self._blocked:
            self._advance()
            self._resume()
        if self._idle and self._eof:
            self._end(linger=False)
        elif self._idle and self._listener.stopping and not self._machine.in_transaction:
            self._close(replies.SHUTTING_DOWN, linger=False)

    def flush(self) -> None:
        """Write the pending output."""
        if self._transport is not None and (data := self._machine.data_to_send()):
            if self._tap is not None:
                self._tap.said(data)
            self._transport.write(data)

    def listen_in(self, trace: Transcript | None) -> None:
        """Write this session's dialog down, or no longer."""
        name = f"{self.address or 'unix'}:{id(self):x}"
        self._tap = None if trace is None else trace.session(name)
        self._machine.tap = None if self._tap is None else self._tap.heard

    def _discard(self) -> None:
        if self._sink is not None:
            self._sink.discard()
            self._sink = None

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    # Ends

    def _check_time(self) -> None:
        """Close a session whose time is over. One timer, moved when it fires, so that a command costs no timer work."""
        timeouts, now = self._options.timeouts, self._loop.time()
        due = self._last + timeouts.idle
        if self._began:
            due = min(due, self._began + timeouts.transaction)
        if self._work is not None:
            due = max(due, now + 1.0)  # the client waits for us, not we for it
        if now >= due:
            self._close(replies.TIMED_OUT, linger=False)
        else:
            self._timer = self._loop.call_later(due - now, self._check_time)

    def stop(self) -> None:
        """Shut down: at once, or after the reply when a message is coming in or being stored."""
        if self._work is None and not self._machine.in_transaction:
            self._close(replies.SHUTTING_DOWN, linger=False)

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self, reply: Reply, *, linger: bool = True) -> None:
        self._machine.close(reply)
        self._discard()
        self._end(linger=linger)

    def _end(self, *, linger: bool) -> None:
        """Write the pending output, then close. With `linger` the client may close first, for up to 5 s."""
        transport = self._transport
        if self._ending or transport is None:
            return
        self.flush()
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        if linger and not self._eof and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
            if self._paused:
                transport.resume_reading()
        else:
            transport.close()
        # A peer that takes nothing would keep even a closed transport for ever.
        self._timer = self._loop.call_later(LINGER, transport.abort)
