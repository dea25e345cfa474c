"""The broker's contract, over every implementation, and with tasks and answers that went through the codec."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from sendswitch.broker.base import Lease, OnAnswer, OnReconnect, TaskConsumer, TaskPublisher
from sendswitch.broker.codec import decode_answer, decode_task, encode_answer, encode_task
from sendswitch.broker.embedded import EmbeddedBroker, EmbeddedPublisher, FairQueue
from sendswitch.mail.content import Content, InMemory, read_all
from sendswitch.mail.envelope import Recipient
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import LOST, Deferral, Verdict
from sendswitch.testing import envelope

STORED = b"Subject: stored\r\n\r\nText\r\n"


async def read(reference: Reference) -> Content:
    return InMemory(STORED)


class Coded(EmbeddedPublisher):
    """The embedded broker, with tasks and answers as they go to another machine."""

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        await super().open(lambda answer: on_answer(decode_answer(encode_answer(answer))), on_reconnect)

    async def offer(self, task: Task) -> None:
        await super().offer(decode_task(encode_task(task)))


def embedded(broker: EmbeddedBroker) -> TaskPublisher:
    return broker.publisher()


PUBLISHERS: dict[str, Callable[[EmbeddedBroker], TaskPublisher]] = {"embedded": embedded, "coded": Coded}


class Sides:
    """A node's side and a worker's side, and the answers that the node heard."""

    def __init__(self, broker: EmbeddedBroker, publisher: TaskPublisher) -> None:
        self.broker, self.publisher, self.consumer = broker, publisher, broker.consumer(read)
        self.heard: list[Answer] = []

    async def lease(self, *queues: str) -> Lease:
        return await self.consumer.lease(queues or ("q",))

    def another(self) -> TaskConsumer:
        return self.broker.consumer(read)


@pytest.fixture(params=PUBLISHERS)
def sides(request: pytest.FixtureRequest) -> Callable[[], Any]:
    @asynccontextmanager
    async def made() -> AsyncIterator[Sides]:
        broker = EmbeddedBroker()
        found = Sides(broker, PUBLISHERS[request.param](broker))
        await found.publisher.open(found.heard.append, lambda: None)
        await found.consumer.open()
        yield found
        await found.consumer.close()
        await found.publisher.close()

    return made


def task(number: int, queue: str = "q", content: Content | Reference = InMemory(b"")) -> Task:  # noqa: B008 - a value
    mail = envelope()
    return Task(
        number, 0, f"token {number}", mail.recipients[0], mail.sender, mail.client, content, "ann@example.test", 1,
        queue, 0.0,
    )  # fmt: skip


async def test_an_answer_reaches_the_node_with_its_token(sides: Any) -> None:
    async with sides() as both:
        await both.publisher.offer(task(1))
        await both.publisher.offer(task(2))
        await (await both.lease()).answer(Verdict.passed("yes"))
        await (await both.lease()).answer(Deferral("the scanner is away"))
        assert both.heard == [
            Answer(1, 0, "token 1", Verdict.passed("yes")),
            Answer(2, 0, "token 2", Deferral("the scanner is away")),
        ]


async def test_after_close_the_node_hears_nothing(sides: Any) -> None:
    async with sides() as both:
        await both.publisher.offer(task(1))
        lease = await both.lease()
        await both.publisher.close()
        await lease.answer(Verdict.passed())
        assert both.heard == []


async def test_the_oldest_first_and_only_from_the_queues_asked_for(sides: Any) -> None:
    async with sides() as both:
        for number in (1, 2):
            await both.publisher.offer(task(number))
        await both.publisher.offer(task(3, "other"))
        assert [(await both.lease("other", "q")).task.message for _ in range(3)] == [3, 1, 2]
        waiting = asyncio.create_task(both.lease("other"))
        await asyncio.sleep(0)
        await both.publisher.offer(task(4))
        await both.publisher.offer(task(5, "other"))
        assert (await waiting).task.message == 5
        assert (await both.lease()).task.message == 4


@pytest.mark.parametrize("content", [InMemory(b"Subject: here\r\n\r\n\n{}\n"), Reference(1, len(STORED), b"\1" * 32)])
async def test_content_comes_with_the_task_or_by_reference(sides: Any, content: Content | Reference) -> None:
    async with sides() as both:
        await both.publisher.offer(task(1, content=content))
        found = read_all(await (await both.lease()).content())
        assert found == (STORED if isinstance(content, Reference) else read_all(content))


async def test_what_is_given_back_comes_first_and_once(sides: Any) -> None:
    async with sides() as both:
        for number in (1, 2):
            await both.publisher.offer(task(number))
        lease = await both.lease()
        await lease.give_back()
        await lease.give_back()
        assert [(await both.lease()).task.message for _ in range(2)] == [1, 2]
        assert both.publisher.has(task(1))


async def test_a_lease_ends_once(sides: Any) -> None:
    async with sides() as both:
        await both.publisher.offer(task(1))
        lease = await both.lease()
        await lease.give_back()
        await lease.answer(Verdict.passed("from a worker that gave it back"))
        await lease.discard()
        assert both.heard == []
        assert both.publisher.has(task(1))
        lease = await both.lease()
        await lease.discard()
        assert not both.publisher.has(task(1))
        await lease.answer(Verdict.passed("from a worker that failed"))
        await lease.give_back()
        assert both.heard == []
        assert not both.publisher.has(task(1))


async def test_a_worker_that_closes_gives_back_what_it_has_not_answered(sides: Any) -> None:
    async with sides() as both:
        for number in (1, 2):
            await both.publisher.offer(task(number))
        await (await both.lease()).answer(Verdict.passed())
        await both.lease()
        await both.consumer.close()
        other = both.another()
        await other.open()
        assert (await other.lease(("q",))).task.message == 2
        assert [answer.message for answer in both.heard] == [1]


async def test_what_is_withdrawn_is_not_leased_and_its_answer_is_lost(sides: Any) -> None:
    async with sides() as both:
        one, two, three = task(1), task(2), task(3)
        await both.publisher.withdraw(one)
        for each in (one, two, three):
            await both.publisher.offer(each)
        await both.publisher.withdraw(one)
        await both.publisher.withdraw(one)
        assert not both.publisher.has(one)
        lease = await both.lease()
        assert lease.task.message == 2
        await both.publisher.withdraw(two)
        await lease.answer(Verdict.passed())
        assert both.heard == []
        assert (await both.lease()).task.message == 3


async def test_a_worker_that_stops_waiting_loses_no_task(sides: Any) -> None:
    async with sides() as both:
        waiting = asyncio.create_task(both.lease())
        await asyncio.sleep(0)
        await both.publisher.offer(task(1))
        waiting.cancel()  # it was handed over a moment before
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await both.lease()).task.message == 1


# Fair shares


def of(number: int, owner: str, recipient: str = "") -> Task:
    return replace(task(number), pipeline=owner, recipient=Recipient(recipient or owner))


def test_users_and_recipients_take_turns() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.put(of(number, "ann@example.test"))
    queue.put(of(3, "@example.org", "x@example.org"))
    queue.put(of(4, "@example.org", "x@example.org"))
    queue.put(of(5, "@example.org", "Y@Example.org"))
    queue.put(of(6, "@example.org", "y@example.org"))
    taken = [one.message for _ in range(7) if (one := queue.take()) is not None]
    assert taken == [0, 3, 1, 5, 2, 4, 6]
    assert queue.take() is None


@pytest.mark.parametrize("several", [False, True], ids=["one mailbox", "a whole domain"])
def test_whoever_fills_the_queue_leaves_places_for_the_next(several: bool) -> None:
    queue = FairQueue()
    queue.places = 100
    for number in range(1000):
        queue.put(of(number, "@example.org", f"{number if several else 0}@example.org"))
    hog = []
    while (one := queue.take()) is not None:
        hog.append(one)
    assert len(hog) == (80 if several else 67)
    queue.put(of(2000, "ann@example.test"))
    ann = queue.take()
    assert ann is not None
    assert ann.message == 2000
    assert queue.take() is None
    queue.ended(ann)
    for one in hog:
        queue.ended(one)
    assert sum(queue.take() is not None for _ in range(100)) == len(hog)


def test_one_place_is_used_by_all() -> None:
    queue = FairQueue()
    queue.places = 1
    for number in range(3):
        queue.put(of(number, f"{number}@example.org"))
    for number in range(3):
        one = queue.take()
        assert one is not None
        assert one.message == number
        queue.ended(one)
    assert queue.take() is None


def test_what_is_removed_leaves_nothing_behind() -> None:
    queue = FairQueue()
    queue.put(of(1, "ann@example.test"))
    queue.remove(of(1, "ann@example.test"))
    queue.remove(of(1, "ann@example.test"))
    queue.remove(of(2, "bob@example.test"))
    assert queue.take() is None


async def test_a_free_place_goes_to_a_task_that_waited_for_it() -> None:
    broker, heard = EmbeddedBroker(), list[Answer]()
    broker.add_places("q", 3)
    for number in range(5):
        broker.put(of(number, "ann@example.test"), heard.append)
    first = [await broker.take(("q",)) for _ in range(2)]
    waiting = asyncio.create_task(broker.take(("q",)))
    await asyncio.sleep(0)
    assert not waiting.done()  # ann has her share, and one place is free
    broker.end(first[0], Verdict.passed())
    assert (await waiting).message == 2
    other = asyncio.create_task(broker.take(("q",)))
    await asyncio.sleep(0)
    broker.add_places("q", 3)
    assert (await other).message == 3


class Noted:
    """The notes of what workers have."""

    def __init__(self) -> None:
        self.hands: set[tuple[int, int]] = set()

    def begin(self, message: int, n: int, digest: bytes) -> None:
        self.hands.add((message, n))

    def end(self, message: int, n: int) -> None:
        self.hands.discard((message, n))


async def test_what_workers_have_is_noted() -> None:
    hands = Noted()
    broker = EmbeddedBroker(hands)
    consumer, heard = broker.consumer(read), list[Answer]()
    for number in range(1, 5):
        broker.put(task(number), heard.append)
    broker.put(replace(task(5), rehearsal=True), heard.append)
    leased = [await consumer.lease(("q",)) for _ in range(5)]
    leases = sorted(leased, key=lambda lease: lease.task.message)
    assert hands.hands == {(1, 0), (2, 0), (3, 0), (4, 0)}
    await leases[0].answer(Verdict.passed())
    await leases[1].discard()
    broker.lose(leases[2].task, "it died", alone=False)
    await leases[3].give_back()
    assert hands.hands == set()
    assert [answer.result for answer in heard] == [Verdict.passed(), Deferral("it died", why=LOST)]
