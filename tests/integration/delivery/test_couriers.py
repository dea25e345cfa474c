"""The courier's contract, over every implementation: the double, Maildirs, SMTP and LMTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import free_port
from sendswitch.delivery.base import Courier
from sendswitch.delivery.maildir import MaildirCourier, folder_name
from sendswitch.mail.content import InFile, InMemory
from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply
from sendswitch.smtp.client import ClientOptions
from sendswitch.smtp.endpoint import Endpoint
from sendswitch.smtp.handler import Sink
from sendswitch.smtp.pool import Pool
from sendswitch.smtp.protocol.server import ServerConnection
from sendswitch.smtp.server import Listener, Options
from sendswitch.testing import Inbox, MemoryCourier, envelope

Run = Callable[[Coroutine[Any, Any, Any]], Any]
NO = Reply(550, "5.1.1", "unknown")
DATA = b"Subject: x\r\n\r\n.dot\r\nlast line\r\n"


@dataclass
class Place:
    """A courier, and how to see what arrived for an address."""

    courier: Courier
    arrived: Callable[[str], list[bytes]]
    refuses: bool = True


@contextlib.asynccontextmanager
async def memory(folder: Path) -> AsyncIterator[Place]:
    courier = MemoryCourier({"no@example.test": NO})

    def arrived(address: str) -> list[bytes]:
        return [p.data for p in courier.parcels if address in [r.address for r in p.envelope.recipients]]

    yield Place(courier, arrived)


@contextlib.asynccontextmanager
async def maildir(folder: Path) -> AsyncIterator[Place]:
    def arrived(address: str) -> list[bytes]:
        new = folder / folder_name(address) / "new"
        raw = [path.read_bytes() for path in new.iterdir()] if new.exists() else []
        return [data.partition(b"\r\n")[2].partition(b"\r\n")[2] for data in raw]

    yield Place(MaildirCourier(folder), arrived, refuses=False)


@contextlib.asynccontextmanager
async def without_chunking(folder: Path) -> AsyncIterator[Place]:
    """DATA, and the next envelope behind the end of the content."""
    with pytest.MonkeyPatch.context() as patch:
        offers = ServerConnection.offers
        patch.setattr(ServerConnection, "offers", lambda self: tuple(o for o in offers(self) if o != "CHUNKING"))
        async with over_the_wire(folder, lmtp=False) as place:
            yield place


@contextlib.asynccontextmanager
async def over_the_wire(folder: Path, *, lmtp: bool) -> AsyncIterator[Place]:
    inbox = Inbox({"no@example.test": NO})
    listener = Listener(inbox, Options(host="next.example", lmtp=lmtp))
    port = free_port()
    await listener.start(Endpoint("127.0.0.1", port))
    pool = Pool(Endpoint("127.0.0.1", port), ClientOptions("me.example", lmtp=lmtp), size=3, idle=5)

    def arrived(address: str) -> list[bytes]:
        return [p.data for p in inbox.parcels if address in [r.address for r in p.envelope.recipients]]

    try:
        yield Place(pool, arrived)
    finally:
        pool.close()
        await listener.stop(1)


PLACES: dict[str, Callable[[Path], contextlib.AbstractAsyncContextManager[Place]]] = {
    "memory": memory,
    "maildir": maildir,
    "smtp": lambda folder: over_the_wire(folder, lmtp=False),
    "smtp without chunking": without_chunking,
    "lmtp": lambda folder: over_the_wire(folder, lmtp=True),
}


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with PLACES[request.param](tmp_path / "place") as found:
        yield found


async def test_a_positive_reply_means_it_is_there_byte_for_byte(place: Place) -> None:
    result = await place.courier.deliver(envelope("a@b", "joe@example.test"), InMemory(DATA))
    assert [o.reply.code for o in result.outcomes if o.reply] == [250]
    assert place.arrived("joe@example.test") == [DATA]


async def test_each_recipient_has_an_outcome_in_order(place: Place) -> None:
    if not place.refuses:
        return
    to = ("joe@example.test", "no@example.test", "ann@example.test")
    result = await place.courier.deliver(envelope("a@b", *to), InMemory(DATA))
    assert [o.reply.code for o in result.outcomes if o.reply] == [250, 550, 250]
    assert place.arrived("no@example.test") == []
    assert place.arrived("ann@example.test") == [DATA]


async def test_unanimous_is_all_or_none(place: Place) -> None:
    good = envelope("a@b", "joe@example.test", "ann@example.test")
    result = await place.courier.deliver(good, InMemory(DATA), unanimous=True)
    assert all(o.reply and o.reply.positive for o in result.outcomes)
    if place.refuses:
        mixed = envelope("a@b", "bob@example.test", "no@example.test")
        result = await place.courier.deliver(mixed, InMemory(DATA), unanimous=True)
        assert [o.reply.code if o.reply else None for o in result.outcomes] == [None, 550]
        assert place.arrived("bob@example.test") == []


class Slow(Inbox):
    """Takes its time for each message, as RFC 5321 4.5.3.2.6 lets a server."""

    def message(self, envelope: Envelope, sink: Sink) -> asyncio.Future[tuple[Reply, ...]]:
        async def later() -> tuple[Reply, ...]:
            await asyncio.sleep(1.5)
            return (Reply(250, "2.0.0", "Ok"),)

        return asyncio.get_running_loop().create_task(later())


@pytest.mark.parametrize("chunking", [True, False])
async def test_a_message_has_more_time_than_a_command(chunking: bool) -> None:

    with pytest.MonkeyPatch.context() as patch:
        if not chunking:
            offers = ServerConnection.offers
            patch.setattr(ServerConnection, "offers", lambda s: tuple(o for o in offers(s) if o != "CHUNKING"))
        listener, port = Listener(Slow(), Options(host="slow.example.test")), free_port()
        await listener.start(Endpoint("127.0.0.1", port))
        options = ClientOptions("me.example", command=0.5, content=20.0)
        pool = Pool(Endpoint("127.0.0.1", port), options, size=1, idle=5)
        try:
            for _ in range(2):  # over a new connection, and over one that was used
                result = await pool.deliver(envelope("a@b", "c@example.test"), InMemory(DATA))
                assert [str(outcome.reply) for outcome in result.outcomes] == ["250 2.0.0 Ok"]
        finally:
            pool.close()
            await listener.stop(1)


@pytest.mark.parametrize("pipelining", [True, False])
async def test_content_that_goes_out_with_its_command_has_more_time(pipelining: bool) -> None:
    """Together with the envelope, to a server that reads all of it before it says anything, or behind it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        offered = b"250-PIPELINING\r\n" if pipelining else b""
        writer.write(b"250-next.example.test\r\n" + offered + b"250 CHUNKING\r\n")
        for _ in () if pipelining else ("MAIL", "RCPT"):
            await reader.readline()
            writer.write(b"250 ok\r\n")
        await reader.readuntil(b"last line\r\n")
        await asyncio.sleep(1.5)
        writer.write(b"250 sender\r\n250 recipient\r\n" * pipelining + b"250 2.0.0 Ok\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    options = ClientOptions("me.example", command=0.5, content=20.0)
    pool = Pool(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1]), options, size=1, idle=5)
    try:
        result = await pool.deliver(envelope("a@b", "c@example.test"), InMemory(DATA))
        assert [str(outcome.reply) for outcome in result.outcomes] == ["250 2.0.0 Ok"]
    finally:
        pool.close()
        server.close()


async def test_many_at_once_and_large_ones(place: Place, tmp_path: Path) -> None:
    large = tmp_path / "large.eml"
    large.write_bytes(b"Subject: large\r\n\r\n" + b".x" * 35 + b"\r\n" + (b"." + b"y" * 70 + b"\r\n") * 20_000)

    content = InFile(large, large.stat().st_size)
    async with asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(place.courier.deliver(envelope("a@b", f"u{n}@example.test"), InMemory(DATA)))
        big = group.create_task(place.courier.deliver(envelope("a@b", "big@example.test"), content))
    assert big.result().outcomes[0].reply is not None
    assert all(place.arrived(f"u{n}@example.test") == [DATA] for n in range(20))
    assert place.arrived("big@example.test") == [large.read_bytes()]


async def test_check_says_nothing_when_it_is_there(place: Place) -> None:
    assert await place.courier.check() is None


async def test_a_pool_opens_no_more_than_its_size_and_reuses() -> None:
    async def inside() -> None:
        inbox = Inbox()
        listener = Listener(inbox, Options(host="next.example"))
        port = free_port()
        await listener.start(Endpoint("127.0.0.1", port))
        pool = Pool(Endpoint("127.0.0.1", port), ClientOptions("me"), size=3, idle=0.2)
        most = 0

        async def one() -> None:
            nonlocal most
            await pool.deliver(envelope(), InMemory(DATA))
            most = max(most, listener.connections, pool.open)

        await asyncio.gather(*(one() for _ in range(50)))
        assert len(inbox.parcels) == 50
        assert most <= 3
        async with asyncio.timeout(5):
            while listener.connections:
                await asyncio.sleep(0.02)
        assert pool.open == 0
        await listener.stop(1)
        result = await pool.deliver(envelope(), InMemory(DATA))
        assert result.outcomes[0].reply is not None
        assert result.outcomes[0].reply.enhanced == "4.4.1"

    await inside()


async def test_a_connection_the_server_closed_while_idle_is_replaced_unseen() -> None:
    port = free_port()
    inbox = Inbox()
    pool = Pool(Endpoint("127.0.0.1", port), ClientOptions("me"), size=1, idle=30)
    for _ in range(3):
        listener = Listener(inbox, Options(host="next.example"))
        await listener.start(Endpoint("127.0.0.1", port))
        result = await pool.deliver(envelope(), InMemory(DATA))
        assert result.outcomes[0].reply is not None
        assert result.outcomes[0].reply.positive
        await listener.stop(0.1)
    assert len(inbox.parcels) == 3


class Scripted:
    """A next hop without CHUNKING that answers each message's end as told, and remembers what it was sent."""

    def __init__(
        self, at_end: Callable[[int], bytes | None], at_mail: Callable[[int], bytes | None] | None = None
    ) -> None:
        self._at_end, self._at_mail, self.mails = at_end, at_mail, 0
        self.port = free_port()
        self.messages: list[bytes] = []
        self.ahead = 0
        self.connections = 0
        self.go = asyncio.Event()
        self.gates: dict[int, asyncio.Event] = {}  # instead of `go`, by message
        self.stall = 0.0  # seconds the whole loop stands still behind the answer to EHLO

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._one, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(b"220 hi\r\n")
            while True:
                line = await reader.readuntil(b"\r\n")
                if line.startswith(b"EHLO"):
                    writer.write(b"250-hi\r\n250 PIPELINING\r\n")
                    time.sleep(self.stall)
                elif line.startswith(b"MAIL") and self._at_mail is not None:
                    self.mails += 1
                    answer = self._at_mail(self.mails)
                    if answer is None:  # and not a word more
                        await asyncio.Event().wait()
                    else:
                        writer.write(answer)
                elif line != b"DATA\r\n":
                    writer.write(b"250 ok\r\n")
                else:
                    writer.write(b"354 go\r\n")
                    self.messages.append(await reader.readuntil(b"\r\n.\r\n"))
                    mine = len(self.messages)
                    await self.gates.get(mine, self.go).wait()
                    self.ahead += bool(reader._buffer)  # type: ignore[attr-defined]
                    answer = self._at_end(mine)
                    if answer is None:
                        return
                    writer.write(answer)


def subjects(messages: Sequence[bytes]) -> list[str]:
    return [message.split(b"\r\n")[0].decode() for message in messages]


async def test_a_busy_connection_takes_the_next_envelope_along() -> None:
    async with Scripted(lambda n: b"250 ok\r\n") as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        messages = [InMemory(f"Subject: {n}\r\n\r\n".encode()) for n in range(50)]
        results = await asyncio.gather(*(pool.deliver(envelope(), message) for message in messages))
        assert all(r.outcomes[0].reply and r.outcomes[0].reply.positive for r in results)
        assert subjects(hop.messages) == [f"Subject: {n}" for n in range(50)]
        assert hop.ahead > 25
        assert hop.connections == 1
        pool.close()


async def test_what_was_sent_ahead_is_done_elsewhere_when_the_connection_goes() -> None:
    # Each connection is closed behind its second message's reply; what was sent ahead on it was never begun.
    async with Scripted(lambda n: b"250 ok\r\n" if n % 2 else b"250 ok\r\n421 enough\r\n") as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        messages = [InMemory(f"Subject: {n}\r\n\r\n".encode()) for n in range(20)]
        results = await asyncio.gather(*(pool.deliver(envelope(), message) for message in messages))
        assert all(r.outcomes[0].reply and r.outcomes[0].reply.positive for r in results)
        assert sorted(subjects(hop.messages)) == sorted(f"Subject: {n}" for n in range(20))
        assert hop.connections > 5
        pool.close()


async def test_a_lost_last_reply_is_that_message_s_alone() -> None:
    async with Scripted(lambda n: None if n == 1 else b"250 ok\r\n") as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        messages = [InMemory(f"Subject: {n}\r\n\r\n".encode()) for n in range(2)]
        first, second = await asyncio.gather(*(pool.deliver(envelope(), message) for message in messages))
        assert first.outcomes[0].uncertain
        assert second.outcomes[0].reply is not None
        assert second.outcomes[0].reply.positive
        assert subjects(hop.messages) == ["Subject: 0", "Subject: 1"]
        pool.close()


async def test_what_was_sent_ahead_and_is_cancelled_is_not_sent() -> None:
    async with Scripted(lambda n: b"250 ok\r\n") as hop:
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        tasks = [
            asyncio.create_task(pool.deliver(envelope(), InMemory(f"Subject: {n}\r\n\r\n".encode()))) for n in range(3)
        ]
        async with asyncio.timeout(5):
            while not hop.messages:
                await asyncio.sleep(0.01)
        tasks[1].cancel()
        hop.go.set()
        first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(second, asyncio.CancelledError)
        for result in (first, third):
            assert not isinstance(result, BaseException)
            assert result.outcomes[0].reply is not None
            assert result.outcomes[0].reply.positive
        assert subjects(hop.messages) == ["Subject: 0", "Subject: 2"]
        pool.close()


async def test_out_of_turn_replies_are_nobody_s() -> None:
    # The extra reply must not be taken for the next transaction's.
    async with Scripted(lambda n: b"250 ok\r\n250 2.0.0 surplus\r\n") as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        for n in range(3):
            result = await pool.deliver(envelope(), InMemory(f"Subject: {n}\r\n\r\n".encode()))
            assert result.outcomes[0].reply is not None
            assert result.outcomes[0].reply.positive
        assert hop.connections == 3
        pool.close()


async def test_a_421_is_taken_at_its_word_the_second_time() -> None:
    """A next hop that answers one sender with 421 must not be asked for ever."""

    answers = (b"250 ok\r\n", b"421 4.7.0 slower\r\n")
    async with Scripted(lambda n: b"250 ok\r\n", at_mail=lambda n: answers[n > 1]) as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        first = await pool.deliver(envelope(), InMemory(DATA))
        assert first.outcomes[0].reply is not None
        assert first.outcomes[0].reply.positive
        second = await pool.deliver(envelope(), InMemory(DATA))
        assert second.outcomes[0].reply is not None
        assert second.outcomes[0].reply.code == 421
        assert hop.mails == 3
        pool.close()


async def test_what_nobody_wants_any_more_is_not_sent_by_another_connection() -> None:
    """Sent ahead behind a message in hand, cancelled, its connection lost: an idle connection must not take it up."""

    async with Scripted(lambda n: None if n == 1 else b"250 ok\r\n") as hop:
        hop.gates = {1: asyncio.Event(), 2: asyncio.Event()}
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=2, idle=5)

        def deliver(n: int) -> asyncio.Task[Any]:
            return asyncio.create_task(pool.deliver(envelope(), InMemory(f"Subject: {n}\r\n\r\n".encode())))

        tasks = [deliver(n) for n in range(4)]
        async with asyncio.timeout(5):
            while len(hop.messages) < 2:  # 0 and 1 in hand; 2 is ahead behind the first, 3 behind the second
                await asyncio.sleep(0.01)
        hop.gates[2].set()
        await asyncio.wait([tasks[3]], timeout=5)
        assert not tasks[2].done()
        tasks[2].cancel()
        await asyncio.sleep(0)
        hop.gates[1].set()  # closes the connection without an answer
        first, *_ = await asyncio.gather(*tasks, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert first.outcomes[0].uncertain
        await deliver(9)
        assert "Subject: 2" not in subjects(hop.messages)
        assert len(hop.messages) == 4
        pool.close()


async def test_a_greeting_that_ends_with_its_time_loses_no_job() -> None:
    async with Scripted(lambda n: b"250 ok\r\n") as hop:
        hop.go.set()
        hop.stall = 0.4
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me", command=0.2), size=1, idle=5)
        async with asyncio.timeout(5):
            result = await pool.deliver(envelope(), InMemory(DATA))
        assert result.outcomes[0].reply is not None
        pool.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no-such-host.invalid"])
async def test_a_host_that_cannot_be_looked_up_costs_no_place(host: str) -> None:
    pool = Pool(Endpoint(host, 25), ClientOptions("me"), size=2, idle=5)
    for _ in range(5):
        result = await pool.deliver(envelope(), InMemory(DATA))
        assert result.outcomes[0].reply is not None
        assert result.outcomes[0].reply.enhanced == "4.4.1"
    assert pool.open == 0


async def test_a_silent_next_hop_is_waited_for_once() -> None:
    async with Scripted(lambda n: b"250 ok\r\n", at_mail=lambda n: b"250 ok\r\n" if n <= 3 else None) as hop:
        hop.go.set()
        options = ClientOptions("me", command=0.3)
        pool = Pool(Endpoint("127.0.0.1", hop.port), options, size=3, idle=5)
        await asyncio.gather(*(pool.deliver(envelope(), InMemory(DATA)) for _ in range(3)))
        began = asyncio.get_running_loop().time()
        result = await pool.deliver(envelope(), InMemory(DATA))
        assert asyncio.get_running_loop().time() - began < 0.6
        assert result.outcomes[0].reply is not None
        assert "Timed out" in str(result.outcomes[0].reply)
        pool.close()


async def test_an_error_of_ours_is_one_message_s() -> None:
    async with Scripted(lambda n: b"250 ok\r\n") as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        broken = envelope("a@b.example", "c@d.example")
        object.__setattr__(broken, "body", None)
        object.__setattr__(broken, "client", None)
        object.__setattr__(broken, "ret", 5)
        object.__setattr__(broken, "sender", 5)
        work = [pool.deliver(e, InMemory(DATA)) for e in (envelope(), broken, envelope(), broken, envelope())]
        results = await asyncio.gather(*work)
        codes = [r.outcomes[0].reply.code for r in results if r.outcomes[0].reply]
        assert codes[1] == codes[3] == 451
        assert codes[0] == codes[4] == 250
        assert pool.open <= 1
        pool.close()


async def test_a_returned_job_gets_a_new_connection_however_busy_the_others_are() -> None:
    # The second transaction of every connection is refused with 421, so every other job is returned.
    seen: dict[int, int] = {}

    def at_mail(n: int) -> bytes:
        seen[hop.connections] = seen.get(hop.connections, 0) + 1
        return b"250 ok\r\n" if seen[hop.connections] < 2 else b"421 4.7.0 enough\r\n"

    async with Scripted(lambda n: b"250 ok\r\n", at_mail=at_mail) as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me"), size=1, idle=5)
        messages = [InMemory(f"Subject: {n}\r\n\r\n".encode()) for n in range(30)]
        results = await asyncio.gather(*(pool.deliver(envelope(), message) for message in messages))
        assert all(r.outcomes[0].reply and r.outcomes[0].reply.positive for r in results)
        assert sorted(subjects(hop.messages)) == sorted(f"Subject: {n}" for n in range(30))
        assert hop.connections <= 30
        pool.close()


async def test_a_server_that_writes_its_replies_one_by_one_is_not_waited_for() -> None:
    """As Postfix behind BDAT: Nagle's algorithm keeps the second write until the first is acknowledged."""

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 next.example ESMTP\r\n")
            while line := lines.readline():
                if line.startswith(b"EHLO"):
                    connection.sendall(b"250-next.example\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
                elif line.startswith(b"BDAT"):
                    lines.read(int(line.split()[1]))
                    connection.sendall(b"250 sender\r\n250 recipient\r\n")
                    connection.sendall(b"250 queued\r\n")

    async def inside(port: int) -> float:
        pool = Pool(Endpoint("127.0.0.1", port), ClientOptions("me.example"), size=1, idle=5)
        began = time.monotonic()
        for _ in range(200):
            (outcome,) = (await pool.deliver(envelope("a@b", "joe@example.test"), InMemory(DATA))).outcomes
            assert outcome.reply == Reply(250, "", "queued")
        pool.close()
        return time.monotonic() - began

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        assert await inside(server.getsockname()[1]) < 3  # it is 8 s with the delayed ACK of Linux, 40 ms
        thread.join(10)


@pytest.mark.parametrize(
    ("tls", "broken"),
    [("may", "garbage"), ("may", "garbage at once"), ("may", "silence"), ("may", "end"), ("require", "garbage")],
)
async def test_tls_that_fails_is_gone_without_only_where_it_may_be(tls: str, broken: str) -> None:
    said: list[bytes] = []
    sessions: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions.append(asyncio.current_task())
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(b"220 hi\r\n")
            while True:
                line = await reader.readuntil(b"\r\n")
                said.append(line)
                if line == b"STARTTLS\r\n":
                    writer.write(b"220 go\r\n" + (b"no TLS at all\r\n" if broken == "garbage at once" else b""))
                    if broken == "end":
                        return
                    await reader.read(1)
                    if broken == "garbage":
                        writer.write(b"no TLS at all\r\n")
                    await reader.read()
                    return
                if line == b"DATA\r\n":
                    writer.write(b"354 go\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250-hi\r\n250 STARTTLS\r\n" if line.startswith(b"EHLO") else b"250 ok\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    pool = Pool(endpoint, ClientOptions("me.example", tls=tls, command=2), size=1, idle=5)
    (outcome,) = (await pool.deliver(envelope(), InMemory(DATA))).outcomes
    assert outcome.reply is not None
    assert outcome.reply.positive is (tls == "may")
    assert (b"DATA\r\n" in said) is (tls == "may")
    assert said.count(b"STARTTLS\r\n") == 1
    assert ((await pool.check()) is None) is (tls == "may")
    if tls == "may":
        assert pool.open == 1
        assert (await pool.deliver(envelope(), InMemory(DATA))).outcomes[0].reply == outcome.reply
    pool.close()
    server.close()
    await asyncio.wait([session for session in sessions if session is not None], timeout=10)
    assert all(session is not None and session.done() for session in sessions)  # no connection is left open


@pytest.mark.parametrize(
    ("needs", "data", "taken"),
    [
        ({"body": "8BITMIME"}, b"Subject: x\r\n\r\nplain\r\n", True),
        ({"body": "8BITMIME"}, b"Subject: x\r\n\r\n\xc3\xbc\r\n", False),
        ({"smtputf8": True}, b"Subject: x\r\n\r\n\xc3\xbc\r\n", True),
        ({"smtputf8": True}, b"Subject: \xc3\xbc\r\n\r\nplain\r\n", False),
    ],
)
@pytest.mark.parametrize("large", [False, True])
async def test_what_only_the_parameters_say_keeps_no_mail_from_an_old_server(
    tmp_path: Path, needs: dict[str, Any], data: bytes, taken: bool, large: bool
) -> None:
    """Content in a file is what its sender said of it."""

    content: InMemory | InFile = InMemory(data)
    if large:
        (tmp_path / "body").write_bytes(data)
        content = InFile(tmp_path / "body", len(data))
    async with Scripted(lambda n: b"250 ok\r\n") as hop:
        hop.go.set()
        pool = Pool(Endpoint("127.0.0.1", hop.port), ClientOptions("me.example"), size=1, idle=5)
        (outcome,) = (await pool.deliver(replace(envelope(), **needs), content)).outcomes
        assert outcome.reply is not None
        expected = taken and not (large and needs.get("body"))
        assert outcome.reply.positive is expected
        assert len(hop.messages) == expected
        pool.close()


@pytest.mark.parametrize(
    ("host", "trusted", "good"), [("127.0.0.1", True, True), ("127.0.0.2", True, False), ("127.0.0.1", False, False)]
)
async def test_tls_that_is_required_proves_who_is_there(
    certificate: tuple[Path, Path], host: str, trusted: bool, good: bool
) -> None:
    offered = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    offered.load_cert_chain(*certificate)
    inbox = Inbox({})
    listener = Listener(inbox, Options(host="next.example", tls=offered))
    port = free_port()
    await listener.start(Endpoint(host, port))
    context = ssl.create_default_context(cafile=certificate[0] if trusted else None)
    pool = Pool(Endpoint(host, port), ClientOptions("me.example", tls="require", context=context), size=1, idle=5)
    (outcome,) = (await pool.deliver(envelope(), InMemory(DATA))).outcomes
    assert outcome.reply is not None
    assert outcome.reply.positive is good, outcome.reply
    assert [parcel.envelope.client.protocol for parcel in inbox.parcels] == ["ESMTPS"] * good
    pool.close()
    await listener.stop(1)
