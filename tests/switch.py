"""The switch with a real spool and broker, a courier in memory, and a clock that tests move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sendswitch.broker.base import Lease, OnAnswer, OnReconnect, TaskConsumer
from sendswitch.broker.embedded import EmbeddedBroker, EmbeddedConsumer, EmbeddedPublisher
from sendswitch.delivery.backoff import Backoff
from sendswitch.delivery.compose import Composer
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.hops import Marks
from sendswitch.mail.srs import Srs
from sendswitch.mail.verdict import PipelineResult
from sendswitch.queue.active import ActiveQueue
from sendswitch.queue.bounce import Reporter
from sendswitch.queue.dispatcher import Dispatcher
from sendswitch.queue.limiter import Limiter
from sendswitch.queue.outcomes import Outcomes
from sendswitch.queue.poison import Suspects
from sendswitch.queue.policy import Policy
from sendswitch.queue.runner import QueueRunner
from sendswitch.queue.settings import Current, Settings
from sendswitch.routing import ALONE, POOL, Route, Routes
from sendswitch.spool import admin
from sendswitch.spool.audit import audit
from sendswitch.spool.opening import open_spool
from sendswitch.spool.records import Delivery
from sendswitch.spool.spool import Spool, new_message
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock, MemoryCourier, message

LOCAL = Client(source="LOCAL")


class Publisher(EmbeddedPublisher):
    """The node's side, with a connection to the broker that can come back."""

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        self.reconnected, self.answered = on_reconnect, on_answer
        await super().open(on_answer, on_reconnect)


@dataclass
class Switch:
    """The parts, and the answers that stand in for pipelines."""

    folder: Path
    clock: FakeClock
    spool: Spool
    queue: ActiveQueue
    runner: QueueRunner
    outcomes: Outcomes
    suspects: Suspects
    current: Current
    courier: MemoryCourier
    broker: EmbeddedBroker
    publisher: Publisher
    consumer: EmbeddedConsumer
    answers: dict[str, Callable[[], PipelineResult]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    held: list[Lease] = field(default_factory=list)
    suspected: list[int] = field(default_factory=list)

    async def accept(
        self, *to: str, sender: str = "s@example.org", data: bytes = b"", notify: str = "", smtputf8: bool = False
    ) -> list[Delivery]:
        recipients = tuple(Recipient(address, notify) for address in to)
        envelope = Envelope(sender, recipients, LOCAL, smtputf8=smtputf8)
        content = InMemory(data or message())
        mail = new_message(self.spool, envelope, content, now=self.clock(), lifetime=1000, via="filter")
        deliveries = [Delivery(mail, n, r, due=self.clock()) for n, r in enumerate(recipients)]
        await self.queue.enqueue(deliveries, lambda: self.spool.accept(mail, deliveries))
        return deliveries

    def states(self) -> dict[str, str]:
        return {row.recipient: row.state for row in admin.rows(admin.open_files(self.folder), tuple(State))}

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not true():
                self.queue.wake()
                await asyncio.sleep(0.01)

    def got(self, address: str) -> list[bytes]:
        return [p.data for p in self.courier.parcels if address in [r.address for r in p.envelope.recipients]]

    async def work(self) -> None:
        while True:
            lease = await self.consumer.lease((ALONE, POOL))
            address = lease.task.recipient.address
            self.asked.append(address)
            if address in self.answers:
                await lease.answer(self.answers[address]())
            else:
                self.held.append(lease)


@contextlib.asynccontextmanager
async def switch(
    folder: Path,
    clock: FakeClock,
    courier: MemoryCourier | None = None,
    srs: Srs | None = None,
    worker: Callable[[TaskConsumer], Coroutine[Any, Any, None]] | None = None,
    offline_after: float = 60.0,
    **routes: str,
) -> AsyncIterator[Switch]:
    """Run the parts until the end of the context, which audits the spool. `routes` are user names with `on_timeout`.

    `worker` runs pipelines instead of the answers that stand in for them. `offline_after` is in seconds.
    """
    spool = open_spool(folder / "spool", clock)
    broker, courier = EmbeddedBroker(), courier or MemoryCourier()
    policy = Policy(hold=100, hold_then="pass", quarantine=10_000)
    names = {"ann": "pass", "bob": "pass"} | routes
    settings = Settings(
        courier=courier,
        composer=Composer("us.example", {}),
        policy=policy,
        backoff=Backoff(10, 100),
        reporter=Reporter(spool, "us.example", 1000, clock),
        recipients=50,
        sending=Limiter(10),
        marks=Marks(b"x" * 32),
        srs=srs,
        routes=Routes(
            Route(f"{name}@example.test", 1, 0.5 if policy_ != "pass" else 5, policy_, "bounce")
            for name, policy_ in names.items()
        ),
    )
    current, suspects = Current(settings), Suspects(write=spool.suspect)
    queue = ActiveQueue(spool, current, clock=clock)
    outcomes = Outcomes(spool, queue, current, clock)
    publisher = Publisher(broker)
    suspected: list[int] = []
    dispatcher = Dispatcher(
        publisher,
        current,
        clock=clock,
        suspects=suspects,
        on_suspect=lambda: suspected.append(1),
        offline_after=offline_after,
    )

    async def back(keys: Sequence[tuple[int, int]]) -> None:
        await spool.make_due(keys)
        queue.wake()

    consumer = broker.consumer(dispatcher.content)
    await dispatcher.open()
    runner = QueueRunner(queue, outcomes, dispatcher, current, clock=clock)
    made = Switch(
        folder, clock, spool, queue, runner, outcomes, suspects, current, courier, broker, publisher, consumer,
        suspected=suspected,
    )  # fmt: skip
    tasks = [
        asyncio.create_task(work)
        for work in (
            queue.run(),
            runner.run(),
            dispatcher.watch(back),
            worker(consumer) if worker else made.work(),
        )
    ]
    try:
        yield made
        report = audit(admin.open_files(folder), folder)
        assert report.findings == ()
    finally:
        queue.stop()
        await runner.stop(1)
        for task in tasks:
            task.cancel()
        await spool.close()
