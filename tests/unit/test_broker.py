"""The broker's contract, over every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sendswitch.broker.base import Broker
from sendswitch.broker.embedded import EmbeddedBroker
from sendswitch.mail.content import Content, InMemory
from sendswitch.mail.task import Task
from sendswitch.mail.verdict import PipelineResult, Verdict
from sendswitch.testing import envelope

Run = Callable[[Coroutine[Any, Any, Any]], Any]
BROKERS: dict[str, Callable[[], Broker]] = {"embedded": EmbeddedBroker}


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Broker:
    return BROKERS[request.param]()


def task(number: int, queue: str = "q") -> Task:
    async def load() -> Content:
        return InMemory(b"")

    mail = envelope()
    return Task(number, 0, f"token {number}", mail.recipients[0], mail, load, "ann@example.test", 1, queue, 0.0)


def test_an_answer_reaches_whoever_listens_with_its_token(run: Run, broker: Broker) -> None:
    heard: list[tuple[int, int, str, PipelineResult]] = []

    async def inside() -> None:
        await broker.offer(task(1))
        (await broker.lease(("q",)))  # nobody listens yet: lost, as the contract allows
        await (await offered_again()).answer(Verdict.passed())
        broker.listen(lambda *answer: heard.append(answer))
        await (await offered_again()).answer(Verdict.passed("yes"))

    async def offered_again() -> Any:
        await broker.offer(task(1))
        return await broker.lease(("q",))

    run(inside())
    assert heard == [(1, 0, "token 1", Verdict.passed("yes"))]


def test_the_oldest_first_and_only_from_the_queues_asked_for(run: Run, broker: Broker) -> None:
    async def inside() -> None:
        for number in (1, 2):
            await broker.offer(task(number))
        await broker.offer(task(3, "other"))
        assert [(await broker.lease(("other", "q"))).task.message for _ in range(3)] == [3, 1, 2]
        waiting = asyncio.create_task(broker.lease(("other",)))
        await asyncio.sleep(0)
        await broker.offer(task(4))
        await broker.offer(task(5, "other"))
        assert (await waiting).task.message == 5
        assert (await broker.lease(("q",))).task.message == 4

    run(inside())


def test_what_is_given_back_comes_first_and_once(run: Run, broker: Broker) -> None:
    async def inside() -> None:
        for number in (1, 2):
            await broker.offer(task(number))
        lease = await broker.lease(("q",))
        await lease.give_back()
        await lease.give_back()
        assert [(await broker.lease(("q",))).task.message for _ in range(2)] == [1, 2]

    run(inside())


def test_what_is_withdrawn_is_not_leased(run: Run, broker: Broker) -> None:
    async def inside() -> None:
        one, two = task(1), task(2)
        await broker.withdraw(one)
        await broker.offer(one)
        await broker.offer(two)
        await broker.withdraw(one)
        await broker.withdraw(one)
        assert (await broker.lease(("q",))).task is two

    run(inside())


def test_a_lease_that_is_no_longer_wanted_loses_no_task(run: Run, broker: Broker) -> None:
    async def inside() -> None:
        waiting = asyncio.create_task(broker.lease(("q",)))
        await asyncio.sleep(0)
        await broker.offer(task(1))
        waiting.cancel()  # it was handed over a moment before
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await broker.lease(("q",))).task.message == 1

    run(inside())
