"""The worker: what it reads once, and what it notes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from sendswitch.broker.embedded import EmbeddedBroker
from sendswitch.conditions.pipeline import PipelineConfig
from sendswitch.mail.content import Content, InMemory
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import LATE, Deferral, PipelineResult, Verdict
from sendswitch.processors.base import Services
from sendswitch.testing import envelope, message
from sendswitch.worker.runtime import PipelineCache, Worker

Read = Callable[[Reference], Awaitable[Content]]


def task(n: int, deadline: float) -> Task:
    mail, content = envelope(), Reference(7, 100, b"")
    return Task(
        7, n, f"token {n}", mail.recipients[0], mail.sender, mail.client, content, "ann@example.test", 1, "q", deadline
    )


async def answered(read: Read, *tasks: Task) -> dict[int, PipelineResult]:
    """Return the answers to tasks that are offered at once, by the number of the recipient."""

    async def source(owner: str, version: int) -> PipelineConfig:
        return PipelineConfig()

    answers: dict[int, PipelineResult] = {}

    def add(answer: Answer) -> None:
        answers[answer.n] = answer.result

    broker = EmbeddedBroker()
    publisher, consumer = broker.publisher(), broker.consumer(read)
    await publisher.open(add, lambda: None)
    worker = Worker(consumer, {"": PipelineCache(source, 1, Services())}, queues=("q",), concurrency=5, clock=time.time)
    for one in tasks:
        await publisher.offer(one)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(10):
        while len(answers) < len(tasks):
            await asyncio.sleep(0.01)
    worker.stop()
    await running
    return answers


async def test_a_message_is_read_once_for_all_its_recipients() -> None:
    loads: list[int] = []

    async def read(reference: Reference) -> Content:
        loads.append(reference.message)
        await asyncio.sleep(0.1)
        return InMemory(message())

    answers = await answered(read, *(task(n, 5) for n in range(5)))
    assert [type(answer) for answer in answers.values()] == [Verdict] * 5
    assert loads == [7]


@pytest.mark.parametrize("why", ["late", "error"])
async def test_another_recipient_reads_what_the_first_could_not(why: str) -> None:
    loads: list[int] = []

    async def read(reference: Reference) -> Content:
        loads.append(1)
        if len(loads) > 1:
            return InMemory(message())
        await asyncio.sleep(10 if why == "late" else 0.1)
        raise OSError("it cannot be read")

    answers = await answered(read, task(0, 0.3), task(1, 5))
    first, second = answers[0], answers[1]
    assert isinstance(first, Deferral)
    assert (first.why == LATE, isinstance(second, Verdict)) == (why == "late", True)
    assert len(loads) == 2


async def test_a_task_that_fails_without_an_answer_is_no_longer_in_hand() -> None:
    class Broken(PipelineCache):
        def ready(self, task: Task) -> None:
            raise OSError("no memory")

    async def source(owner: str, version: int) -> PipelineConfig:
        return PipelineConfig()

    async def read(reference: Reference) -> Content:
        return InMemory(message())

    broker, one = EmbeddedBroker(), task(0, 5)
    publisher = broker.publisher()
    await publisher.open(lambda answer: None, lambda: None)
    worker = Worker(
        broker.consumer(read), {"": Broken(source, 1, Services())}, queues=("q",), concurrency=1, clock=time.time
    )
    running = asyncio.create_task(worker.run())
    await publisher.offer(one)
    async with asyncio.timeout(10):
        while publisher.has(one):
            await asyncio.sleep(0.01)
    worker.stop()
    await running


@pytest.mark.parametrize(("names", "left"), [([("bob@example.test", False)], True), (None, False)])
async def test_a_pipeline_that_is_being_made_is_dropped_only_with_all(
    names: list[tuple[str, bool]] | None, left: bool
) -> None:
    """Its route may be newer than the names that were asked about; with all, it was read before the change."""
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def source(owner: str, version: int) -> PipelineConfig:
        begun.set()
        await goes_on.wait()
        return PipelineConfig()

    pipelines = PipelineCache(source, 1, Services())
    making = asyncio.create_task(pipelines.get(task(0, 1)))
    await begun.wait()
    dropping = asyncio.create_task(pipelines.drop(names))
    await asyncio.sleep(0)  # it waits for what is being made
    goes_on.set()
    await asyncio.gather(making, dropping)
    assert (pipelines.ready(task(0, 1)) is not None) is left
