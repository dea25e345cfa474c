"""Events for webhooks: kept, sent until they are taken, in order, by a schedule; outages, 410, and sending again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from standardwebhooks import Webhook as Verifier

from sendswitch.errors import NotFound, Refused, SpoolUnavailable
from sendswitch.mail.ids import first_at, to_text
from sendswitch.processors.base import Notice, Services
from sendswitch.processors.notify import Notify, NotifyOptions
from sendswitch.processors.services.reachable import Reach
from sendswitch.testing import FakeClock, context, mail
from sendswitch.webhooks import schedule, sender
from sendswitch.webhooks.outbox import Outbox
from sendswitch.webhooks.sender import Sender
from tests.integration.processors.test_webhook import OTHER, SECRET
from tests.receiver import Receiver, receiver

NOW = 1_700_000_000.0


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "webhooks" / "outbox.db")
    yield outbox
    outbox.close()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


def notice(kept: Receiver, n: int = 0, message: int = 0, recipient: str = "ann@example.test") -> Notice:
    url = f"http://127.0.0.1:{kept.port}/hook"
    body = f'{{"n": {n}}}'
    return Notice(f"msg_{message}_{n}", url, recipient, (SECRET,), to_text(first_at(NOW) + message), False, body)


@asynccontextmanager
async def sending(outbox: Outbox, clock: FakeClock, allow: tuple[str, ...] = ("127.0.0.1",)) -> AsyncIterator[Sender]:
    one = Sender(outbox, Reach(allow), lambda: 86_400.0, clock)
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(true: Callable[[], object], limit: float = 20.0) -> None:
    async with asyncio.timeout(limit):
        while not true():
            await asyncio.sleep(0.01)


async def nothing_is_due(one: Sender, outbox: Outbox, clock: FakeClock) -> None:
    """Wait until all that is due by the clock was tried."""
    await until(lambda: not one.sending and not outbox.due(clock(), 1, but=[], full=[]))


def states(outbox: Outbox) -> dict[str, str]:
    return {event["id"]: event["state"] for event in outbox.events(limit=1000)}


def test_an_event_is_on_the_disk_when_it_is_taken(outbox: Outbox) -> None:
    """No kill shows it, only a power cut: SQLite is asked to wait for the disk (2 is FULL)."""
    assert outbox.connection.execute("PRAGMA synchronous").fetchone()[0] == 2


async def test_it_is_told_signed_and_on_record(outbox: Outbox, hook: Receiver, clock: FakeClock) -> None:
    async with sending(outbox, clock) as one:
        await one.put(notice(hook))
        await one.put(notice(hook))  # once per id
        await until(lambda: set(states(outbox).values()) == {"delivered"})

    (request,) = hook.requests
    assert Verifier(SECRET).verify(request.body, request.headers) == {"n": 0}
    assert request.headers["webhook-id"] == "msg_0_0"
    (tried,) = outbox.attempts("msg_0_0")
    assert (tried["n"], tried["status"]) == (1, 204)
    (endpoint,) = outbox.endpoints()
    assert (endpoint["delivered"], endpoint["waiting"], endpoint["failed"]) == (1, 0, 0)


async def test_an_hour_of_500_loses_nothing_and_keeps_the_order(
    outbox: Outbox, hook: Receiver, clock: FakeClock
) -> None:
    hook.answers = [(500, b"down", {})]

    async with sending(outbox, clock) as one:
        for n in range(4):
            for message in range(5):
                await one.put(notice(hook, n, message))
        for _ in range(60):  # minute by minute
            clock.advance(60)
            before = len(hook.requests)
            one.look()
            await nothing_is_due(one, outbox, clock)
            assert len(hook.requests) - before <= 5  # of each message the first, and by its schedule only
        assert set(states(outbox).values()) == {"waiting"}
        assert 5 * 3 <= len(hook.requests) <= 5 * 5
        hook.answers = [(204, b"", {})]
        hook.requests.clear()
        for _ in range(10):
            clock.advance(3600)
            one.look()
            await nothing_is_due(one, outbox, clock)
        assert set(states(outbox).values()) == {"delivered"}

    told = [request.headers["webhook-id"] for request in hook.requests]
    assert len(told) == len(set(told)) == 20
    for message in range(5):
        mine = [id_ for id_ in told if id_.startswith(f"msg_{message}_")]
        assert mine == [f"msg_{message}_{n}" for n in range(4)]


async def test_one_that_is_down_holds_up_no_other(outbox: Outbox, hook: Receiver, clock: FakeClock) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, sending(outbox, clock) as one:
        for n in range(100):
            stuck = replace(notice(hook, n, n), id=f"stuck_{n}", url=f"http://127.0.0.1:{port}/")
            await one.put(stuck)
        for n in range(50):
            await one.put(notice(hook, n, n))
        await until(lambda: len(hook.requests) == 50)
        assert sum(id_.startswith("stuck") for id_ in one.sending) <= sender.EACH


async def test_410_ends_it_until_it_is_enabled_again(outbox: Outbox, hook: Receiver, clock: FakeClock) -> None:
    hook.answers = [(410, b"", {})]

    async with sending(outbox, clock) as one:
        for n in range(3):
            await one.put(notice(hook, n))
        await until(lambda: set(states(outbox).values()) == {"failed"})
        await one.put(notice(hook, 3))
        clock.advance(1e6)
        one.look()
        assert len(hook.requests) == 1
        (endpoint,) = outbox.endpoints()
        assert endpoint["why"] == "the receiver said 410"
        assert outbox.send_again(["msg_0_0"], clock()) == 0
        hook.answers = [(200, b"", {})]
        outbox.enable(endpoint["number"])
        assert outbox.send_again(["msg_0_0", "msg_0_3"], clock()) == 2
        one.look()
        await until(lambda: list(states(outbox).values()).count("delivered") == 2)

    assert [request.headers["webhook-id"] for request in hook.requests] == ["msg_0_0", "msg_0_0", "msg_0_3"]


async def test_a_receiver_that_asks_for_time_gets_it(outbox: Outbox, hook: Receiver, clock: FakeClock) -> None:
    hook.answers = [(503, b"", {"Retry-After": "7200"}), (204, b"", {})]

    async with sending(outbox, clock) as one:
        await one.put(notice(hook))
        await until(lambda: len(hook.requests) == 1 and not one.sending)
        clock.advance(7000)
        one.look()
        await nothing_is_due(one, outbox, clock)
        assert len(hook.requests) == 1
        clock.advance(300)
        one.look()
        await until(lambda: "delivered" in states(outbox).values())


async def test_what_is_not_public_is_told_nothing(outbox: Outbox, hook: Receiver, clock: FakeClock) -> None:
    async with sending(outbox, clock, allow=()) as one:
        await one.put(notice(hook))
        await until(lambda: outbox.attempts("msg_0_0"))

    assert hook.requests == []
    assert "no public address" in outbox.attempts("msg_0_0")[0]["said"]


async def test_it_is_given_up_after_about_three_days(outbox: Outbox, hook: Receiver, clock: FakeClock) -> None:
    hook.answers = [(500, b"down", {})]

    async with sending(outbox, clock) as one:
        await one.put(notice(hook))
        for _ in range(100):
            await nothing_is_due(one, outbox, clock)
            clock.advance(3600)
            one.look()
        await until(lambda: states(outbox)["msg_0_0"] == "failed")

    assert len(hook.requests) == len(schedule.PAUSES) + 1


def test_what_is_kept_outlives_the_process_and_is_forgotten_in_time(
    tmp_path: Path, hook: Receiver, clock: FakeClock
) -> None:
    file = tmp_path / "webhooks" / "outbox.db"
    first = Outbox(file)
    for n in range(3):
        first.put(notice(hook, n, n), clock())
    first.close()
    again = Outbox(file)
    events = again.due(clock(), 10)
    assert [event.id for event in events] == ["msg_0_0", "msg_1_1", "msg_2_2"]
    again.tried(events[0], at=clock(), seconds=0.1, status=200, said="x" * 10_000, due=None)
    assert len(again.attempts("msg_0_0")[0]["said"]) == 500
    assert again.prune(clock() + 1) == 1
    assert again.prune(clock() + 1) == 0
    assert len(again.events(limit=10)) == 2
    with pytest.raises(NotFound):
        again.attempts("msg_0_0")
    with pytest.raises(NotFound):
        again.enable(99)
    again.close()
    assert (os.stat(file).st_mode | os.stat(file.parent).st_mode) & 0o077 == 0


def test_new_secrets_sign_what_waits(outbox: Outbox, hook: Receiver) -> None:
    outbox.put(notice(hook), NOW)
    outbox.put(replace(notice(hook, 1, 1), secrets=(OTHER, SECRET)), NOW)
    assert {event.secrets for event in outbox.due(NOW, 10)} == {(OTHER, SECRET)}


def test_an_outbox_that_cannot_be_written_is_told(tmp_path: Path, hook: Receiver) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnavailable):
        Outbox(tmp_path / "file" / "outbox.db")
    outbox = Outbox(tmp_path / "outbox.db")
    outbox.connection.execute("PRAGMA query_only = 1")
    with pytest.raises(SpoolUnavailable):
        outbox.put(notice(hook), NOW)
    outbox.close()


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_the_schedule(chance: float) -> None:
    due = [schedule.next_try(n, 0.0, chance) for n in range(1, len(schedule.PAUSES) + 2)]
    assert due[-1] is None
    pauses = [one for one in due if one is not None]
    assert pauses == sorted(pauses)
    assert 2.5 * 86_400 < sum(pauses) < 3.6 * 86_400
    assert schedule.next_try(1, 0.0, chance, 600.0) == 600.0
    assert schedule.next_try(1, 0.0, chance, 1e9) == schedule.LONGEST


# The step


async def test_a_message_that_is_offered_again_is_one_event(outbox: Outbox, clock: FakeClock) -> None:
    notify = Notify(NotifyOptions(url="https://hooks.example/x", secret=SECRET, content="full"))

    one = Sender(outbox, Reach(), lambda: 1.0, clock)
    notify.setup(Services(outbox=one))
    asked = context("s@x", "Ann+x@example.test")
    for attempt in (1, 2):
        verdict = await notify.process(mail("hello"), replace(asked, attempt=attempt))
        assert verdict is not None
        assert (verdict.action, verdict.tags) == (None, ())
    assert "rehearsal" in (await notify.process(mail(), replace(asked, rehearsal=True))).reason  # type: ignore[union-attr]

    (event,) = outbox.due(clock(), 10)
    assert '"text":"hello"' in event.body
    assert '"type":"message.received"' in event.body
    assert outbox.endpoints()[0]["recipient"] == "ann+x@example.test"


async def test_of_a_large_message_only_what_is_thin_is_sent(outbox: Outbox, clock: FakeClock) -> None:
    notify = Notify(NotifyOptions(url="https://hooks.example/x", secret=SECRET, content="raw", largest="1kB"))

    one = Sender(outbox, Reach(), lambda: 1.0, clock)
    notify.setup(Services(outbox=one))
    await notify.process(mail("x" * 2000), context())

    (event,) = outbox.due(clock(), 10)
    assert '"raw"' not in event.body
    assert len(event.body) < 1500


async def test_without_a_node_nobody_could_send() -> None:
    with pytest.raises(Refused, match="where a node runs"):
        await Notify(NotifyOptions(url="https://hooks.example/x", secret=SECRET)).process(mail(), context())
