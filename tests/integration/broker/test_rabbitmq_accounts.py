"""Accounts for users' own workers in a real RabbitMQ: what they may do, and all that they may not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import httpx
import pytest

from sendswitch.bench.rabbitmq import RabbitMQ
from sendswitch.broker import frames
from sendswitch.broker.base import OWN_HAD
from sendswitch.broker.codec import encode_answer
from sendswitch.broker.rabbitmq import publisher as publisher_module
from sendswitch.broker.rabbitmq import topology
from sendswitch.broker.rabbitmq.accounts import Accounts, url_of
from sendswitch.broker.rabbitmq.consumer import RabbitConsumer
from sendswitch.broker.rabbitmq.publisher import RabbitPublisher
from sendswitch.errors import Refused, Temporary
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
    asyncio.run(topology.add_queue([server.url], rabbitmq_queue(address)))
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
                arguments = {"consume": (print,), "bind": (topology.VERDICTS, "#"), "get": ()}.get(what, ())
                options = {"get": {"fail": False}}.get(what, {})
                await getattr(queue, what)(*arguments, **options)

            return do

        def make(name: str) -> Any:
            return lambda channel: channel.declare_queue(name)

        tried: dict[str, Any] = {
            "its own key": publish("verdicts", f"n1.own.{ANN}", ANN),
            "its own queue": with_queue(rabbitmq_queue(ANN), "get"),
            "no key": publish("verdicts", ""),
            "the site's key": publish("verdicts", "n1.pool"),
            "another's key": publish("verdicts", f"n1.own.{BOB}"),
            "a key like its own": publish("verdicts", "n1.own.ann@exampleXtest"),
            "another's name": publish("verdicts", f"n1.own.{ANN}", BOB),
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
            with contextlib.suppress(Exception):
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
    node = RabbitPublisher([server.url], "n1", read, calls, lambda owner: {"owner": owner}, noted)
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
            verdicts = await channel.get_exchange(topology.VERDICTS, ensure=False)
            forged = encode_answer(Answer(3, 0, "token 3", Verdict.passed()))
            body = frames.encode("answer", forged, token="token 3")
            await verdicts.publish(aio_pika.Message(body, user_id=ANN), f"n1.own.{ANN}")
            lost = frames.encode("lost", token="token 2")
            await verdicts.publish(aio_pika.Message(lost, user_id=ANN), f"n1.own.{ANN}")
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


@pytest.mark.parametrize("address", [ANN, "a.b+c'%/@example.test", "ä@xn--bcher-kva.example", "@example.test"])
def test_accounts_are_made_and_removed(managed_rabbit: RabbitMQ, address: str) -> None:
    server = managed_rabbit
    with Accounts(server.management, server.url) as accounts:
        first, second = accounts.make(address), accounts.make(address)
        assert address in accounts.names()
        assert "guest" not in accounts.names()

    async def comes_in(password: str) -> bool:
        try:
            async with connected(url_of(server.url, address, password)):
                return True
        except Exception:
            return False

    assert [asyncio.run(comes_in(password)) for password in (first, second, "", "guest")] == [False, True, False, False]
    limits = httpx.get(f"{server.management}/api/user-limits/{quote(address, safe='')}").json()
    assert limits[0]["value"] == {"max-connections": 20, "max-channels": 80}
    with Accounts(server.management, server.url) as accounts:
        assert accounts.remove(address)
        assert address not in accounts.names()
    assert not asyncio.run(comes_in(second))


def test_what_cannot_be_done_says_why(managed_rabbit: RabbitMQ) -> None:
    server = managed_rabbit
    with Accounts(server.management, server.url) as accounts, pytest.raises(Refused, match="too long"):
        accounts.make("x" * 200 + "@example.test")
    server.control("add_user", "boss@example.test", "secret")
    server.control("set_user_tags", "boss@example.test", "administrator")
    with (
        Accounts(server.management, server.url) as accounts,
        pytest.raises(Refused, match=r"tags administrator; it is"),
    ):
        accounts.make("boss@example.test")
    with (
        Accounts(server.management.replace("guest@", "wrong@"), server.url) as accounts,
        pytest.raises(Refused, match="does not let this account manage"),
    ):
        accounts.make(ANN)
    with Accounts("http://a:b@127.0.0.1:9", server.url) as accounts, pytest.raises(Temporary, match="cannot be asked"):
        accounts.make(ANN)
