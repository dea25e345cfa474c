"""The listener's shell: timeouts, limits, half-open and slow clients, TLS, replies that must not be lost."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import free_port
from sendswitch.errors import Temporary
from sendswitch.monitoring.health import make_app
from sendswitch.reply import Reply
from sendswitch.smtp import session
from sendswitch.smtp.endpoint import Endpoint
from sendswitch.smtp.flush import Turn
from sendswitch.smtp.protocol.server import Limits, RcptCommand
from sendswitch.smtp.server import Listener, Options, Timeouts
from sendswitch.testing import OK, Inbox
from sendswitch.web.server import WebServer

OPTIONS = Options(host="mx.example.test", limits=Limits(size=100_000))
ENVELOPE = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"


@contextlib.asynccontextmanager
async def listening(
    options: Options = OPTIONS, inbox: Inbox | None = None
) -> AsyncIterator[tuple[Listener, Inbox, int]]:
    inbox = inbox or Inbox()
    listener = Listener(inbox, options)
    port = free_port()
    await listener.start(Endpoint("127.0.0.1", port))
    try:
        yield listener, inbox, port
    finally:
        await listener.stop(1)


async def everything(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.read()


async def test_quit_behind_the_dot_is_answered_in_order() -> None:
    async with listening() as (_, inbox, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ENVELOPE + b"hi\r\n.\r\nQUIT\r\n")
        said = await everything(reader)
        assert [line[:3] for line in said.splitlines() if line[3:4] == b" "][-3:] == [b"354", b"250", b"221"]
        assert inbox.parcels[0].data == b"hi\r\n"
        writer.close()


async def test_a_client_that_closed_its_half_still_gets_the_reply() -> None:
    async with listening() as (_, inbox, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ENVELOPE + b"hi\r\n.\r\n")
        writer.write_eof()
        assert b"\r\n250 2.0.0 Ok\r\n" in await everything(reader)
        assert len(inbox.parcels) == 1
        writer.close()


async def test_a_reply_comes_although_the_end_came_with_the_command() -> None:
    async with listening() as (_, _, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            # All of it is in the kernel before the loop has its turn.
            client.sendall(b"EHLO x\r\nNOOP\r\n")
            client.shutdown(socket.SHUT_WR)
            client.settimeout(5)
            said = await asyncio.to_thread(lambda: b"".join(iter(lambda: client.recv(65536), b"")))
        assert said.endswith(b"250 2.0.0 Ok\r\n")


class Asking(Inbox):
    """A handler that knows a recipient only after it asked: 'late' is taken, 'away' cannot be asked about."""

    def recipient(self, recipient: RcptCommand) -> Reply | asyncio.Future[Reply]:
        async def ask() -> Reply:
            await asyncio.sleep(0.05)
            if recipient.recipient.address.startswith("away@"):
                raise Temporary("the directory does not answer")
            known = super(Asking, self).recipient(recipient)
            assert isinstance(known, Reply)
            return known

        return asyncio.get_running_loop().create_task(ask())


async def test_a_recipient_that_must_be_asked_about_is_answered_in_order() -> None:
    refuse = {"nobody@d": Reply(550, "5.1.1", "no such user")}
    async with listening(inbox=Asking(refuse)) as (_, inbox, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        to = b"".join(b"RCPT TO:<%s@d>\r\n" % name for name in (b"late", b"nobody", b"away", b"other"))
        writer.write(b"EHLO x\r\nMAIL FROM:<a@b>\r\n" + to + b"DATA\r\nSubject: x\r\n\r\nx\r\n.\r\nQUIT\r\n")
        said = [line[:9] for line in (await everything(reader)).split(b"\r\n") if not line.startswith(b"250-")]
        assert said[3:7] == [b"250 2.0.0", b"550 5.1.1", b"451 4.3.0", b"250 2.0.0"]
        assert said[7][:4] == b"354 "
        assert [r.address for r in inbox.parcels[0].envelope.recipients] == ["late@d", "other@d"]
        assert [str(reply)[:9] for _, reply in inbox.refusals] == ["550 5.1.1", "451 4.3.0"]
        writer.close()


async def test_a_question_that_is_given_up_is_answered_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Inbox):
        def recipient(self, recipient: RcptCommand) -> Reply | asyncio.Future[Reply]:
            if recipient.recipient.address != "hangs@d":
                return super().recipient(recipient)
            return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(session, "QUESTION_LIMIT", 0.1)
    async with listening(inbox=Hanging()) as (_, inbox, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        to = b"RCPT TO:<hangs@d>\r\nRCPT TO:<ann@d>\r\n"
        writer.write(b"EHLO x\r\nMAIL FROM:<a@b>\r\n" + to + b"DATA\r\nx\r\n.\r\nQUIT\r\n")
        said = [line[:9] for line in (await everything(reader)).split(b"\r\n") if not line.startswith(b"250-")]
        assert said[3:5] == [b"451 4.3.0", b"250 2.0.0"]
        assert [len(parcel.envelope.recipients) for parcel in inbox.parcels] == [1]
        writer.close()


async def test_a_client_may_leave_while_a_recipient_is_asked_about() -> None:
    asked = asyncio.Event()
    questions: list[asyncio.Task[Reply]] = []

    class Slow(Inbox):
        def recipient(self, recipient: RcptCommand) -> asyncio.Future[Reply]:
            async def ask() -> Reply:
                asked.set()
                await asyncio.Event().wait()
                return OK

            questions.append(asyncio.get_running_loop().create_task(ask()))
            return questions[0]

    async with listening(inbox=Slow()) as (listener, inbox, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<late@d>\r\nDATA\r\nx\r\n.\r\n")
        await asyncio.wait_for(asked.wait(), 5)
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()
        async with asyncio.timeout(5):
            while listener.connections:
                await asyncio.sleep(0.01)
        await asyncio.wait(questions, timeout=5)
        assert questions[0].cancelled()
        assert inbox.parcels == []


async def test_who_says_quit_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LINGER", 3600)
    async with listening() as (listener, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO x\r\nQUIT\r\n")
        assert (await everything(reader)).endswith(b"221 2.0.0 Bye\r\n")
        async with asyncio.timeout(5):
            while listener.connections:  # although this side is still open
                await asyncio.sleep(0.01)
        writer.close()


async def test_one_connection_s_trouble_is_not_the_others() -> None:
    class Connection:
        def __init__(self, error: Exception | None = None) -> None:
            self.error, self.flushed = error, False

        def flush(self) -> None:
            if self.error is not None:
                raise self.error
            self.flushed = True

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    turn, last = Turn(), Connection()
    turn.add(Connection(RuntimeError("closed")))
    turn.add(last)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert last.flushed
    assert [str(context["exception"]) for context in told] == ["closed"]


async def test_of_two_web_ports_that_are_the_same_the_second_is_refused() -> None:
    port = free_port()
    first, second = (WebServer(make_app({}, {}, asyncio.Event().wait)) for _ in range(2))  # type: ignore[arg-type]
    await first.start("127.0.0.1", port)
    with pytest.raises(OSError, match="in use"):
        await second.start("127.0.0.1", port)
    await first.stop()


async def test_timeouts() -> None:
    options = replace(OPTIONS, timeouts=Timeouts(idle=0.3, transaction=1.0))
    async with listening(options) as (listener, inbox, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await everything(reader)).endswith(b"421 4.4.2 Error: timeout exceeded\r\n")
        writer.close()
        # A slow-loris: never idle, never done.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ENVELOPE)

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(10):
            await reader.readuntil(b"421 4.4.2 ")
        dripping.cancel()
        assert not inbox.parcels
        writer.close()
        async with asyncio.timeout(8):
            while listener.connections:
                await asyncio.sleep(0.05)


async def test_connection_limits() -> None:
    async with listening(replace(OPTIONS, connections=3)) as (listener, _, port):
        open_ = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for reader, _ in open_:
            assert (await reader.readline()).startswith(b"220")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"421 4.7.0")
        writer.close()
        for _, writer in open_:
            writer.close()
    async with listening(replace(OPTIONS, connections_per_address=1)) as (listener, _, port):
        first, keep = await asyncio.open_connection("127.0.0.1", port)
        assert (await first.readline()).startswith(b"220")
        second, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await second.readline()).startswith(b"421")
        writer.close()
        keep.close()
        async with asyncio.timeout(10):
            while listener.connections:
                await asyncio.sleep(0.02)


async def test_a_client_that_reads_nothing_is_not_buffered_for() -> None:
    patient = replace(OPTIONS, limits=Limits(junk=10**9))  # or it would be sent away for asking too often
    async with listening(patient) as (_, _, port):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while sent < 200_000_000:
                    writer.write(b"HELP\r\n" * 10_000)
                    await writer.drain()
                    sent += 60_000
        assert sent < 200_000_000  # we stopped reading, so the client could not go on
        writer.transport.abort()


async def test_xforward_is_for_trusted_networks() -> None:
    for networks, offered in ((("127.0.0.0/8",), True), (("10.0.0.0/8",), False), ((), False)):
        options = replace(OPTIONS, xforward_from=tuple(ip_network(net) for net in networks))
        async with listening(options) as (_, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"EHLO x\r\nQUIT\r\n")
            assert (b"XFORWARD" in await everything(reader)) is offered
            writer.close()


async def test_starttls(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))

    def send(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            client.starttls(context=trusting)
            client.sendmail("a@b", ["c@d"], b"Subject: tls\r\n\r\nx\r\n")
            assert not client.has_extn("starttls")

    async with listening(replace(OPTIONS, tls=context)) as (_, inbox, port):
        await asyncio.to_thread(send, port)
        assert b"Subject: tls" in inbox.parcels[0].data
        # What is sent in the clear behind STARTTLS is never executed.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO x\r\nSTARTTLS\r\nMAIL FROM:<evil@x>\r\n")
        await reader.readuntil(b"220 2.0.0 Ready to start TLS\r\n")
        tls = await asyncio.get_running_loop().start_tls(
            writer.transport, writer.transport.get_protocol(), trusting, server_hostname="localhost"
        )
        assert tls is not None
        tls.write(b"NOOP\r\n")
        # The answer to what was asked over TLS comes first, so the other was never answered.
        assert await reader.readuntil(b"\r\n") == b"250 2.0.0 Ok\r\n"
        tls.close()


async def test_a_broken_handshake_leaves_no_session(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    options = replace(OPTIONS, tls=context, timeouts=Timeouts(idle=1.0))
    async with listening(options) as (listener, _, port):
        hanging = []
        for n in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"EHLO x\r\nSTARTTLS\r\n")
            await reader.readuntil(b"220 2.0.0 Ready to start TLS\r\n")
            if n % 2:
                writer.transport.abort()
            else:
                hanging.append(writer)
        async with asyncio.timeout(10):
            while listener.connections:
                await asyncio.sleep(0.05)
        for writer in hanging:
            writer.close()


async def test_stopping_lets_mail_in_hand_get_its_reply() -> None:
    class Slow(Inbox):
        in_hand, go = asyncio.Event(), asyncio.Event()

        def message(self, envelope: Any, sink: Any) -> asyncio.Future[Any]:
            async def later() -> Any:
                self.in_hand.set()
                await self.go.wait()
                return await Inbox.message(self, envelope, sink)

            return asyncio.get_running_loop().create_task(later())

    async with listening(inbox=Slow()) as (listener, inbox, port):
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        await idle_reader.readline()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ENVELOPE + b"hi\r\n.\r\n")
        await Slow.in_hand.wait()
        stopping = asyncio.create_task(listener.stop(5))
        assert (await everything(idle_reader)).startswith(b"421 4.3.2")
        Slow.go.set()
        said = await everything(reader)
        assert b"250 2.0.0 Ok\r\n421 4.3.2" in said
        assert len(inbox.parcels) == 1
        await stopping
        idle_writer.close()
        writer.close()


async def test_rubbish_leaves_nothing_behind() -> None:
    async with listening() as (listener, _, port):
        for junk in (
            b"\x00" * 10_000,
            b"\xff\xfe\r\n" * 1000,
            b"A" * 1_000_000,
            b"\n" * 100,
            b"BDAT 9999999999\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                writer.write(junk)
                await writer.drain()
                writer.write_eof()
                said = await everything(reader)
                assert said.startswith(b"220")
            writer.close()
        async with asyncio.timeout(10):
            while listener.connections:
                await asyncio.sleep(0.05)


LOCAL = (ip_network("127.0.0.0/8"),)
HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 25\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_balancer_says_who_the_client_is(size: int) -> None:
    options = replace(OPTIONS, haproxy_from=LOCAL, xforward_from=LOCAL, connections_per_address=1)
    async with listening(options) as (listener, inbox, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        wire = HEADER + ENVELOPE + b"hi\r\n.\r\n"
        for start in range(0, len(wire), size):
            writer.write(wire[start : start + size])
            await writer.drain()
        while not inbox.parcels:
            await asyncio.sleep(0.01)
        client = inbox.parcels[0].envelope.client
        assert (client.address, client.port) == ("192.0.2.7", "4711")
        assert listener.connections == 1
        # What the real client may do is not what the balancer may.
        writer.write(b"XFORWARD ADDR=198.51.100.1\r\nQUIT\r\n")
        said = await everything(reader)
        assert b"\r\n550 5.7.0" in said
        assert b"XFORWARD" not in said
        writer.close()
        # Its limit, not the balancer's.
        one, other = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        one[1].write(HEADER)
        assert (await one[0].readline()).startswith(b"220")
        other[1].write(HEADER)
        assert (await other[0].readline()).startswith(b"421")
        for _, end in (one, other):
            end.close()


@pytest.mark.parametrize("said", [b"EHLO x\r\n", b"PROXY TCP9 x\r\n", b"\r\n\r\n\x00rubbish"])
async def test_who_leaves_the_header_out_is_cut(said: bytes) -> None:
    async with listening(replace(OPTIONS, haproxy_from=LOCAL)) as (listener, inbox, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            assert await everything(reader) == b""
        writer.close()
        while listener.connections:
            await asyncio.sleep(0.01)
        assert not inbox.parcels
