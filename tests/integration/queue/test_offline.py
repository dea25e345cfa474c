"""Mail for workers that are away: of a user's own and of the site."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sendswitch.broker.base import Lease
from sendswitch.mail.verdict import Deferral, Verdict
from sendswitch.routing import POOL, Route, Routes, own_queue
from sendswitch.spool import admin
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock
from tests.switch import Switch, switch

ANN = "ann@example.test"
OWN = own_queue(ANN)


@contextlib.asynccontextmanager
async def away(
    folder: Path, clock: FakeClock, when_offline: str, *, own: bool = True, **more: Any
) -> AsyncIterator[Switch]:
    """A switch whose user Ann has workers that are away."""
    async with switch(folder, clock, offline_after=0.2) as s:
        route = Route(ANN, 1, 5.0, "defer", "bounce", queue=OWN if own else POOL, when_offline=when_offline, **more)
        s.current.use_routes(Routes([route]))
        if own:
            s.broker.add_places(POOL, 1)
        yield s


def deferred(s: Switch, attempts: int = 1) -> str:
    """Return why Ann's mail was put off so often, '' while it was not."""
    rows = admin.rows(admin.open_files(s.folder), (State.ACCEPTED,))
    return next((row.reply for row in rows if row.attempts >= attempts), "")


async def leased(s: Switch) -> Lease:
    """Return what a worker of Ann's gets."""
    consumer = s.broker.consumer(lambda reference: asyncio.sleep(0))  # type: ignore[arg-type,return-value]
    async with asyncio.timeout(10):
        return await consumer.lease((OWN,))


@pytest.mark.parametrize(
    ("when_offline", "state"), [("pass", "delivered"), ("hold", "held"), ("quarantine", "quarantined")]
)
async def test_mail_is_dealt_with_as_configured(
    tmp_path: Path, clock: FakeClock, when_offline: str, state: str
) -> None:
    async with away(tmp_path, clock, when_offline) as s:
        await s.accept(ANN)
        await s.until(lambda: s.states()[ANN] == state)
        assert s.asked == []


async def test_mail_waits_for_its_worker_and_comes_at_once_when_it_is_back(tmp_path: Path, clock: FakeClock) -> None:
    async with away(tmp_path, clock, "defer") as s:
        await s.accept(ANN)
        await s.until(lambda: deferred(s))
        assert deferred(s) == f"no worker of {ANN} is online, and when_offline is defer"
        s.broker.add_places(OWN, 1)
        await (await leased(s)).answer(Verdict.passed())
        await s.until(lambda: s.states()[ANN] == "delivered")


async def test_the_sites_workers_may_stand_in(tmp_path: Path, clock: FakeClock) -> None:
    async with away(tmp_path, clock, "pool") as s:
        s.answers[ANN] = Verdict.quarantine
        await s.accept(ANN)
        await s.until(lambda: s.states()[ANN] == "quarantined")
        assert s.asked == [ANN]


@pytest.mark.parametrize("lost", [True, False])
async def test_what_a_worker_had_and_did_not_answer_never_passes(tmp_path: Path, clock: FakeClock, lost: bool) -> None:
    """Nor would it after a restart of the node: the mark is in the spool."""
    async with away(tmp_path, clock, "pass") as s:
        s.broker.add_places(OWN, 1)
        (delivery,) = await s.accept(ANN)
        lease = await leased(s)
        if lost:
            s.broker.lose(lease.task, "it went", alone=True)
        else:
            await lease.answer(Deferral("not now"))
        s.broker.add_places(OWN, -1)
        await s.until(lambda: deferred(s))
        assert await s.spool.suspects() == {delivery.key: 0}
        clock.advance(200)
        await s.until(lambda: deferred(s, 2))
        assert s.states()[ANN] == "accepted"
        # The next one was with no worker.
        await s.accept(ANN, data=b"Subject: another one\r\n\r\n")
        await s.until(lambda: s.got(ANN))
        assert deferred(s, 2)
        s.broker.add_places(OWN, 1)
        await (await leased(s)).answer(Verdict.passed())
        await s.until(lambda: len(s.got(ANN)) == 2)
        assert await s.spool.suspects() == {}


async def test_a_worker_that_breaks_again_and_again_is_its_users_trouble_only(tmp_path: Path, clock: FakeClock) -> None:
    async with away(tmp_path, clock, "pass") as s:
        s.broker.add_places(OWN, 1)
        await s.accept(ANN)
        for attempt in range(1, 6):
            s.broker.lose((await leased(s)).task, "it went", alone=True)
            await s.until(lambda attempt=attempt: deferred(s, attempt))  # type: ignore[misc]
            clock.advance(200)
            s.queue.wake()
        assert s.states()[ANN] == "accepted"
        assert s.suspected == []


async def test_mail_for_the_site_waits_too(tmp_path: Path, clock: FakeClock) -> None:
    async def nothing(consumer: object) -> None:
        await asyncio.Event().wait()

    async with switch(tmp_path, clock, offline_after=0.2, worker=nothing) as s:
        await s.accept(ANN)
        await s.until(lambda: deferred(s))
        assert deferred(s) == "no worker of the site is online, and when_offline is defer"
        s.broker.add_places(POOL, 1)
        async with asyncio.timeout(10):
            await (await s.consumer.lease((POOL,))).answer(Verdict.passed())
        await s.until(lambda: s.states()[ANN] == "delivered")


async def test_a_task_that_waits_while_a_worker_is_there_is_not_answered_for(tmp_path: Path, clock: FakeClock) -> None:
    async with away(tmp_path, clock, "pass") as s:
        s.broker.add_places(OWN, 1)
        await s.accept(ANN)
        await asyncio.sleep(1.0)
        assert s.states()[ANN] == "accepted"
        assert not deferred(s)
        await (await leased(s)).answer(Verdict.quarantine())
        await s.until(lambda: s.states()[ANN] == "quarantined")


async def test_a_worker_that_goes_for_less_than_the_grace_time(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock, offline_after=30.0) as s:
        route = Route(ANN, 1, 5.0, "defer", "bounce", queue=OWN, when_offline="pass")
        s.current.use_routes(Routes([route, replace(route, owner="bob@example.test", queue=POOL)]))
        await s.accept(ANN)
        await asyncio.sleep(1.2)
        assert s.states()[ANN] == "accepted"
        await (await leased(s)).answer(Verdict.quarantine())
        await s.until(lambda: s.states()[ANN] == "quarantined")
