"""Mail for workers that are away: of a user's own and of the site."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sendswitch import metrics
from sendswitch.bootstrap.parts import find_suspects
from sendswitch.broker.base import OWN_HAD, Lease
from sendswitch.broker.embedded import EmbeddedBroker, EmbeddedPublisher
from sendswitch.mail.content import InMemory
from sendswitch.mail.task import Task
from sendswitch.mail.verdict import Deferral, StepRecord, Verdict
from sendswitch.queue import dispatcher, presence
from sendswitch.queue.poison import Notes
from sendswitch.routing import POOL, Route, Routes, own_queue
from sendswitch.spool import admin
from sendswitch.spool.opening import open_spool
from sendswitch.spool.records import Delivery
from sendswitch.spool.spool import new_message
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock, envelope
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


async def test_what_a_worker_had_is_known_after_a_clean_stop(tmp_path: Path, clock: FakeClock) -> None:
    """Neither the answer nor the mark is there then: the note is."""
    place = tmp_path / "in-hand"
    notes = Notes(place)
    broker = EmbeddedBroker(notes)
    spool = open_spool(tmp_path / "spool", clock)
    mail = new_message(spool, envelope(ANN), InMemory(b"x"), now=clock(), lifetime=1000, via="filter")
    delivery = Delivery(mail, 0, mail.envelope.recipients[0], due=clock())
    await spool.accept(mail, [delivery])
    had = Task(
        mail.id, 0, "t", delivery.recipient, "", mail.envelope.client, InMemory(b"x"), ANN, 1, OWN, 1.0, digest=b"d"
    )
    broker.put(had, lambda answer: None)
    broker.add_places(OWN, 1)
    task = await broker.take((OWN,))
    broker.remove(task)  # the node stops: nobody waits for the answer any more
    broker.lose(task, "the node stops", alone=True)
    notes.close()
    for _ in range(4):  # and it counts as no crash of ours, however often
        suspects = await find_suspects(spool, place)
        assert suspects.counts == {delivery.key: 0}
        assert suspects.digests == set()
    await spool.close()


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


async def test_the_time_without_a_worker_begins_when_the_last_one_goes(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock, offline_after=2.0) as s:
        s.current.use_routes(Routes([Route(ANN, 1, 5.0, "defer", "bounce", queue=OWN, when_offline="pass")]))
        await asyncio.sleep(2.2)  # nobody was there since the start
        s.broker.add_places(OWN, 1)
        s.broker.add_places(OWN, -1)  # between two looks
        began = time.monotonic()
        await s.accept(ANN)
        await s.until(lambda: s.got(ANN))
        assert time.monotonic() - began > 1.5
        began = time.monotonic()
        await s.accept(ANN)  # the next one need not wait
        await s.until(lambda: len(s.got(ANN)) == 2)
        assert time.monotonic() - began < 1.9


async def test_a_worker_that_goes_for_less_than_the_grace_time(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock, offline_after=30.0) as s:
        s.current.use_routes(Routes([Route(ANN, 1, 5.0, "defer", "bounce", queue=OWN, when_offline="pass")]))
        await s.accept(ANN)
        await asyncio.sleep(1.2)
        assert s.states()[ANN] == "accepted"
        await (await leased(s)).answer(Verdict.quarantine())
        await s.until(lambda: s.states()[ANN] == "quarantined")


async def test_a_slow_worker_leaves_room_for_the_mail_of_others(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "OWN_WAITING", 3)
    async with away(tmp_path, clock, "pass") as s:
        s.broker.add_places(OWN, 1)
        for _ in range(5):
            await s.accept(ANN)
        await s.until(lambda: deferred(s))
        assert deferred(s) == "too many messages wait for workers of users already"
        assert await s.spool.suspects() == {}  # no worker had them
        assert s.states() == {ANN: "accepted"}
        for done in range(1, 6):  # as soon as there is room, and not when their time comes
            await (await leased(s)).answer(Verdict.passed())
            await s.until(lambda done=done: len(s.got(ANN)) == done)  # type: ignore[misc]


async def test_mail_that_no_worker_takes_is_put_off_in_the_end(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is there and takes nothing would keep it in memory for ever."""
    monkeypatch.setattr(dispatcher, "OWN_PATIENCE", -4.9)
    monkeypatch.setattr(dispatcher, "OVERDUE", -4.8)
    async with away(tmp_path, clock, "pass") as s:
        s.broker.add_places(OWN, 1)
        await s.accept(ANN)
        await s.until(lambda: deferred(s))
        assert deferred(s) == f"no worker of {ANN} took it in time"
        assert s.broker.absent(OWN) == 0.0
        again = asyncio.create_task(leased(s))  # it was withdrawn: only the next offer can be had
        await asyncio.sleep(0.1)
        assert not again.done()
        again.cancel()


async def test_the_site_and_the_user_s_workers_may_both_be_away(tmp_path: Path, clock: FakeClock) -> None:
    async def nothing(consumer: object) -> None:
        await asyncio.Event().wait()

    async with switch(tmp_path, clock, offline_after=0.2, worker=nothing) as s:
        s.current.use_routes(Routes([Route(ANN, 1, 5.0, "defer", "bounce", queue=OWN, when_offline="pool")]))
        await s.accept(ANN)
        await s.until(lambda: deferred(s))
        s.broker.add_places(POOL, 1)
        async with asyncio.timeout(10):  # long before its next attempt
            await (await s.consumer.lease((POOL,))).answer(Verdict.passed())
        await s.until(lambda: s.got(ANN))


async def test_what_is_in_quarantine_is_no_suspect_any_more(tmp_path: Path, clock: FakeClock) -> None:
    async with away(tmp_path, clock, "defer") as s:
        s.broker.add_places(OWN, 1)
        await s.accept(ANN)
        await (await leased(s)).answer(Deferral("not now"))
        await s.until(lambda: deferred(s))
        clock.advance(2000)  # its time is over
        s.queue.wake()
        await (await leased(s)).answer(Deferral("not now"))
        await s.until(lambda: s.states()[ANN] == "quarantined")
        await s.until(lambda: not s.suspects.counts)


async def test_steps_of_a_user_s_worker_become_no_metrics(tmp_path: Path, clock: FakeClock) -> None:
    async with away(tmp_path, clock, "defer") as s:
        s.broker.add_places(OWN, 1)
        await s.accept(ANN)
        await (await leased(s)).answer(
            replace(Verdict.passed(), trace=(StepRecord("a step of the user", seconds=1.0),))
        )
        await s.until(lambda: s.got(ANN))
        assert b"a step of the user" not in metrics.text()


@pytest.mark.parametrize("had", [True, False])
async def test_a_task_that_a_worker_may_have_is_not_answered_for(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, had: bool
) -> None:
    monkeypatch.setattr(EmbeddedPublisher, "begun", lambda self, task: had)
    async with away(tmp_path, clock, "pass") as s:
        await s.accept(ANN)
        await asyncio.sleep(1.5)
        assert bool(s.got(ANN)) is not had


async def test_a_note_of_a_user_s_worker_is_no_digest_of_content(tmp_path: Path, clock: FakeClock) -> None:
    """Of a message before the queue, which is not in the spool."""
    notes = Notes(tmp_path / "in-hand")
    notes.begin(7, 0, OWN_HAD)
    notes.begin(8, 0, b"digest")
    notes.close()
    spool = open_spool(tmp_path / "spool", clock)
    assert (await find_suspects(spool, tmp_path / "in-hand")).digests == {b"digest"}
    await spool.close()


@pytest.mark.parametrize("to", ["site", "nobody"])
async def test_another_route_is_set_while_mail_waits(tmp_path: Path, clock: FakeClock, to: str) -> None:
    """It must not wait for workers that nobody asks any more, nor pass because they are away."""
    site = [Route(ANN, 1, 5.0, "defer", "bounce")] if to == "site" else []
    async with away(tmp_path, clock, "pass") as s:
        s.broker.add_places(OWN, 1)
        await s.accept(ANN)
        await asyncio.sleep(1)
        assert deferred(s) == ""
        s.current.use_routes(Routes(site))
        await s.until(lambda: deferred(s))
        assert deferred(s) == "other workers run the pipeline now"
        assert not s.suspects.counts
        assert not s.got(ANN)


async def test_another_route_is_set_while_a_worker_has_the_mail(tmp_path: Path, clock: FakeClock) -> None:
    """It stays marked: otherwise it would pass by a later route whose workers are away."""
    async with away(tmp_path, clock, "pass") as s:
        s.broker.add_places(OWN, 1)
        await s.accept(ANN)
        await leased(s)
        s.current.use_routes(Routes([]))
        await s.until(lambda: deferred(s))
        assert s.suspects.counts
        assert not s.got(ANN)
