"""Tasks and answers through a real RabbitMQ, and what becomes of them when it, a node or a worker fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from sendswitch import metrics
from sendswitch.bench.rabbitmq import RABBITMQ, RabbitMQ
from sendswitch.broker import frames
from sendswitch.broker.codec import encode_answer
from sendswitch.broker.rabbitmq import Hosts, QueueType, topology
from sendswitch.broker.rabbitmq import consumer as consumer_module
from sendswitch.broker.rabbitmq import publisher as publisher_module
from sendswitch.broker.rabbitmq import sender as sender_module
from sendswitch.broker.rabbitmq.connection import open_channel
from sendswitch.broker.rabbitmq.consumer import RabbitConsumer
from sendswitch.broker.rabbitmq.publisher import RabbitPublisher
from sendswitch.errors import NotFound, Refused, Temporary
from sendswitch.mail.content import Content, InMemory, read_all
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import LOST, Deferral, Verdict
from sendswitch.routing import ALONE, POOL, rabbitmq_queue
from sendswitch.testing import envelope
from tests.conftest import missing
from tests.integration.broker.contents import LARGE, SMALL, reading


def task(number: int, content: Content | Reference | None = None, *, queue: str = POOL, deadline: float = 5.0) -> Task:
    mail = envelope()
    reference = Reference(number, len(SMALL), b"")
    return Task(
        number, 0, f"token {number}", mail.recipients[0], mail.sender, mail.client, content or reference,
        "ann@example.test", 1, queue, deadline,
    )  # fmt: skip


@dataclass
class Sides:
    """A node, its workers, and what they heard."""

    url: str
    publisher: RabbitPublisher
    heard: list[Answer] = field(default_factory=list)
    reconnected: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    told: list[Mapping[str, Any]] = field(default_factory=list)
    workers: list[RabbitConsumer] = field(default_factory=list)

    async def worker(self, places: int = 1, *, name: str = "w", queue: str = POOL) -> RabbitConsumer:
        async def on_settings(node: str, settings: Mapping[str, Any] | None) -> None:
            assert node == "n1"
            self.told.append(dict(settings or {"gone": True}))

        made = RabbitConsumer([self.url], name=name, places=places, queues=(queue,), on_settings=on_settings)
        self.workers.append(made)
        await made.open()
        return made

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.01)


@pytest.fixture
def sides(rabbit: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(publisher_module, "LOOK", 0.1)
    monkeypatch.setattr(consumer_module, "REPORT", 0.1)
    monkeypatch.setattr(consumer_module, "UNABLE", 0.1)

    @asynccontextmanager
    async def made(**calls: Any) -> AsyncIterator[Sides]:
        read = reading(tmp_path / "large")

        await topology.install(Hosts([rabbit.url]))
        await emptied(rabbit.url)
        settings: dict[str, Any] = {"n": 1}
        found = Sides(
            rabbit.url,
            RabbitPublisher(
                Hosts([rabbit.url]), "n1", read, lambda owner: {} if owner else calls, lambda owner: settings
            ),
        )
        found.settings = settings
        await found.publisher.open(found.heard.append, lambda: found.reconnected.append(1))
        try:
            yield found
        finally:
            for one in found.workers:
                await one.close()
            await found.publisher.close()

    return made


async def emptied(url: str, queue: str = POOL) -> None:
    """Drop every task that waits for workers of the site."""
    connection = await aio_pika.connect(url)
    async with connection:
        await (await (await connection.channel()).get_queue(queue)).purge()


async def speak(
    url: str, key: str, *bodies: bytes, user_id: str | None = "guest", exchange: str = topology.VERDICTS
) -> None:
    """Publish to the exchange of verdicts, as anybody could who knows a password."""
    connection = await aio_pika.connect(url)
    async with connection:
        place = await (await connection.channel()).get_exchange(exchange, ensure=False)
        for body in bodies:
            await place.publish(aio_pika.Message(body, user_id=user_id), key)


async def test_an_answer_reaches_the_node(sides: Any) -> None:
    async with sides() as both:
        worker = await both.worker()
        for number in (1, 2):
            await both.publisher.offer(task(number))
        for result in (Verdict.passed("yes"), Deferral("the scanner is away")):
            lease = await worker.lease((POOL,))
            assert lease.node == "n1"
            assert read_all(await lease.content()) == SMALL
            await lease.answer(result)
        await both.until(lambda: len(both.heard) == 2)
        assert both.heard == [
            Answer(1, 0, "token 1", Verdict.passed("yes")),
            Answer(2, 0, "token 2", Deferral("the scanner is away")),
        ]
        assert not both.publisher.has(task(1))
        assert both.told == [{"n": 1}]
        both.settings["n"] = 2
        await both.publisher.offer(task(3))
        await worker.lease((POOL,))
        assert both.told == [{"n": 1}, {"n": 2}]


async def test_large_content_is_fetched_in_pieces_by_who_has_the_task(sides: Any) -> None:
    async with sides() as both:
        worker = await both.worker(places=2)
        await both.publisher.offer(task(1, Reference(1, len(LARGE), b"")))
        lease = await worker.lease((POOL,))
        got: Any = await lease.content()
        assert read_all(got) == LARGE
        path = got.path
        await lease.answer(Verdict.passed())
        del got
        assert not path.exists()
        await both.until(lambda: both.heard)
        with pytest.raises(Refused, match="has its answer already"):
            await worker.call("n1", "content", {"token": "token 1", "start": 0})


async def test_what_is_given_back_another_worker_gets(sides: Any) -> None:
    async with sides() as both:
        worker = await both.worker(places=5)
        for number in (1, 2):
            await both.publisher.offer(task(number))
        first = await worker.lease((POOL,))
        await worker.stop_taking()
        other = await both.worker(places=5, name="other")
        assert (await other.lease((POOL,))).task.message == 2
        await first.give_back()
        await first.answer(Verdict.passed("from a worker that gave it back"))
        assert (await other.lease((POOL,))).task.message == 1
        assert both.heard == []


async def test_a_worker_that_closes_loses_nothing(sides: Any) -> None:
    async with sides() as both:
        worker = await both.worker(places=2)
        for number in (1, 2):
            await both.publisher.offer(task(number))
        await worker.lease((POOL,))
        await worker.close()
        other = await both.worker(places=2, name="other")
        assert {(await other.lease((POOL,))).task.message for _ in range(2)} == {1, 2}
        assert both.heard == []


async def test_a_task_whose_worker_died_comes_back_as_lost(sides: Any, rabbit: RabbitMQ) -> None:
    async with sides() as both:
        connection = await aio_pika.connect(rabbit.url)
        queue = await (await connection.channel()).get_queue(POOL)
        await both.publisher.offer(task(1))
        while await queue.get(fail=False) is None:
            await asyncio.sleep(0.01)
        await connection.close()  # it never acknowledged
        await both.worker()
        await both.until(lambda: both.heard)
        assert (both.heard[0].message, both.heard[0].result.why) == (1, LOST)


async def test_a_node_knows_where_its_tasks_are(sides: Any, monkeypatch: pytest.MonkeyPatch, rabbit: RabbitMQ) -> None:
    monkeypatch.setattr(publisher_module, "SILENT", 0.5)
    async with sides() as both:
        waiting, had = task(1), task(2)
        assert not both.publisher.has(waiting)
        await both.publisher.offer(waiting)
        assert both.publisher.has(waiting)
        worker = await both.worker()
        await worker.lease((POOL,))
        await both.publisher.offer(had)
        await both.until(both.publisher.workers)
        (told,) = both.publisher.workers()
        assert (told.name, told.account, told.places, told.leased) == ("w", "pool", 1, 1)
        await asyncio.sleep(1)  # longer than a silent worker is believed
        assert both.publisher.has(waiting)
        assert both.publisher.has(had)  # it is in the queue
        await worker.close()  # both go back
        await both.until(lambda: both.publisher.workers() == [])
        assert both.publisher.has(waiting)
        await emptied(rabbit.url)
        await both.until(lambda: not both.publisher.has(waiting) and not both.publisher.has(had))


async def test_a_task_that_is_had_for_too_long_is_answered_for(
    sides: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publisher_module, "BEHIND", 0.2)
    async with sides() as both:
        worker = await both.worker()
        await both.publisher.offer(task(1, deadline=0.1))
        lease = await worker.lease((POOL,))
        await both.until(lambda: both.heard)
        assert both.heard[0].result == Deferral("its worker did not answer in time")
        await lease.answer(Verdict.passed("too late"))
        await both.until(lambda: "answer_ignored" in capfd.readouterr().err)
        assert len(both.heard) == 1


async def test_what_a_stranger_says_has_no_effect(sides: Any, rabbit: RabbitMQ) -> None:
    async with sides() as both:
        await both.publisher.offer(task(1))
        passed = encode_answer(Answer(1, 0, "token 1", Verdict.passed()))
        forged = encode_answer(Answer(1, 0, "token 9", Verdict.passed()))
        await speak(
            rabbit.url,
            "n1.eve@example.test",
            frames.encode("answer", passed, token="token 1"),
            frames.encode("back", token="token 1"),
            frames.encode("lost", token="token 1"),
            frames.encode("discard", token="token 1"),
            frames.encode("working", name="x", places=1, done=0, tokens=["token 1", 5]),
            exchange=topology.OWN_VERDICTS,
        )
        await speak(
            rabbit.url,
            "n1.pool",
            b"rubbish",
            frames.encode("answer", forged, token="token 9"),
            frames.encode("dance"),
            frames.encode("call", id=1, name="lists", arguments={}),  # wants no reply
        )
        for key in ("n1.pool.x", "n1.x@example.test.pool", "n1.own.pool", "n1."):
            await speak(rabbit.url, key, frames.encode("answer", passed, token="token 1"))
        await speak(
            rabbit.url, "n1.pool", frames.encode("answer", passed, token="token 1"), exchange=topology.OWN_VERDICTS
        )
        await speak(rabbit.url, "n1.pool", frames.encode("answer", passed, token="token 1"), user_id=None)
        worker = await both.worker()
        lease = await worker.lease((POOL,))
        assert both.heard == []
        await lease.answer(Verdict.deny("no"))
        await both.until(lambda: both.heard)
        assert [answer.result for answer in both.heard] == [Verdict.deny("no")]


def ignored() -> float:
    return metrics.REGISTRY.get_sample_value("sendswitch_answers_ignored_total") or 0.0


def looks_counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return when the queues are looked at, in monotonic seconds, as it goes on."""
    looks, real = list[float](), open_channel

    async def counted(*given: Any, **more: Any) -> Any:
        looks.append(time.monotonic())
        return await real(*given, **more)

    monkeypatch.setattr(publisher_module, "open_channel", counted)
    return looks


async def test_what_is_ignored_is_logged_once_between_two_looks(
    sides: Any, rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publisher_module, "LOOK", 60.0)
    async with sides() as both:
        await both.until(lambda: both.publisher.trouble == "")
        before = ignored()
        await speak(rabbit.url, "n1.pool", *[b"rubbish"] * 50)
        await both.until(lambda: ignored() == before + 50)
        assert capfd.readouterr().err.count("answer_ignored") == 1


async def test_a_user_s_queue_holds_less_content_than_the_site_s(sides: Any, rabbit: RabbitMQ) -> None:
    large, own = InMemory(b"x" * 100_000), rabbitmq_queue("ann@example.test")
    await topology.add_queue(Hosts([rabbit.url]), own)
    async with sides() as both:
        await both.publisher.offer(task(1, large))
        await both.publisher.offer(task(2, large, queue=own))
        connection = await aio_pika.connect(rabbit.url)
        async with connection:
            channel = await connection.channel()
            sizes = [len((await (await channel.get_queue(name)).get()).body) for name in (POOL, own)]
        assert sizes[0] > 100_000
        assert sizes[1] < 10_000


async def test_a_call_returns_its_result_or_its_error(sides: Any) -> None:
    async def double(told: Mapping[str, Any]) -> Any:
        return told["n"] * 2

    async def fail(told: Mapping[str, Any]) -> Any:
        raise NotFound("no pipeline")

    async with sides(double=double, fail=fail) as both:
        worker = await both.worker()
        await both.publisher.offer(task(1))
        await worker.lease((POOL,))
        results = await asyncio.gather(*(worker.call("n1", "double", {"n": n}) for n in range(20)))
        assert results == list(range(0, 40, 2))
        with pytest.raises(NotFound, match="no pipeline"):
            await worker.call("n1", "fail", {})
        with pytest.raises(Refused, match="double"):
            await worker.call("n1", "double", {})
        with pytest.raises(Temporary):
            await worker.call("n2", "double", {"n": 1})  # there is no such node


async def test_a_user_s_worker_asks_nothing_of_the_site(sides: Any, rabbit: RabbitMQ) -> None:
    queue = rabbitmq_queue("Ann@Example.test")
    await topology.add_queue(Hosts([rabbit.url]), queue)

    async def double(told: Mapping[str, Any]) -> Any:
        return told["n"] * 2

    async with sides(double=double) as both:
        worker = await both.worker(queue=queue)
        await both.publisher.offer(task(1, queue=queue))
        lease = await worker.lease((queue,))
        with pytest.raises(Refused, match="double is not for workers of ann@"):
            await worker.call("n1", "double", {"n": 1})
        await lease.answer(Verdict.passed())
        await both.until(lambda: both.heard)


async def test_a_queue_without_a_worker_is_known(sides: Any) -> None:
    async with sides() as both:
        assert both.publisher.absent(POOL) == 0.0  # nobody knows yet
        await both.until(lambda: both.publisher.absent(POOL) > 0.3)
        worker = await both.worker()
        await both.until(lambda: both.publisher.absent(POOL) == 0.0)
        await both.publisher.offer(task(1))
        await worker.lease((POOL,))
        await both.until(lambda: both.publisher.begun(task(1)))
        assert not both.publisher.begun(task(2))
        await worker.close()
        await both.until(lambda: both.publisher.absent(POOL) > 0.0)


async def test_a_look_that_fails_is_not_the_last(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without looks, mail would wait for ever for workers that are gone."""
    failed: list[int] = []

    async def broken(*_: object, **__: object) -> Any:
        failed.append(1)
        raise ValueError("what nobody thought of")

    async with sides() as both:
        await both.until(lambda: both.publisher.absent(POOL) > 0)
        with monkeypatch.context() as patch:
            patch.setattr(publisher_module, "open_channel", broken)
            patch.setattr(publisher_module, "SILENT", 0.5)
            await both.until(lambda: len(failed) > 1)
            await both.until(lambda: both.publisher.absent(POOL) == 0.0)  # nobody knows any more
        await both.until(lambda: both.publisher.absent(POOL) > 0)


async def test_a_task_whose_worker_went_is_lost_when_nobody_is_there_to_say_so(
    sides: Any, monkeypatch: pytest.MonkeyPatch, rabbit: RabbitMQ
) -> None:
    monkeypatch.setattr(publisher_module, "SILENT", 0.5)
    async with sides() as both:
        await both.publisher.offer(task(1))
        connection = await aio_pika.connect(rabbit.url)
        channel = await connection.channel()
        queue = await channel.get_queue(POOL)
        while await queue.get(fail=False) is None:
            await asyncio.sleep(0.01)
        body = frames.encode("working", name="w", places=1, done=0, tokens=["token 1"])
        exchange = await channel.get_exchange(topology.VERDICTS)
        await exchange.publish(aio_pika.Message(body, user_id="guest"), "all.pool")
        await both.until(lambda: both.publisher.begun(task(1)))
        await connection.close()
        await both.until(lambda: both.heard)
        assert (both.heard[0].message, both.heard[0].result.why) == (1, LOST)


async def test_a_task_is_not_lost_while_its_worker_cannot_be_heard(
    sides: Any, monkeypatch: pytest.MonkeyPatch, rabbit: RabbitMQ
) -> None:
    looks, own = looks_counted(monkeypatch), rabbitmq_queue("ann@example.test")
    await topology.add_queue(Hosts([rabbit.url]), own)
    async with sides() as both:
        await both.publisher.offer(task(1, queue=own))
        working = frames.encode("working", name="w", places=1, done=0, tokens=["token 1"])
        await speak(rabbit.url, "n1.ann@example.test", working, exchange=topology.OWN_VERDICTS)
        await both.until(lambda: both.publisher.begun(task(1, queue=own)))
        with monkeypatch.context() as patch:
            patch.setattr(publisher_module, "OWN_WAITING", -1)  # RabbitMQ refuses such a queue
            await asyncio.to_thread(rabbit.control, "close_all_user_connections", "guest", "test")
            away = time.monotonic()
            monkeypatch.setattr(publisher_module, "SILENT", 0.5)  # not before: the command takes longer
            await both.until(lambda: sum(one > away + 1.0 for one in looks) > 3)
            assert both.heard == []
        await both.until(lambda: both.heard)
        assert (both.heard[0].message, both.heard[0].result.why) == (1, LOST)


async def test_a_task_that_nobody_asks_for_any_more_is_forgotten(
    sides: Any, monkeypatch: pytest.MonkeyPatch, rabbit: RabbitMQ
) -> None:
    monkeypatch.setattr(publisher_module, "EXPIRES", 0.2)
    looks = looks_counted(monkeypatch)
    async with sides() as both:
        await both.publisher.offer(task(1))
        offered = time.monotonic()
        both.publisher.absent(POOL)  # so that looks go on
        await both.until(lambda: sum(one > offered + 0.4 for one in looks) > 1)
        before = ignored()
        late = encode_answer(Answer(1, 0, "token 1", Verdict.passed()))
        await speak(rabbit.url, "n1.pool", frames.encode("answer", late, token="token 1"))
        await both.until(lambda: ignored() == before + 1)
        assert both.heard == []


async def test_a_missing_queue_of_a_user_is_made(sides: Any) -> None:
    queue = rabbitmq_queue("new@example.test")
    async with sides() as both:
        await both.publisher.offer(task(1, queue=queue))
        worker = await both.worker(queue=queue)
        assert (await worker.lease((queue,))).task.message == 1


async def test_a_queue_that_is_deleted_under_us_is_made_again(
    sides: Any, rabbit: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sides() as both:
        worker = await both.worker()
        await both.publisher.offer(task(1))
        await worker.lease((POOL,))
        waiting = task(2)
        await both.publisher.offer(waiting)
        connection = await aio_pika.connect(rabbit.url)
        async with connection:
            await (await connection.channel()).queue_delete(POOL)
        await both.until(lambda: not both.publisher.has(waiting))
        await both.publisher.offer(task(3))
        assert (await worker.lease((POOL,))).task.message == 3


async def test_a_rabbitmq_that_takes_nothing_is_called_again(
    sides: Any, monkeypatch: pytest.MonkeyPatch, rabbit: RabbitMQ
) -> None:
    """It may have forgotten what this connection has sent."""
    monkeypatch.setattr(sender_module, "TAKEN", 0.5)
    async with sides() as both:
        await both.until(lambda: not both.publisher.trouble)
        await asyncio.to_thread(rabbit.control, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            offering = asyncio.create_task(both.publisher.offer(task(1)))
            await both.until(lambda: "has taken no task for 0.5 s" in both.publisher.trouble)
            await offering  # the task may be there or not
        finally:
            await asyncio.to_thread(rabbit.control, "set_vm_memory_high_watermark", "absolute", "2GB")
        await both.until(lambda: both.reconnected and not both.publisher.trouble)
        await both.publisher.offer(task(1))
        worker = await both.worker()
        assert (await worker.lease((POOL,))).task.message == 1


async def test_a_full_queue_takes_nothing_and_disturbs_no_other(
    sides: Any, monkeypatch: pytest.MonkeyPatch, rabbit: RabbitMQ
) -> None:
    monkeypatch.setattr(sender_module, "PAUSES", (0.0, 0.01, 0.02))
    one = '{"max-length": 1, "overflow": "reject-publish"}'
    await asyncio.to_thread(rabbit.control, "set_policy", "full", "^tasks.alone$", one)
    try:
        async with sides() as both:
            await both.until(lambda: not both.publisher.trouble)
            await both.publisher.offer(task(1, queue=ALONE))
            for number in (2, 3, 4):
                with pytest.raises(Temporary, match=r"does not take tasks for tasks\.alone"):
                    await both.publisher.offer(task(number, queue=ALONE))
            await both.publisher.offer(task(5))
            assert both.reconnected == []
            await emptied(rabbit.url, ALONE)
            await both.publisher.offer(task(6, queue=ALONE))
    finally:
        await asyncio.to_thread(rabbit.control, "clear_policy", "full")
        await emptied(rabbit.url, ALONE)


async def test_content_that_cannot_be_read_is_not_offered(sides: Any) -> None:
    async with sides() as both:
        with pytest.raises(Temporary, match="the disk is away"):
            await both.publisher.offer(task(404))


async def test_a_message_that_is_no_task_is_dropped(sides: Any, rabbit: RabbitMQ) -> None:
    async with sides() as both:
        connection = await aio_pika.connect(rabbit.url)
        async with connection:
            channel = await connection.channel()
            for body in (b"rubbish", b"{}\n"):
                await channel.default_exchange.publish(aio_pika.Message(body, reply_to="n1"), POOL)
        worker = await both.worker()
        await both.publisher.offer(task(1))
        assert (await worker.lease((POOL,))).task.message == 1


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_the_topology_is_made_checked_and_removed(rabbit: RabbitMQ, queue_type: QueueType) -> None:
    hosts = Hosts(["amqp://guest:guest@127.0.0.1:1/", rabbit.url], queue_type)
    await gone(rabbit.url, POOL, ALONE)
    await topology.install(hosts)
    await topology.install(hosts)
    assert await topology.missing(hosts) == []
    await topology.remove(hosts)
    assert await topology.missing(hosts) == [
        "there is no exchange verdicts",
        "there is no exchange verdicts.own",
        f"there is no queue {POOL}",
        f"there is no queue {ALONE}",
    ]
    await topology.install(hosts)
    connection = await aio_pika.connect(rabbit.url)
    async with connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(b"x"), POOL)
        async with asyncio.timeout(10):  # a quorum queue tells how many it has a little later
            while not (await channel.declare_queue(POOL, passive=True)).declaration_result.message_count:
                await asyncio.sleep(0.05)
        with pytest.raises(Refused, match="is in use"):
            await topology.remove(hosts)
    with pytest.raises(Temporary, match=r"amqp://127\.0\.0\.1:1/: nothing listens there"):
        await topology.missing(Hosts(hosts.urls[:1]))
    await gone(rabbit.url, POOL, ALONE)


async def test_queues_of_another_type_are_told(rabbit: RabbitMQ) -> None:
    own, other = rabbitmq_queue("ann@example.test"), rabbitmq_queue("bob@example.test")
    hosts = Hosts([rabbit.url], "quorum")
    await gone(rabbit.url, POOL, ALONE, own, other)
    await topology.add_queue(Hosts([rabbit.url]), own)
    told = await topology.missing(hosts, [own, other])
    assert [problem.split(" is not ")[0] for problem in told] == [f"the queue {name}" for name in (POOL, ALONE, own)]
    assert "not of the type quorum (broker.queue_type): remove it in RabbitMQ" in told[0]
    with pytest.raises(topology.OtherType):
        await topology.install(hosts)
    await gone(rabbit.url, own)
    assert await topology.missing(Hosts([rabbit.url]), [own, other]) == []


async def gone(url: str, *queues: str) -> None:
    """Remove queues, whatever is in them."""
    connection = await aio_pika.connect(url)
    async with connection:
        for name in queues:
            await (await connection.channel()).queue_delete(name)


async def test_everything_goes_on_when_rabbitmq_was_restarted(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "LOOK", 0.1)
    monkeypatch.setattr(consumer_module, "REPORT", 0.1)
    if not RABBITMQ.exists():
        missing("RabbitMQ is missing; as root: apt-get install rabbitmq-server")
    server = RabbitMQ(tmp_path_factory.mktemp("restarted"))
    await asyncio.to_thread(server.start)
    try:

        async def read(reference: Reference) -> Content:
            return InMemory(SMALL)

        publisher = RabbitPublisher(Hosts([server.url]), "n1", read, lambda owner: {}, lambda owner: {"n": 1})
        both = Sides(server.url, publisher)

        had: list[bool] = []

        def reconnected() -> None:
            had.append(publisher.has(task(1)))

        await publisher.open(both.heard.append, reconnected)
        await publisher.offer(task(1))
        await both.until(lambda: publisher.absent(ALONE) > 0.0)
        worker = await both.worker(places=5)
        old = await worker.lease((POOL,))  # and nothing is awaited before the kill, or the worker may have said so
        await asyncio.to_thread(server.kill)
        await both.until(lambda: old.ended and publisher.trouble)
        await old.answer(Verdict.passed("over a connection that is gone"))
        offering = asyncio.create_task(publisher.offer(task(2)))
        await asyncio.sleep(0.1)
        assert not offering.done()  # it waits for RabbitMQ
        away = time.monotonic()
        await asyncio.to_thread(server.start)
        await both.until(lambda: had)
        await both.until(lambda: publisher.absent(ALONE) > 0.0)
        assert publisher.absent(ALONE) < time.monotonic() - away  # workers have time to connect again, too
        assert had[0] is False  # RabbitMQ has forgotten it; the node offers it again
        await offering
        lease = await worker.lease((POOL,))
        assert lease.task.message == 2
        await lease.answer(Verdict.passed())
        await both.until(lambda: both.heard)
        assert [answer.message for answer in both.heard] == [2]
        await worker.close()
        await publisher.close()
    finally:
        await asyncio.to_thread(server.kill)
