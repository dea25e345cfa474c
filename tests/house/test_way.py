"""The way of a message: how many modules a reader must know to follow one mail."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType

import sendswitch
from sendswitch.broker.base import TaskConsumer
from sendswitch.conditions.pipeline import PipelineConfig
from sendswitch.intake.after_queue import FilterIntake, IntakeOptions
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.processors import registry
from sendswitch.processors.base import Services
from sendswitch.routing import POOL
from sendswitch.testing import FakeClock, message
from sendswitch.worker.runtime import PipelineCache, Worker
from tests.switch import Switch, switch

MOST = 14
# Values and their texts, which a reader meets but need not follow, and the steps of pipelines, which are many.
APART = ("mail/", "processors/", "spool/records.py", "routing.py", "reply.py", "logs.py", "metrics.py", "testing.py")
PIPELINE = '[[step]]\nuse = "lists"\nallow = ["friend@example.net"]\n\n[[step]]\nuse = "pass"\n'


async def test_one_filtered_delivery_takes_few_modules(tmp_path: Path, clock: FakeClock) -> None:
    modules: dict[str, None] = {}
    source = str(Path(sendswitch.__file__).parent) + "/"

    def note(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(source) and not name.removeprefix(source).startswith(APART):
            modules[name.removeprefix(source)] = None

    async def pipeline(owner: str, version: int) -> PipelineConfig:
        return registry.check(PIPELINE, owner)

    async def work(consumer: TaskConsumer) -> None:
        pipelines = PipelineCache(pipeline, 5, Services("us.example"))
        await Worker(consumer, {"": pipelines}, queues=(POOL,), concurrency=2, clock=clock).run()

    async def deliver(s: Switch, intake: FilterIntake) -> None:
        """Take one message in, and wait until its result is recorded."""
        envelope = Envelope("s@example.org", (Recipient("ann@example.test"),), Client(source="LOCAL"))
        sink = intake.sink()
        sink.write(message())
        delivered = len(s.courier.parcels)
        await intake.message(envelope, sink)
        async with asyncio.timeout(10):
            while len(s.courier.parcels) == delivered or s.queue.active:
                await asyncio.sleep(0.01)

    async with switch(tmp_path, clock, worker=work) as s:
        intake = FilterIntake(s.spool, s.queue, IntakeOptions("us.example", 1000, 50, 0), clock)
        await deliver(s, intake)  # the first message makes what is made once
        sys.setprofile(note)
        try:
            await deliver(s, intake)
        finally:
            sys.setprofile(None)

    assert "pipeline/chain.py" in modules, "the trace saw no pipeline"
    assert len(modules) <= MOST, "\n".join(modules)
    page = (Path(__file__).parents[2] / "docs" / "flow.md").read_text(encoding="utf-8")
    assert [name for name in modules if f"| `{name}` |" not in page] == []
