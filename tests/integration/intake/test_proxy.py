"""Proxy mode: what the sender is told, and what is kept, when the next hop serves recipients differently."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sendswitch.errors import SpoolUnavailable
from sendswitch.intake.after_queue import IntakeOptions
from sendswitch.intake.proxy import ProxyIntake
from sendswitch.intake.refusals import LEFT, MOST, QUIET, Refusals
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.queue import active
from sendswitch.reply import Reply
from sendswitch.routing import Route, Routes, own_queue
from sendswitch.smtp.client import Delivered
from sendswitch.spool import admin
from sendswitch.testing import FakeClock, MemoryCourier, message
from tests.switch import Switch, switch

LOCAL = Client(source="LOCAL")
FULL = Reply(452, "4.2.2", "over quota")
UNKNOWN = Reply(550, "5.1.1", "no such user")
LARGE = 200_000


async def send(s: Switch, *to: str, data: bytes = b"", notify: str = "", budget: float = 5) -> Reply:
    """Send a message to the proxy listener, and return what it said."""
    options = IntakeOptions("us.example", 1000, 50, 0)
    intake = ProxyIntake(
        s.spool, s.queue, options, s.clock, runner=s.runner, outcomes=s.outcomes, current=s.current, budget=budget
    )
    sink = intake.sink()
    sink.write(data or message())
    await sink.drain()
    envelope = Envelope("s@example.org", tuple(Recipient(address, notify) for address in to), LOCAL)
    (reply,) = await intake.message(envelope, sink)
    return reply


@pytest.mark.parametrize("to", [("joe@example.test", "eve@example.test"), ("eve@example.test", "joe@example.test")])
async def test_a_refusal_for_now_counts_for_all(tmp_path: Path, clock: FakeClock, to: tuple[str, ...]) -> None:
    async with switch(tmp_path, clock) as s:
        s.courier.answers = {"joe@example.test": FULL, "eve@example.test": UNKNOWN}
        assert await send(s, *to) == FULL
        assert s.states() == {}
        s.courier.answers["joe@example.test"] = UNKNOWN
        assert await send(s, *to) == UNKNOWN
        assert s.states() == dict.fromkeys(to, "rejected")


async def test_an_answer_given_before_the_queue_counts_when_the_queue_is_full(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict(Action.PASS, tags=("ONCE",))
        monkeypatch.setattr(active, "WINDOW", 0)
        assert (await send(s, "ann@example.test", "bob@example.test", budget=0.2)).positive
        assert s.queue.active == 0
        monkeypatch.setattr(active, "WINDOW", 10)
        await s.until(lambda: s.got("ann@example.test"))
        assert b"ONCE" in s.got("ann@example.test")[0]
        await s.held[0].answer(Verdict.passed("late"))
        await s.until(lambda: s.got("bob@example.test"))
        assert sorted(s.asked) == ["ann@example.test", "bob@example.test"]


@pytest.mark.sources
@pytest.mark.parametrize("size", [0, LARGE])
async def test_whom_lmtp_served_is_served_once(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    async with switch(tmp_path, clock, MemoryCourier(late=True)) as s:
        real = s.spool.accept

        async def accept(*arguments: Any, **named: Any) -> None:
            await real(*arguments, **named)
            s.queue.wake()  # between what is stored and what is recorded of it
            await asyncio.sleep(0.1)

        monkeypatch.setattr(s.spool, "accept", accept)
        s.answers = {f"{name}@example.test": lambda: Verdict(Action.PASS) for name in ("ann", "bob")}
        s.courier.answers = {"bob@example.test": FULL, "eve@example.test": UNKNOWN}
        to = [f"{name}@example.test" for name in ("ann", "bob", "eve", "joe")]
        reply = await send(s, *to, data=message(body="x" * size) if size else b"")
        assert reply.positive
        assert s.states() | {"s@example.org": ""} == {
            "ann@example.test": "delivered",
            "bob@example.test": "decided",
            "eve@example.test": "bounced",
            "joe@example.test": "delivered",
            "s@example.org": "",
        }
        await s.until(lambda: s.got("s@example.org"))
        assert b"no such user" in s.got("s@example.org")[0]
        s.courier.answers = {}
        clock.advance(100)
        await s.until(lambda: s.states()["bob@example.test"] == "delivered")
        assert [len(s.got(address)) for address in to] == [1, 1, 0, 1]
        assert sorted(s.asked) == ["ann@example.test", "bob@example.test"]


class Silent(MemoryCourier):
    """A next hop that sends no reports of its own."""

    async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        return replace(await super().deliver(envelope, content, unanimous=unanimous), dsn=False)


@pytest.mark.parametrize(
    ("courier", "notify", "reports"), [(Silent, "SUCCESS", 1), (Silent, "", 0), (MemoryCourier, "SUCCESS", 0)]
)
async def test_success_is_reported_where_the_next_hop_does_not(
    tmp_path: Path, clock: FakeClock, courier: type[MemoryCourier], notify: str, reports: int
) -> None:
    async with switch(tmp_path, clock, courier()) as s:
        assert (await send(s, "joe@example.test", "eve@example.test", notify=notify)).positive
        await s.accept("last@example.test")  # goes behind the report, if there is one
        await s.until(lambda: s.got("last@example.test") and len(s.courier.parcels) == 2 + reports)
        told = s.got("s@example.org")
        assert len(told) == reports
        assert all(report.count(b"Action: relayed") == 2 for report in told)


@pytest.mark.sources
async def test_a_report_that_cannot_be_stored_does_not_take_the_answer_back(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with switch(tmp_path, clock, Silent()) as s:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(SpoolUnavailable())
        monkeypatch.setattr(s.spool, "accept", lambda *_, **__: failed)
        assert (await send(s, "joe@example.test", notify="SUCCESS")).positive
        assert failed.done()


async def test_a_mailbox_named_twice_gets_the_message_once(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = Verdict.deny  # so that it is stored and goes its ways
        await send(s, "joe@example.test", "ann@example.test", '"joe"@example.test', "Joe@Example.test")
        await s.until(lambda: s.got("s@example.org"))
        assert s.states() == {
            "joe@example.test": "delivered",
            "ann@example.test": "bounced",
            "s@example.org": "delivered",
        }
        assert len(s.got("joe@example.test")) == 1


@pytest.mark.sources
async def test_refusals_are_kept_once_a_minute_and_not_without_end(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mail(n: int) -> Envelope:
        return Envelope(f"s{n}@example.org", (Recipient("ann@example.test"),), LOCAL)

    async with switch(tmp_path, clock) as s:
        kept = Refusals(s.spool, clock)

        def count() -> int:
            connection = admin.open_files(tmp_path)
            return int(connection.execute("SELECT count(*) FROM delivery WHERE state = 'refused'").fetchone()[0])

        for _ in range(3):
            kept.keep(mail(0), FULL, "full", "filter")
        kept.keep(mail(0), UNKNOWN, "", "filter")
        await s.until(lambda: count() == 2)
        for n in range(MOST + 50):
            kept.keep(mail(n), FULL, "", "filter")
        await s.until(lambda: count() >= MOST)
        assert count() == MOST
        clock.advance(QUIET)
        kept.keep(mail(0), FULL, "", "filter")
        await s.until(lambda: count() == MOST + 1)
        monkeypatch.setattr(s.spool, "free", lambda: LEFT - 1)  # the rest is for what is here already
        kept.keep(mail(1), FULL, "", "filter")
        monkeypatch.undo()
        clock.advance(-10 * QUIET)  # a clock that was set back keeps nobody out
        kept.keep(mail(0), FULL, "", "filter")
        await s.until(lambda: count() == MOST + 2)


async def test_what_a_user_s_worker_had_is_kept_and_never_passes(tmp_path: Path, clock: FakeClock) -> None:
    """Told to come again, the sender would come with a message that nobody knows."""
    ann = "ann@example.test"
    queue = own_queue(ann)
    async with switch(tmp_path, clock, offline_after=0.2) as s:
        s.current.use_routes(Routes([Route(ann, 1, 5.0, "defer", "bounce", queue=queue, when_offline="pass")]))
        s.broker.add_places(queue, 1)
        sending = asyncio.create_task(send(s, ann))
        async with asyncio.timeout(10):
            task = await s.broker.take((queue,))
        s.broker.lose(task, "it went", alone=True)
        s.broker.add_places(queue, -1)
        assert (await sending).positive
        await s.until(lambda: s.suspects.counts)
        assert await s.spool.suspects() == {(task.message, 0): 0}
        clock.advance(200)
        s.queue.wake()
        await asyncio.sleep(1.5)
        assert s.states() == {ann: "accepted"}
