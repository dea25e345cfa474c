"""The switch with a real spool and broker, a courier in memory and a clock that we move."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sendswitch.delivery.compose import Composer
from sendswitch.errors import SpoolUnavailable, Temporary
from sendswitch.mail.content import Content, InMemory, read_all
from sendswitch.mail.edits import AddHeader
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.mail.srs import Srs
from sendswitch.mail.task import Answer, Reference
from sendswitch.mail.verdict import BROKE, FOLDER, LATE, Action, Deferral, PipelineResult, Verdict
from sendswitch.queue import active as queue_module
from sendswitch.queue import dispatcher
from sendswitch.queue.dispatcher import LOST_AGAIN
from sendswitch.queue.outcomes import Outcomes
from sendswitch.queue.poison import LATEST, Notes, left_in_hand
from sendswitch.reply import Reply
from sendswitch.routing import ALONE, POOL, Route, Routes
from sendswitch.smtp.client import Delivered
from sendswitch.smtp.protocol.client import Outcome
from sendswitch.spool import admin, requeue, rules
from sendswitch.spool.records import Delivery
from sendswitch.spool.spool import new_message
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock, MemoryCourier, message
from tests.switch import switch

BUSY = Reply(450, "4.2.1", "busy")


async def test_equal_recipients_share_a_transaction_and_others_do_not(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock, carol="hold") as s:
        s.answers = {
            "ann@example.test": lambda: Verdict(Action.PASS, tags=("SPAM",)),
            "bob@example.test": lambda: Verdict(Action.PASS, tags=("SPAM",)),
            "carol@example.test": lambda: Verdict(Action.PASS),
        }
        await s.accept(
            "joe@example.test", "ann@example.test", "bob@example.test", "dave@example.test", "carol@example.test"
        )
        await s.until(lambda: set(s.states().values()) == {"delivered"})
        groups = sorted(sorted(r.address.partition("@")[0] for r in p.envelope.recipients) for p in s.courier.parcels)
        assert ["dave", "joe"] in groups
        assert ["ann", "bob"] in groups


async def test_a_verdict_that_cannot_be_read_stops_nobody_else(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        s.courier.down = BUSY
        s.answers["ann@example.test"] = lambda: Verdict(Action.PASS)
        await s.accept("ann@example.test")
        await s.accept("joe@example.test")
        waiting = (State.ACCEPTED, State.DECIDED)
        await s.until(lambda: [row.attempts for row in admin.rows(admin.open_files(tmp_path), waiting)] == [1, 1])
        await s.until(lambda: not s.queue.active)
        connection = admin.open_files(tmp_path)
        connection.execute("UPDATE delivery SET verdict = '{\"acton\": 1}' WHERE verdict IS NOT NULL")
        s.courier.down = None
        clock.advance(50)
        await s.until(lambda: s.states()["joe@example.test"] == "delivered")
        assert s.states()["ann@example.test"] == "decided"


async def test_one_recipients_trouble_does_not_touch_another(tmp_path: Path, clock: FakeClock) -> None:
    class Picky(MemoryCourier):
        async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
            if envelope.recipients[0].address == "ann@example.test":
                raise KeyError("a bug of ours")
            await asyncio.sleep(0.2)
            return await super().deliver(envelope, content, unanimous=unanimous)

    async with switch(tmp_path, clock, Picky()) as s:
        s.answers["ann@example.test"] = lambda: Verdict(Action.PASS, tags=("X",))
        await s.accept("joe@example.test", "ann@example.test", "dave@example.test")
        await s.until(lambda: s.states()["joe@example.test"] == "delivered")
        assert len(s.got("joe@example.test")) == len(s.got("dave@example.test")) == 1
        # A bug is tried again like any failure, and ends when the message's time is over.
        for _ in range(100):
            clock.advance(100)
            s.queue.wake()
            await asyncio.sleep(0.01)
        await s.until(lambda: s.states()["ann@example.test"] == "bounced")
        assert len(s.got("joe@example.test")) == 1


async def test_mail_that_was_kept_gets_its_whole_time_again(tmp_path: Path, clock: FakeClock) -> None:
    """Released after its lifetime, it must survive a next hop that is busy for a moment."""

    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict.quarantine("q")
        (delivery,) = await s.accept("ann@example.test")
        await s.until(lambda: s.states() == {"ann@example.test": "quarantined"})
        clock.advance(5000)
        s.courier.down = BUSY
        admin.release(admin.open_files(tmp_path), f"{delivery.message.text_id}.0", clock(), by="me")
        await s.until(lambda: admin.rows(admin.open_files(tmp_path), (State.DECIDED,))[0].attempts)
        s.courier.down = None
        clock.advance(50)
        await s.until(lambda: s.states() == {"ann@example.test": "delivered"})
        assert s.asked == ["ann@example.test"]  # not filtered again


@pytest.mark.sources
async def test_an_error_about_kept_mail_never_reaches_its_sender(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict.quarantine("q")
        await s.accept("ann@example.test")
        await s.until(lambda: s.states() == {"ann@example.test": "quarantined"})

        async def broken(*args: Any, **kwargs: Any) -> None:
            raise KeyError("a bug of ours")

        monkeypatch.setattr(Outcomes, "end", broken)
        clock.advance(20_000)
        await s.until(lambda: admin.rows(admin.open_files(tmp_path), (State.QUARANTINED,))[0].attempts)
        assert s.states() == {"ann@example.test": "quarantined"}
        assert not s.courier.parcels


async def test_holds_and_quarantine_expire(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict.pending("wait", hold=50)
        s.answers["bob@example.test"] = lambda: Verdict.pending("wait", hold=50, then="quarantine")
        await s.accept("ann@example.test")
        await s.accept("bob@example.test")
        await s.until(lambda: set(s.states().values()) == {"held"})
        clock.advance(51)
        await s.until(lambda: s.states() == {"ann@example.test": "delivered", "bob@example.test": "quarantined"})
        clock.advance(10_001)
        await s.until(lambda: s.states()["bob@example.test"] == "discarded")
        assert len(s.courier.parcels) == 1


@pytest.mark.parametrize(("policy", "state"), [("hold", "held"), ("quarantine", "quarantined"), ("deny", "bounced")])
async def test_what_a_worker_does_not_decide_in_its_time(
    tmp_path: Path, clock: FakeClock, policy: str, state: str
) -> None:
    async with switch(tmp_path, clock, silent=policy) as s:
        s.answers["silent@example.test"] = lambda: Deferral("late", why=LATE)
        await s.accept("silent@example.test")
        await s.until(lambda: s.states()["silent@example.test"] == state)


async def test_mail_without_a_verdict_waits_and_is_quarantined_when_its_time_is_over(
    tmp_path: Path, clock: FakeClock
) -> None:
    async with switch(tmp_path, clock, silent="defer") as s:
        s.answers["silent@example.test"] = lambda: Deferral("late", why=LATE)
        await s.accept("silent@example.test")
        for n in range(1, 4):
            await s.until(partial(lambda wanted: _attempts(tmp_path) >= wanted, n))
            assert s.states()["silent@example.test"] == "accepted"
            clock.advance(101)
        clock.advance(1000)
        await s.until(lambda: s.states()["silent@example.test"] == "quarantined")
        assert not s.courier.parcels


async def test_a_task_that_waits_keeps_no_content_in_memory(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock, slow="defer") as s:
        (delivery,) = await s.accept("slow@example.test")
        await s.until(lambda: s.held)
        lease = s.held[0]
        assert isinstance(lease.task.content, Reference)
        delivery.message.content = None  # as when the queue holds too much
        assert read_all(await lease.content()) == message()
        await lease.answer(Verdict.passed())
        await s.until(lambda: s.states()["slow@example.test"] == "delivered")
        with pytest.raises(Temporary, match="nobody asks"):
            await lease.content()


async def test_a_lost_offer_is_offered_again(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "OVERDUE", 0.05)

    async with switch(tmp_path, clock, lost="defer") as s:
        s.current.use_routes(Routes([Route("lost@example.test", 1, 0.05, "defer", "bounce")]))
        await s.accept("lost@example.test")
        for n in range(3):
            await s.until(lambda: len(s.held) > n)  # noqa: B023
            await asyncio.sleep(0.3)
            assert len(s.held) == n + 1  # a worker has it, so it is not offered a second time
            if n < 2:
                await s.held[n].discard()
        await s.held[2].answer(Verdict.passed("at last"))
        await s.until(lambda: s.states()["lost@example.test"] == "delivered")


async def test_offers_that_the_broker_lost_with_its_connection_are_made_again(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "OVERDUE", 3600)

    async with switch(tmp_path, clock, lost="defer", kept="defer") as s:
        await s.accept("lost@example.test")
        await s.until(lambda: len(s.held) == 1)
        await s.accept("kept@example.test")
        await s.until(lambda: len(s.held) == 2)
        await s.publisher.withdraw(s.held[0].task)  # the broker has forgotten it
        s.publisher.reconnected()
        await s.until(lambda: len(s.held) == 3)
        assert s.held[2].task.token == s.held[0].task.token
        for lease in s.held:
            await lease.answer(Verdict.passed())
        await s.until(lambda: set(s.states().values()) == {"delivered"})
        assert sorted(s.asked) == ["kept@example.test", "lost@example.test", "lost@example.test"]


@pytest.mark.sources
async def test_what_a_forward_wrote_is_begun_once(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool is read for due deliveries after those of a forward were written, and before they are begun."""

    async with switch(tmp_path, clock) as s:
        real, read = s.spool.call, s.spool.due
        loads = []

        async def due(*arguments: Any) -> Any:
            found = await read(*arguments)
            loads.append(found)
            return found

        async def call(*arguments: Any) -> Any:
            done = await real(*arguments)
            wanted = len(loads) + 2
            async with asyncio.timeout(5):
                while len(loads) < wanted:
                    s.queue.wake()
                    await asyncio.sleep(0.001)
            return done

        monkeypatch.setattr(s.spool, "due", due)
        monkeypatch.setattr(s.spool, "call", call)
        s.answers["ann@example.test"] = lambda: Verdict.forwarded("carol@example.test", "dave@example.test")
        await s.accept("ann@example.test")
        await s.until(lambda: s.got("carol@example.test") and s.got("dave@example.test"))
        await s.until(lambda: not s.queue.active)
        assert (len(s.got("carol@example.test")), len(s.got("dave@example.test"))) == (1, 1)


async def test_room_is_given_back_when_nothing_is_written(tmp_path: Path, clock: FakeClock) -> None:
    """A write may fail at once, later, or say that it wrote nothing."""

    async with switch(tmp_path, clock) as s:
        mail = new_message(
            s.spool, Envelope("", (Recipient("joe@example.test"),)), InMemory(b""), now=0, lifetime=1, via="filter"
        )
        delivery = Delivery(mail, 0, Recipient("joe@example.test"), due=0.0)

        async def nothing() -> bool:
            return False

        async def fails() -> None:
            raise SpoolUnavailable("full")

        def raises() -> Any:
            raise ValueError("odd")

        assert await s.queue.enqueue([delivery], nothing) is False
        assert s.queue.active == 0
        with pytest.raises(SpoolUnavailable):
            await s.queue.enqueue([delivery], fails)
        with pytest.raises(ValueError, match="odd"):
            s.queue.enqueue([delivery], raises)
        assert s.queue.active == 0


async def test_what_is_written_while_the_node_stops_is_not_begun(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        accepted = asyncio.create_task(s.accept("joe@example.test"))
        while not s.queue.active:
            await asyncio.sleep(0)
        s.queue.stop()
        await accepted
        await asyncio.sleep(0.05)
        assert (s.queue.active, s.got("joe@example.test")) == (0, [])
        assert s.states() == {"joe@example.test": "accepted"}


async def test_mail_that_is_being_sent_is_forwarded_by_hand_at_once(tmp_path: Path, clock: FakeClock) -> None:
    courier, go = MemoryCourier(), asyncio.Event()
    real = courier.deliver

    async def deliver(envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        if envelope.recipients[0].address == "joe@example.test":
            await go.wait()
        return await real(envelope, content, unanimous=unanimous)

    courier.deliver = deliver  # type: ignore[method-assign]
    async with switch(tmp_path, clock, courier) as s:
        (delivery,) = await s.accept("joe@example.test")
        id_, to = f"{delivery.message.text_id}.0", ["eve@example.test"]
        requeue.send_on(admin.open_files(tmp_path), tmp_path, id_, to, clock(), by="me", reason="x")
        s.queue.wake()
        await s.until(lambda: s.got("eve@example.test"))
        assert s.states()["joe@example.test"] == "accepted"
        go.set()
        await s.until(lambda: s.got("joe@example.test"))


async def test_what_broke_its_pipeline_three_times_is_put_aside(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Deferral("killed", why=BROKE)
        s.answers["bob@example.test"] = lambda: Deferral("down")
        await s.accept("ann@example.test", "bob@example.test")
        for n in range(1, 6):
            await s.until(partial(lambda wanted: _bobs(tmp_path) >= wanted, n))
            clock.advance(101)
        assert s.states() == {"ann@example.test": "quarantined", "bob@example.test": "accepted"}
        assert s.asked.count("ann@example.test") == 3
        (row,) = admin.rows(admin.open_files(tmp_path), (State.QUARANTINED,))
        assert row.reply.startswith("poison:")
        assert list((await s.spool.suspects()).values()) == [3]


async def test_what_was_lost_with_its_worker_is_asked_again_by_itself(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        await s.accept("ann@example.test", "bob@example.test")
        await s.until(lambda: len(s.held) == 2)
        for lease in s.held:  # their worker dies with both
            s.broker.lose(lease.task, "its worker ended", alone=False)
        await s.until(lambda: len(s.held) == 3)
        assert [lease.task.queue for lease in s.held] == [POOL, POOL, ALONE]
        assert s.suspected == [1, 1]
        await s.accept("ann@example.test", data=message("Another"))
        await s.until(lambda: len(s.held) == 4)  # mail that is no suspect does not wait
        assert s.held[3].task.message != s.held[2].task.message
        assert s.held[2].task.token not in {lease.task.token for lease in s.held[:2]}
        await s.held[2].answer(Verdict.passed())
        await s.until(lambda: len(s.held) == 5)
        for lease in s.held[3:]:
            await lease.answer(Verdict.passed())
        await s.until(lambda: set(s.states().values()) == {"delivered"})
        assert await s.spool.suspects() == {}
        assert s.suspects.digests == set()


async def test_what_kills_its_worker_three_times_while_alone_is_put_aside(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        await s.accept("ann@example.test")
        for n in range(1, 5):
            await s.until(partial(lambda wanted: len(s.held) == wanted, n))
            s.broker.lose(s.held[-1].task, "its worker ended", alone=n > 1)
            if n > 1:
                await s.until(partial(lambda wanted: list(s.suspects.counts.values()) == [wanted], n - 1))
            clock.advance(101)
        await s.until(lambda: s.states() == {"ann@example.test": "quarantined"})
        assert len(s.held) == 4
        (row,) = admin.rows(admin.open_files(tmp_path), (State.QUARANTINED,))
        assert row.reply.startswith("poison:")


async def test_what_is_lost_beside_other_tasks_again_and_again_has_broken_its_worker(
    tmp_path: Path, clock: FakeClock
) -> None:
    async with switch(tmp_path, clock) as s:
        await s.accept("ann@example.test")
        for n in range(1, 2 + LOST_AGAIN):
            await s.until(partial(lambda wanted: len(s.held) == wanted, n))
            assert s.suspects.counts == {}
            s.broker.lose(s.held[-1].task, "its worker ended", alone=False)
        await s.until(lambda: list(s.suspects.counts.values()) == [1])


async def test_after_a_kill_suspects_are_offered_one_at_a_time(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "in-hand"

    async def noting() -> None:
        notes = Notes(place)
        for n in (1, 2, 3):
            notes.begin(7, n, b"d")
        notes.end(7, 2)
        notes.begin(8, 0, b"e")
        assert left_in_hand(place) == {(7, 1): b"d", (7, 3): b"d", (8, 0): b"e"}
        notes.end(8, 0)
        notes.begin(8, 0, b"e")  # it is offered again: its end before says nothing of it
        notes.begin(9, 0, b"f")
        assert (8, 0) in left_in_hand(place)
        for key in ((8, 0), (9, 0)):
            notes.end(*key)
            async with asyncio.timeout(5):
                while key in left_in_hand(place):
                    await asyncio.sleep(0.01)
        notes.close()  # as after a kill: nothing more was ended
        assert set(left_in_hand(place)) == {(7, 1), (7, 3)}
        place.write_text(place.read_text() + "+9.")
        assert set(left_in_hand(place)) == {(7, 1), (7, 3)}
        again = Notes(place)
        again.begin(1, 0, b"")
        again.end(1, 0)
        again.close()
        assert left_in_hand(place) == {}
        monkeypatch.setattr("sendswitch.queue.poison.LONGEST", 1000)
        long = Notes(place)
        long.begin(1, 0, b"")
        for n in range(200):
            long.begin(2, n, b"")
            long.end(2, n)
        long.close()
        assert left_in_hand(place) == {(1, 0): b""}
        assert place.stat().st_size < 1100
        monkeypatch.setattr("sendswitch.queue.poison.LONGEST", 0)
        closed = Notes(place)
        closed.begin(1, 0, b"")
        closed.end(1, 0)
        closed.close()
        with (tmp_path / "other").open("wb", buffering=0) as other:  # it has the number of the file that was closed
            other.write(b"+")
            await asyncio.sleep(2 * LATEST)
            assert (tmp_path / "other").stat().st_size == 1

    await noting()
    assert left_in_hand(tmp_path / "none") == {}

    async with switch(tmp_path, clock) as s:
        suspect = message("Suspect")
        s.suspects.digests.add(hashlib.sha256(suspect).digest())
        await s.accept("ann@example.test", "bob@example.test", data=suspect)
        await s.until(lambda: len(s.held) == 1)
        await s.accept("ann@example.test")
        await s.until(lambda: len(s.held) == 2)  # mail that is no suspect does not wait
        assert s.held[1].task.message != s.held[0].task.message
        await s.held[0].answer(Verdict.passed())
        await s.until(lambda: len(s.held) == 3)
        assert s.held[2].task.message == s.held[0].task.message
        for lease in s.held:
            await lease.answer(Verdict.passed())

        (delivery,) = await s.accept("ann@example.test")
        await s.suspects.broke(delivery.key)
        assert await s.spool.suspects() == {delivery.key: 1}
        await s.until(lambda: len(s.held) == 4)
        await s.held[3].answer(Verdict.passed())
        await s.until(lambda: set(s.states().values()) == {"delivered"})
        assert await s.spool.suspects() == {}


async def test_a_denial_that_is_released_is_delivered(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict.deny("loud")
        (delivery,) = await s.accept("ann@example.test", sender="")  # nobody to send a bounce to
        await s.until(lambda: s.states()["ann@example.test"] == "quarantined")
        with contextlib.closing(admin.open_files(s.folder)) as connection:
            admin.release(connection, f"{delivery.message.text_id}.0", s.clock(), by="me")
        await s.until(lambda: s.states()["ann@example.test"] == "delivered")


async def test_one_answer_counts_and_only_with_its_token(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock, slow="hold") as s:
        await s.accept("slow@example.test")
        await s.until(lambda: s.held)
        await s.publisher.offer(replace(s.held[0].task, token="guessed"))
        await s.until(lambda: len(s.held) == 2)
        await s.held[1].answer(Verdict.passed("forged"))
        task = s.held[0].task
        s.publisher.answered(Answer(task.message + 1, task.n, task.token, Verdict.passed("of another message")))
        s.publisher.answered(Answer(task.message, task.n + 1, task.token, Verdict.passed("of another recipient")))
        await s.held[0].answer(Deferral("late", why=LATE))
        await s.held[0].answer(Verdict.passed("too late"))
        await s.until(lambda: s.states()["slow@example.test"] == "held")
        assert not s.courier.parcels


async def test_deferrals_and_temporary_denials_ask_again_without_piling_up(tmp_path: Path, clock: FakeClock) -> None:
    later = Verdict(
        Action.DENY, reply=Reply(450, "4.7.1", "greylisted"), edits=(AddHeader("X-Seen", "1"),), tags=("T",)
    )
    script: list[PipelineResult] = [
        Deferral("scanner down"),
        later,
        later,
        replace(later, action=Action.PASS, reply=None),
    ]
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: script.pop(0)
        await s.accept("ann@example.test")
        for attempt in (1, 2, 3):
            await s.until(partial(lambda wanted: _attempts(tmp_path) == wanted, attempt))
            clock.advance(150)
        await s.until(lambda: s.states() == {"ann@example.test": "delivered"})
        assert s.got("ann@example.test")[0].count(b"X-Seen") == 1


@pytest.mark.sources
async def test_mail_whose_time_comes_while_it_is_put_off_is_not_delivered_unfiltered(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with switch(tmp_path, clock) as s:
        script: list[PipelineResult] = [Deferral("down"), Verdict.deny("no")]
        s.answers["ann@example.test"] = lambda: script.pop(0)
        put_off = s.outcomes.put_off

        async def slowly(*arguments: Any, **named: Any) -> None:
            await put_off(*arguments, **named)
            clock.advance(500)  # the node stood still

        monkeypatch.setattr(s.outcomes, "put_off", slowly)
        await s.accept("ann@example.test")
        await s.until(lambda: s.states() != {"ann@example.test": "accepted"})
        assert not s.got("ann@example.test")


def _bobs(folder: Path) -> int:
    rows = admin.rows(admin.open_files(folder), (State.ACCEPTED,))
    return next((row.attempts for row in rows if row.recipient == "bob@example.test"), 0)


def _attempts(folder: Path) -> int:
    rows = admin.rows(admin.open_files(folder), (State.ACCEPTED,))
    return rows[0].attempts if rows else 0


async def test_a_forward_goes_through_the_targets_pipeline_and_never_round(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict.forwarded("bob@example.test")
        s.answers["bob@example.test"] = lambda: Verdict.forwarded("ann@example.test")
        await s.accept("ann@example.test")
        await s.until(lambda: "delivered" in {r.state for r in admin.rows(admin.open_files(tmp_path), tuple(State))})
        assert s.asked == ["ann@example.test", "bob@example.test"]
        assert len(s.got("bob@example.test")) == 1
        assert b"Delivered-To: ann@example.test" in s.got("bob@example.test")[0]


@pytest.mark.parametrize(
    ("sender", "to", "rewritten"),
    [
        ("s@example.org", "far@example.net", True),
        ("s@example.org", "bob@example.test", False),  # within the domain
        ("boss@example.test", "far@example.net", False),  # our own sender
        ("x@srs.example.test", "far@example.net", False),
        ("", "far@example.net", False),
    ],
)
async def test_forwarded_mail_gets_a_sender_that_may_send_it(
    tmp_path: Path, clock: FakeClock, sender: str, to: str, rewritten: bool
) -> None:
    srs = Srs("srs.example.test", b"key")

    async with switch(tmp_path, clock, srs=srs, carol="pass") as s:
        s.answers["ann@example.test"] = lambda: Verdict.forwarded(to, "other@example.test", keep_copy=True)
        s.answers["bob@example.test"] = lambda: Verdict.tagged("SEEN")
        await s.accept("ann@example.test", sender=sender)
        await s.until(lambda: set(s.states().values()) <= {"forwarded", "delivered"})
        senders = {r.address: p.envelope.sender for p in s.courier.parcels for r in p.envelope.recipients}
        assert senders["ann@example.test"] == senders["other@example.test"] == sender
        assert (senders[to] != sender) == rewritten
        assert (srs.reversed(senders[to], clock()) if rewritten else senders[to]) == sender
        told = admin.open_files(tmp_path).execute("SELECT data FROM outbox WHERE event = 'forwarded'").fetchone()
        assert json.loads(told[0]).get("srs") == ("srs.example.test" if rewritten else None)


async def test_a_folder_is_nobody_elses_business(tmp_path: Path, clock: FakeClock) -> None:
    verdict = replace(
        Verdict.forwarded("far@example.net", keep_copy=True),
        edits=(AddHeader(FOLDER, "Private"), AddHeader("X-Y", "z")),
    )

    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: verdict
        await s.accept("ann@example.test")
        await s.until(lambda: len(s.courier.parcels) == 2)
        assert b"X-SendSwitch-Folder: Private" in s.got("ann@example.test")[0]
        assert b"Private" not in s.got("far@example.net")[0]
        assert b"X-Y: z" in s.got("far@example.net")[0]


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_sender_stays_rewritten_whatever_comes_after(tmp_path: Path, clock: FakeClock, by_hand: bool) -> None:
    """The target's pipeline, a hold and whoever answers it see the message's own sender, and leave ours on it; it is
    made when the mail leaves, however late."""
    srs, held = Srs("srs.example.test", b"key"), iter([Verdict.pending(hold=5, then="ask"), Verdict.tagged("SEEN")])

    async with switch(tmp_path, clock, srs=srs) as s:
        s.current.use_routes(
            Routes(Route(owner, 1, 5, "pass", "bounce") for owner in ("ann@example.test", "bob@example.net"))
        )
        s.answers["ann@example.test"] = lambda: Verdict.forwarded("bob@example.net")
        s.answers["bob@example.net"] = lambda: next(held)
        await s.accept("ann@example.test")
        await s.until(lambda: "held" in s.states().values())
        if by_hand:
            clock.advance(900)
            (row,) = (row for row in admin.rows(admin.open_files(tmp_path), (State.HELD,)))
            admin.answer(admin.open_files(tmp_path), row.id, "pass", clock(), by="me", reason="")
        else:
            clock.advance(6)
        await s.until(lambda: s.courier.parcels)
        (parcel,) = s.courier.parcels
        assert srs.reversed(parcel.envelope.sender, clock()) == "s@example.org"
        assert (b"X-SendSwitch-Tags: SEEN" in parcel.data) is not by_hand


@pytest.mark.parametrize("twin", ['"bob"@example.test', '"b\\ob"@example.test', "Bob@EXAMPLE.test."])
async def test_a_loop_through_another_spelling_ends_at_the_first_round(
    tmp_path: Path, clock: FakeClock, twin: str
) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict.forwarded(twin)
        s.answers[twin] = lambda: Verdict.forwarded('"ann"@example.test', "bob@example.test")
        await s.accept("ann@example.test")
        await s.until(lambda: s.courier.parcels)
        assert [r.address for p in s.courier.parcels for r in p.envelope.recipients] == [twin]
        # And where it comes back from outside, for the first mailbox in another spelling.
        (parcel,) = s.courier.parcels
        s.answers['"ann"@example.test'] = s.answers["ann@example.test"]
        await s.accept('"ann"@example.test', data=parcel.data)
        await s.until(lambda: s.got('"ann"@example.test'))
        assert s.asked == ["ann@example.test", twin, '"ann"@example.test']


@pytest.mark.parametrize("smtputf8", [False, True])
async def test_a_message_for_smtputf8_gets_text_as_it_is(tmp_path: Path, clock: FakeClock, smtputf8: bool) -> None:
    async with switch(tmp_path, clock) as s:
        s.answers["ann@example.test"] = lambda: Verdict(Action.PASS, edits=(AddHeader("X-Why", "grün"),))
        await s.accept("ann@example.test", smtputf8=smtputf8)
        await s.until(lambda: s.got("ann@example.test"))
        assert s.got("ann@example.test")[0].isascii() is not smtputf8


@pytest.mark.parametrize(
    ("outcome", "quoted"),
    [(Outcome(Reply(550, "5.1.1", "no such")), True), (Outcome(Reply(550, "5.6.7", "needs it"), ours=True), False)],
)
async def test_a_report_quotes_only_what_a_server_said(
    tmp_path: Path, clock: FakeClock, outcome: Outcome, quoted: bool
) -> None:
    class Refuses(MemoryCourier):
        async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
            if envelope.sender:
                clock.advance(86_400)  # a report is written later than its mail came
                return Delivered((outcome,))
            return await super().deliver(envelope, content)

    async with switch(tmp_path, clock, Refuses()) as s:
        came = format_datetime(datetime.fromtimestamp(clock(), UTC))
        await s.accept("joe@example.test")
        await s.until(lambda: s.got("s@example.org"))
        (report,) = s.got("s@example.org")
        assert (f"Diagnostic-Code: smtp; {outcome.reply}".encode() in report) is quoted
        assert b"Diagnostic-Code" in report or not quoted
        assert f"Arrival-Date: {came}\r\n".encode() in report


@pytest.mark.sources
@pytest.mark.parametrize(("edits", "beside"), [(1, False), (100, True)])
async def test_a_header_that_takes_its_time_is_written_beside_the_loop(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, edits: int, beside: bool
) -> None:
    real, threads = Composer.compose, []

    def compose(self: Composer, *args: Any, **kwargs: Any) -> Content:
        threads.append(threading.current_thread() is not threading.main_thread())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Composer, "compose", compose)
    async with switch(tmp_path, clock) as s:
        fields = (AddHeader("X-Why", "ü a " * 2500),) * edits
        s.answers["ann@example.test"] = lambda: Verdict(Action.PASS, edits=fields)
        await s.accept("ann@example.test")
        await s.until(lambda: s.got("ann@example.test"))
        assert threads == [beside]


async def test_success_is_reported_where_the_next_hop_does_not(tmp_path: Path, clock: FakeClock) -> None:
    class NoDsn(MemoryCourier):
        async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
            return replace(await super().deliver(envelope, content), dsn=False)

    async with switch(tmp_path, clock, NoDsn()) as s:
        await s.accept("joe@example.test", notify="SUCCESS", data=message(Subject="mine"))
        await s.until(lambda: s.got("s@example.org"))
        assert b"Action: relayed" in s.got("s@example.org")[0]
        assert b"Subject: mine" in s.got("s@example.org")[0]


async def test_what_has_no_place_in_the_window_is_loaded_at_once(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "WINDOW", 5)

    async with switch(tmp_path, clock) as s:
        to = [f"u{n}@example.test" for n in range(23)]
        await s.accept(*to)
        async with asyncio.timeout(5):
            while set(s.states().values()) != {"delivered"}:
                await asyncio.sleep(0.02)
        assert sorted(r.address for p in s.courier.parcels for r in p.envelope.recipients) == sorted(to)


@pytest.mark.sources
async def test_a_spool_that_fails_after_the_next_hop_took_it_repeats_nothing(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with switch(tmp_path, clock) as s:
        real = s.spool.change
        failures = iter([True, True, False])

        async def failing(*args: Any, **kwargs: Any) -> None:
            if next(failures, False):
                raise SpoolUnavailable
            await real(*args, **kwargs)

        monkeypatch.setattr(s.spool, "change", failing)
        await s.accept("joe@example.test")
        await s.until(lambda: s.states() == {"joe@example.test": "delivered"})
        assert len(s.got("joe@example.test")) == 1


async def test_what_an_order_ended_is_not_sent_after_a_reload(tmp_path: Path, clock: FakeClock) -> None:
    """The next hop is replaced before a transaction began, after a rule took one of its recipients out."""

    gone = MemoryCourier()
    async with switch(tmp_path, clock, gone) as made:
        connection = admin.open_files(tmp_path)
        rules.add(connection, rules.Kind.DROP, "to:ann2@", reason="x", author="me", now=clock(), time=100)
        new = MemoryCourier()

        async def deliver(envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
            made.current.swap(replace(made.current.settings, courier=new))
            return Delivered((Outcome(None),) * len(envelope.recipients))

        gone.deliver = deliver  # type: ignore[method-assign]
        made.current.use_rules(await made.spool.rules())
        await made.accept("ann2@example.test", "bob2@example.test")
        await made.until(lambda: new.parcels)
        await made.until(lambda: made.states()["bob2@example.test"] == "delivered")
        assert [r.address for parcel in new.parcels for r in parcel.envelope.recipients] == ["bob2@example.test"]
        assert made.states()["ann2@example.test"] == "discarded"
