"""The courier's contract, over every implementation: the double, Maildirs, SMTP and LMTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import free_port
from sendswitch.delivery.base import Courier
from sendswitch.delivery.maildir import MaildirCourier, folder_name
from sendswitch.mail.content import InFile, InMemory
from sendswitch.reply import Reply
from sendswitch.smtp.address import Endpoint
from sendswitch.smtp.client import ClientOptions, Pool
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
    "lmtp": lambda folder: over_the_wire(folder, lmtp=True),
}


@pytest.fixture(params=PLACES)
def at(
    request: pytest.FixtureRequest, run: Run, tmp_path: Path
) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    def runner(test: Callable[[Place], Awaitable[None]]) -> None:
        async def inside() -> None:
            async with PLACES[request.param](tmp_path / "place") as place:
                await test(place)

        run(inside())

    return runner


At = Callable[[Callable[[Place], Awaitable[None]]], None]


def test_a_positive_reply_means_it_is_there_byte_for_byte(at: At) -> None:
    async def test(place: Place) -> None:
        result = await place.courier.deliver(envelope("a@b", "joe@example.test"), InMemory(DATA))
        assert [o.reply.code for o in result.outcomes if o.reply] == [250]
        assert place.arrived("joe@example.test") == [DATA]

    at(test)


def test_each_recipient_has_an_outcome_in_order(at: At) -> None:
    async def test(place: Place) -> None:
        if not place.refuses:
            return
        to = ("joe@example.test", "no@example.test", "ann@example.test")
        result = await place.courier.deliver(envelope("a@b", *to), InMemory(DATA))
        assert [o.reply.code for o in result.outcomes if o.reply] == [250, 550, 250]
        assert place.arrived("no@example.test") == []
        assert place.arrived("ann@example.test") == [DATA]

    at(test)


def test_unanimous_is_all_or_none(at: At) -> None:
    async def test(place: Place) -> None:
        good = envelope("a@b", "joe@example.test", "ann@example.test")
        result = await place.courier.deliver(good, InMemory(DATA), unanimous=True)
        assert all(o.reply and o.reply.positive for o in result.outcomes)
        if place.refuses:
            mixed = envelope("a@b", "bob@example.test", "no@example.test")
            result = await place.courier.deliver(mixed, InMemory(DATA), unanimous=True)
            assert [o.reply.code if o.reply else None for o in result.outcomes] == [None, 550]
            assert place.arrived("bob@example.test") == []

    at(test)


def test_many_at_once_and_large_ones(at: At, tmp_path: Path) -> None:
    large = tmp_path / "large.eml"
    large.write_bytes(b"Subject: large\r\n\r\n" + b".x" * 35 + b"\r\n" + (b"." + b"y" * 70 + b"\r\n") * 20_000)

    async def test(place: Place) -> None:
        content = InFile(large, large.stat().st_size)
        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(place.courier.deliver(envelope("a@b", f"u{n}@example.test"), InMemory(DATA)))
            big = group.create_task(place.courier.deliver(envelope("a@b", "big@example.test"), content))
        assert big.result().outcomes[0].reply is not None
        assert all(place.arrived(f"u{n}@example.test") == [DATA] for n in range(20))
        assert place.arrived("big@example.test") == [large.read_bytes()]

    at(test)


def test_check_says_nothing_when_it_is_there(at: At) -> None:
    async def test(place: Place) -> None:
        assert await place.courier.check() is None

    at(test)


def test_a_pool_opens_no_more_than_its_size_and_reuses(run: Run) -> None:
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

    run(inside())


def test_a_connection_the_server_closed_while_idle_is_replaced_unseen(run: Run) -> None:
    async def inside() -> None:
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

    run(inside())
