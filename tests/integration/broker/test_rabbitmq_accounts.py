"""Accounts for users' own workers in a real RabbitMQ: what they may do, and all that they may not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import httpx
import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed, ProbableAuthenticationError

from sendswitch.bench.rabbitmq import RabbitMQ
from sendswitch.broker import frames
from sendswitch.broker.base import OWN_HAD
from sendswitch.broker.codec import encode_answer
from sendswitch.broker.rabbitmq import Hosts, topology
from sendswitch.broker.rabbitmq import publisher as publisher_module
from sendswitch.broker.rabbitmq.accounts import Accounts, url_of
from sendswitch.broker.rabbitmq.consumer import RabbitConsumer
from sendswitch.broker.rabbitmq.publisher import RabbitPublisher
from sendswitch.errors import Refused, Temporary
from sendswitch.mail.address import key
from sendswitch.mail.content import read_all
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import LOST, Verdict
from sendswitch.routing import POOL, rabbitmq_queue
from tests.integration.broker.contents import LARGE, SMALL, reading
from tests.integration.broker.test_rabbitmq import task

ANN, BOB = "ann@example.test", "bob@example.test"


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    connection = await aio_pika.connect(url)
    async with connection:
        yield await connection.channel()


def made(server: RabbitMQ, address: str) -> str:
    """Make an account with its queue; return its URL."""
    asyncio.run(topology.add_queue(Hosts([server.url]), rabbitmq_queue(address)))
    with Accounts(server.management, server.url) as accounts:
        return url_of(server.url, address, accounts.make(address))


class Noted:
    """What was noted about deliveries (`base.Hands`)."""

    def __init__(self) -> None:
        self.had: dict[tuple[int, int], bytes] = {}

    def begin(self, message: int, n: int, digest: bytes) -> None:
        self.had[message, n] = digest

    def end(self, message: int, n: int) -> None:
        del self.had[message, n]


def test_an_account_may_nothing_but_work(managed_rabbit: RabbitMQ) -> None:
    server = managed_rabbit
    ann, _ = made(server, ANN), made(server, BOB)

    async def attempts() -> list[str]:
        def publish(exchange: str, key: str, user_id: str | None = None) -> Any:
            async def do(channel: aio_pika.abc.AbstractChannel) -> None:
                place = channel.default_exchange if not exchange else await channel.get_exchange(exchange, ensure=False)
                await place.publish(aio_pika.Message(b"x", user_id=user_id), key, mandatory=False)

            return do

        def with_queue(name: str, what: str) -> Any:
            async def do(channel: aio_pika.abc.AbstractChannel) -> None:
                queue = await channel.get_queue(name, ensure=False)
                arguments = {"consume": (print,), "bind": (topology.OWN_VERDICTS, "#"), "get": ()}.get(what, ())
                options = {"get": {"fail": False}}.get(what, {})
                await getattr(queue, what)(*arguments, **options)

            return do

        def make(name: str) -> Any:
            return lambda channel: channel.declare_queue(name)

        tried: dict[str, Any] = {
            "its own key": publish("verdicts.own", f"n1.{ANN}", ANN),
            "its own queue": with_queue(rabbitmq_queue(ANN), "get"),
            "no key": publish("verdicts.own", ""),
            "the site's key": publish("verdicts.own", "n1.pool"),
            "the site's exchange": publish("verdicts", f"n1.{ANN}"),
            "the site's exchange and key": publish("verdicts", "n1.pool"),
            "another's key": publish("verdicts.own", f"n1.{BOB}"),
            "a key like its own": publish("verdicts.own", "n1.ann@exampleXtest"),
            "another's name": publish("verdicts.own", f"n1.{ANN}", BOB),
            "the site's queue": publish("", POOL),
            "another's queue": publish("", rabbitmq_queue(BOB)),
            "another exchange": publish("amq.topic", "x"),
            **{
                f"{what} {name}": with_queue(name, what)
                for name in (POOL, "tasks.alone", rabbitmq_queue(BOB))
                for what in ("consume", "get", "purge", "bind", "delete")
            },
            "bind its own": with_queue(rabbitmq_queue(ANN), "bind"),
            "delete its own": with_queue(rabbitmq_queue(ANN), "delete"),
            "a new queue": make("new"),
            "a nameless queue": make(""),
            "an exchange": lambda channel: channel.declare_exchange("new"),
        }
        done = []
        for name, attempt in tried.items():
            # RabbitMQ closes the channel, or for a wrong name only refuses the message.
            with contextlib.suppress(ChannelAccessRefused, ChannelPreconditionFailed):
                async with connected(ann) as channel:
                    await attempt(channel)
                    done.append(name)
        return done

    assert asyncio.run(attempts()) == ["its own key", "its own queue"]


async def test_a_worker_with_an_account_of_its_user(
    managed_rabbit: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "LOOK", 0.1)
    server, queue, noted, heard = managed_rabbit, rabbitmq_queue(ANN), Noted(), list[Answer]()
    url = await asyncio.to_thread(made, server, ANN)

    async def double(told: Mapping[str, Any]) -> Any:
        return told["n"] * 2

    def calls(owner: str) -> dict[str, Any]:
        return {"double": double} if owner == ANN else {}

    read = reading(tmp_path / "large")
    node = RabbitPublisher(Hosts([server.url]), "n1", read, calls, lambda owner: {"owner": owner}, noted)
    told: list[Any] = []

    async def on_settings(name: str, settings: Mapping[str, Any] | None) -> None:
        told.append(settings)

    async def until(true: Any) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.01)

    worker = RabbitConsumer([url], name="laptop", places=2, queues=(queue,), on_settings=on_settings)
    await node.open(heard.append, lambda: None)
    await worker.open()
    try:
        await node.offer(of_ann(1, Reference(1, len(LARGE), b"")))
        async with asyncio.timeout(20):
            lease = await worker.lease((queue,))
        assert node.begun(lease.task)  # before its content is looked at
        assert noted.had == {(1, 0): OWN_HAD}
        assert told == [{"owner": ANN}]
        assert read_all(await lease.content()) == LARGE
        assert await worker.call("n1", "double", {"n": 2}) == 4
        (one,) = node.workers()
        assert (one.name, one.account, one.queue) == ("laptop", ANN, queue)
        await lease.answer(Verdict.passed("seen"))
        await until(lambda: heard)
        assert heard.pop() == Answer(1, 0, "token 1", Verdict.passed("seen"))
        assert noted.had == {}
        await node.offer(of_ann(2, Reference(2, len(SMALL), b"")))
        async with asyncio.timeout(20):
            lease = await worker.lease((queue,))
        # What it says of a task of the site has no effect, whatever it knows of it.
        await node.offer(task(3))
        async with connected(url) as channel:
            verdicts = await channel.get_exchange(topology.OWN_VERDICTS, ensure=False)
            forged = encode_answer(Answer(3, 0, "token 3", Verdict.passed()))
            body = frames.encode("answer", forged, token="token 3")
            await verdicts.publish(aio_pika.Message(body, user_id=ANN), f"n1.{ANN}")
            lost = frames.encode("lost", token="token 2")
            await verdicts.publish(aio_pika.Message(lost, user_id=ANN), f"n1.{ANN}")
        await until(lambda: heard)
        assert [(answer.message, getattr(answer.result, "why", "")) for answer in heard] == [(2, LOST)]
        assert noted.had == {(2, 0): OWN_HAD}  # nobody knows what became of it
        # A removed account is disconnected at once.
        with Accounts(server.management, server.url) as accounts:
            assert await asyncio.to_thread(accounts.remove, ANN)
            assert not await asyncio.to_thread(accounts.remove, ANN)
        await until(lambda: node.absent(queue) > 0)
    finally:
        await worker.close()
        await node.close()


def of_ann(number: int, content: Reference) -> Task:
    return replace(task(number, content, queue=rabbitmq_queue(ANN)), pipeline=ANN)


class Far(datetime):
    """A time that others write, and Python cannot read."""

    def timestamp(self) -> float:
        return 2.0**62


@contextlib.asynccontextmanager
async def with_a_worker(server: RabbitMQ, folder: Path, noted: Noted | None = None) -> AsyncIterator[Any]:
    """A node, a worker of the site and one of Ann's; gives them, what was heard, and the URL of Ann's account."""
    heard: list[Answer] = []
    url = await asyncio.to_thread(made, server, ANN)
    node = RabbitPublisher(Hosts([server.url]), "n1", reading(folder), lambda owner: {}, lambda owner: {}, noted)

    async def on_settings(name: str, settings: Mapping[str, Any] | None) -> None:
        pass

    site = RabbitConsumer([server.url], name="site", places=5, queues=(POOL,), on_settings=on_settings)
    own = RabbitConsumer([url], name="own", places=5, queues=(rabbitmq_queue(ANN),), on_settings=on_settings)
    await node.open(heard.append, lambda: None)
    await site.open()
    await own.open()
    try:
        async with asyncio.timeout(30):
            yield node, site, own, heard, url
    finally:
        await site.close()
        await own.close()
        await node.close()


async def test_a_user_s_worker_that_breaks_its_connection_breaks_no_other(
    managed_rabbit: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library ends a connection over which a time comes that Python does not know."""
    monkeypatch.setattr(publisher_module, "LOOK", 0.1)
    log: list[str] = []

    async def until_logged(event: str, times: int) -> None:
        while "".join(log).count(f'"event":"{event}"') < times:
            log.append(capfd.readouterr().err)
            await asyncio.sleep(0.01)

    async with with_a_worker(managed_rabbit, tmp_path / "large") as (node, site, own, heard, url):
        await node.offer(of_ann(1, Reference(1, len(SMALL), b"")))
        lease = await own.lease((rabbitmq_queue(ANN),))
        async with connected(url) as channel:
            place = await channel.get_exchange(topology.OWN_VERDICTS, ensure=False)
            message = aio_pika.Message(b"x", user_id=ANN, headers={"CC": ["all.pool"]})
            message.timestamp = Far(2026, 1, 1, tzinfo=UTC)
            await place.publish(message, f"all.{ANN}", mandatory=False)
        await until_logged("broker_away", 1)
        assert node.trouble == ""
        await node.offer(task(2))
        await (await site.lease((POOL,))).answer(Verdict.passed("site"))
        await until_logged("broker_connected", 5)  # both of the node and two workers, and one of them again
        await lease.answer(Verdict.passed("own"))
        while len(heard) < 2:
            await asyncio.sleep(0.01)
        assert {answer.message for answer in heard} == {1, 2}
        log.append(capfd.readouterr().err)
        assert "".join(log).count("broker_away") == 1


async def test_what_a_worker_gave_back_or_discarded_it_has_had(managed_rabbit: RabbitMQ, tmp_path: Path) -> None:
    """Otherwise it would pass once no worker is there; and no flood of it fills the queue."""
    noted = Noted()
    async with with_a_worker(managed_rabbit, tmp_path / "large", noted) as (node, _, own, heard, _):
        for number in (1, 2, 3):
            await node.offer(of_ann(number, Reference(number, len(SMALL), b"")))
        first, second, third = [await own.lease((rabbitmq_queue(ANN),)) for _ in range(3)]
        await first.give_back()
        await second.discard()
        await own.say(third, "answer", b"rubbish")  # an answer all the same
        while len(heard) < 3:
            await asyncio.sleep(0.01)
        results = {answer.message: answer.result for answer in heard}
        assert [results[number].why for number in (1, 2)] == [LOST, LOST]
        assert "cannot be used" in results[3].reason
        assert set(noted.had) == {(1, 0), (2, 0)}


async def test_a_task_that_is_offered_again_was_had_all_the_same(managed_rabbit: RabbitMQ, tmp_path: Path) -> None:
    async with with_a_worker(managed_rabbit, tmp_path / "large") as (node, _, own, _, _):
        one = of_ann(1, Reference(1, len(SMALL), b""))
        await node.offer(one)
        await own.lease((rabbitmq_queue(ANN),))
        assert node.begun(one)
        await node.offer(one)
        assert node.begun(one)


@pytest.mark.parametrize("address", [ANN, "a.b+c_d@example.test", "x-y@bücher.example", "@example.test"])
def test_accounts_are_made_and_removed(managed_rabbit: RabbitMQ, address: str) -> None:
    server = managed_rabbit
    with Accounts(server.management, server.url) as accounts:
        first, second = accounts.make(address), accounts.make(address)
        assert key(address) in accounts.names()
        assert accounts.there(address)
        assert "guest" not in accounts.names()

    async def comes_in(password: str) -> bool:
        try:
            async with connected(url_of(server.url, address, password)):
                return True
        except ProbableAuthenticationError:
            return False

    assert [asyncio.run(comes_in(password)) for password in (first, second, "", "guest")] == [False, True, False, False]
    limits = httpx.get(f"{server.management}/api/user-limits/{quote(key(address), safe='')}").json()
    assert limits[0]["value"] == {"max-connections": 20, "max-channels": 80}
    with Accounts(server.management, server.url) as accounts:
        assert accounts.remove(address)
        assert key(address) not in accounts.names()
    assert not asyncio.run(comes_in(second))


async def test_a_new_password_ends_connections_with_the_old_one(managed_rabbit: RabbitMQ) -> None:
    server = managed_rabbit
    with Accounts(server.management, server.url) as accounts:
        old = await asyncio.to_thread(accounts.make, ANN)
        async with await aio_pika.connect(url_of(server.url, ANN, old)) as connection:
            listed = f"{server.management}/api/connections/username/{quote(ANN, safe='')}"
            while not (await asyncio.to_thread(httpx.get, listed)).json():  # told a little later
                await asyncio.sleep(0.05)
            gone = asyncio.Event()
            connection.close_callbacks.add(lambda *_: gone.set())
            await asyncio.to_thread(accounts.make, ANN)
            async with asyncio.timeout(20):
                await gone.wait()


def test_what_cannot_be_done_says_why(managed_rabbit: RabbitMQ) -> None:
    server = managed_rabbit
    server.control("add_user", "boss@example.test", "secret")
    server.control("set_user_tags", "boss@example.test", "administrator")
    with Accounts(server.management, server.url) as accounts:
        for change in (accounts.make, accounts.remove):
            with pytest.raises(Refused, match="tags administrator: not ours"):
                change("boss@example.test")
    with (
        Accounts(server.management.replace("guest@", "wrong@"), server.url) as accounts,
        pytest.raises(Refused, match="does not let this account manage"),
    ):
        accounts.make(ANN)
    with Accounts("http://a:b@127.0.0.1:9", server.url) as accounts, pytest.raises(Temporary, match="cannot be asked"):
        accounts.make(ANN)
