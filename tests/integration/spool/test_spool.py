"""The spool: durable, exact, recoverable; and each rule of the audit broken once to see it noticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sendswitch.errors import ContentDamaged, NotFound, Refused, SpoolUnavailable, Temporary
from sendswitch.journal.events import EventKind
from sendswitch.journal.search import parse
from sendswitch.mail.content import InFile, InMemory, read_all
from sendswitch.mail.ids import to_text
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.spool import admin, requeue
from sendswitch.spool import connection as spool_connection
from sendswitch.spool.audit import audit
from sendswitch.spool.backup import copy_spool
from sendswitch.spool.body import LARGE
from sendswitch.spool.opening import open_spool
from sendswitch.spool.records import Change, Delivery, Message
from sendswitch.spool.spool import Spool, new_message
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock, envelope


async def stored(spool: Spool, clock: FakeClock, *to: str, size: int = 100) -> tuple[Message, list[Delivery]]:
    body = spool.body()
    for _ in range(0, size, 50_000):
        body.write(b"x" * min(size, 50_000))
        if body.full:
            await body.drain()
    content = body.in_memory() or await body.in_file()
    to = to or ("ann@example.test",)
    message = new_message(spool, envelope("s@x", *to), content, now=clock(), lifetime=1000, via="filter", id_=body.id)
    deliveries = [Delivery(message, n, r, due=clock()) for n, r in enumerate(message.envelope.recipients)]
    await spool.accept(message, deliveries)
    return message, deliveries


def done(delivery: Delivery, state: State = State.DELIVERED) -> Change:
    return Change(delivery, state, EventKind(state.value), {"reply": "250 ok"}, reply="250 ok")


async def test_what_was_accepted_is_there_after_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    async def before() -> None:
        spool = open_spool(tmp_path / "spool", clock)
        await stored(spool, clock, "ann@example.test", "bob@example.test")
        await stored(spool, clock, size=LARGE + 1)
        # No close: as after a crash.

    async def after() -> None:
        spool = open_spool(tmp_path / "spool", clock)
        found = await spool.due(clock(), 10)
        assert [d.recipient.address for d in found] == ["ann@example.test", "bob@example.test", "ann@example.test"]
        assert found[0].message is found[1].message
        assert read_all(await found[0].message.load()) == b"x" * 100
        large = await found[2].message.load()
        assert isinstance(large, InFile)
        assert read_all(large) == b"x" * 300_000
        await spool.close()

    await before()
    await after()


async def test_content_goes_with_the_last_delivery(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    for size in (100, LARGE + 1):
        message, (one, two) = await stored(spool, clock, "a@x", "b@x", size=size)
        await spool.change([done(one)])
        await spool.content(message.id)
        await spool.change([done(two)])
        with pytest.raises(Temporary):
            await spool.content(message.id)
        assert not spool.file(message.id).exists()
    await spool.close()


async def test_many_at_once_are_few_commits_and_one_bad_one_fails_alone(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    await asyncio.gather(*(stored(spool, clock) for _ in range(200)))
    message, (delivery,) = await stored(spool, clock)
    twice = spool.accept(message, [delivery])  # the same id again
    others = [stored(spool, clock) for _ in range(20)]
    results = await asyncio.gather(twice, *others, return_exceptions=True)
    assert isinstance(results[0], sqlite3.IntegrityError)
    assert not any(isinstance(result, BaseException) for result in results[1:])
    assert len(await spool.due(clock(), 1000)) == 221
    await spool.close()


async def test_files_of_messages_nobody_was_promised_go_at_start(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    message, _ = await stored(spool, clock, size=LARGE + 1)
    half = spool.body()
    half.write(b"x" * (LARGE + 1))
    await half.drain()
    whole = spool.body()
    whole.write(b"x" * (LARGE + 1))
    await whole.in_file()
    files = tmp_path / "spool" / "content"
    assert len(list(files.iterdir())) == 3
    await spool.close()
    again = open_spool(tmp_path / "spool", clock)
    assert [path.stem for path in files.iterdir()] == [to_text(message.id)]
    await again.close()


async def test_ids_go_on_rising_over_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    async def once() -> int:
        spool = open_spool(tmp_path / "spool", clock)
        message, _ = await stored(spool, clock)
        await spool.close()
        return message.id

    first = await once()
    clock.advance(-1000)
    assert await once() > first


async def test_purging_takes_only_what_is_final_and_old(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    _, (old,) = await stored(spool, clock)
    _, (waiting,) = await stored(spool, clock)
    clock.advance(1000)
    _, (new,) = await stored(spool, clock)
    await spool.change([done(old), done(new)])
    assert await spool.purge(clock() - 500) == 0  # the journal does not have it yet
    await spool.mark_journaled((await spool.events(0, 100))[-1].seq)
    assert await spool.purge(clock() - 500) == 1
    assert await spool.purge(clock() - 500) == 0
    states, _, events = await spool.figures()
    assert states == {"accepted": 1}
    assert events == 0  # that wait for the journal
    assert len(await spool.events(0, 100)) == 3
    assert waiting.state is State.ACCEPTED
    await spool.close()


async def test_a_spool_of_a_newer_program_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    await open_spool(tmp_path / "spool", clock).close()
    with closing(sqlite3.connect(tmp_path / "spool" / "spool.db")) as connection, connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(Temporary, match="schema version 99"):
        open_spool(tmp_path / "spool", clock)


JUDGED = Verdict(Action.PASS, pipeline="ann@example.test", version=1)


@pytest.mark.parametrize(
    ("recording", "verdict", "kept"),
    [("filtered", JUDGED, True), ("filtered", None, False), ("all", None, True), ("none", JUDGED, False)],
)
@pytest.mark.parametrize("size", [100, LARGE + 1])
async def test_what_is_recorded_outlives_its_delivery(
    recording: str, verdict: Verdict | None, kept: bool, size: int, tmp_path: Path, clock: FakeClock
) -> None:
    spool = open_spool(tmp_path / "spool", clock, recording=recording)
    message, (one, two) = await stored(spool, clock, "a@x", "b@x", size=size)
    await spool.change([Change(one, State.DECIDED, EventKind.VERDICT, {}, clock(), verdict)])
    await spool.change([done(one)])
    assert await spool.recorded() == 0  # the other one needs it still
    await spool.change([done(two)])
    assert await spool.recorded() == (message.size if kept else 0)
    await spool.close()
    spool = open_spool(tmp_path / "spool", clock, recording=recording)
    assert audit(admin.open_files(tmp_path), tmp_path).findings == ()
    if kept:
        assert len(read_all(await spool.content(message.id))) == message.size
        assert await spool.trim(message.size) == 0
        assert await spool.trim(message.size - 1) == 1
    with pytest.raises(SpoolUnavailable):
        await spool.content(message.id)
    assert not list((tmp_path / "spool" / "content").iterdir())
    assert audit(admin.open_files(tmp_path), tmp_path).findings == ()
    await spool.close()


async def test_the_oldest_record_goes_first_and_none_that_is_on_its_way(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock, recording="all")
    messages = []
    for _ in range(5):
        message, (one,) = await stored(spool, clock)
        await spool.change([done(one)])
        messages.append(message)
    first = messages[0].id
    # As after `message requeue`: recorded, and on its way again.
    await spool.call(lambda c: c.execute("UPDATE delivery SET due = 1, state = 'accepted' WHERE message = ?", (first,)))
    assert await spool.trim(250) == 3
    assert await spool.trim(250) == 0
    with contextlib.closing(admin.open_files(tmp_path)) as connection:
        kept = {row[0] for row in connection.execute("SELECT message FROM content")}
    assert kept == {first, messages[4].id}
    assert await spool.purge(clock() + 1000, journal=False) == 4
    assert await spool.recorded() == 100
    await spool.close()


async def test_a_spool_of_the_first_version_is_brought_up_to_date(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    message, _ = await stored(spool, clock)
    await spool.close()
    with closing(sqlite3.connect(tmp_path / "spool" / "spool.db")) as connection, connection:
        connection.execute("DROP TABLE recorded")
        connection.execute("DROP TABLE rule")
        connection.execute("DROP TABLE rule_delivery")
        connection.execute("DROP TABLE answered")
        connection.execute("DROP TABLE suspect")
        connection.execute("ALTER TABLE message DROP COLUMN lifetime")
        connection.execute("ALTER TABLE message DROP COLUMN digest")
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(SpoolUnavailable, match="schema version 1"):
        admin.open_files(tmp_path)
    spool = open_spool(tmp_path / "spool", clock)
    (due,) = await spool.due(clock(), 10)
    assert due.message.id == message.id
    await spool.change([done(due)])
    await spool.close()


async def test_quarantine_from_outside(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    message, (one, two) = await stored(spool, clock, "a@x", "b@x")
    for delivery in (one, two):
        verdict = Verdict(Action.QUARANTINE, tags=("SPAM",), reason="why")
        kept = Change(delivery, State.QUARANTINED, EventKind.QUARANTINED, {}, clock() + 100, verdict)
        await spool.change([kept])
    connection = admin.open_files(tmp_path)
    first, second = (f"{message.text_id}.{n}" for n in (0, 1))
    assert [row.id for row in admin.rows(connection, (State.QUARANTINED,))] == [first, second]
    assert [row.id for row in admin.rows(connection, (State.QUARANTINED,), terms=parse("user:B@x", 0.0))] == [second]
    admin.release(connection, first, clock(), by="me")
    with pytest.raises(Refused, match="not quarantined"):
        admin.release(connection, first, clock(), by="me")
    with pytest.raises(Refused, match="not quarantined"):
        admin.delete(connection, first, clock(), by="me")
    with pytest.raises(NotFound):
        admin.release(connection, "0000000000000.7", clock(), by="me")
    with pytest.raises(NotFound, match="add the recipient's number"):
        admin.release(connection, message.text_id, clock(), by="me")
    (due,) = await spool.due(clock(), 10)
    assert due.verdict is not None
    assert (due.state, due.verdict.action, due.verdict.tags) == (State.DECIDED, Action.PASS, ("SPAM",))
    admin.delete(connection, second, clock(), by="me")
    await spool.change([done(due)])
    assert await spool.recorded() == message.size
    assert audit(connection, tmp_path).findings == ()
    await spool.close()


DAMAGE = {
    "every accepted recipient has a delivery": "DELETE FROM delivery WHERE n = 1",
    "every delivery belongs to a message": "DELETE FROM message WHERE id = (SELECT min(id) FROM message)",
    "every state is one of the known": "UPDATE delivery SET state = 'lost' WHERE n = 1",
    "what is not final has a time to be looked at again": "UPDATE delivery SET due = NULL WHERE state = 'accepted'",
    "what is final is not looked at again": "UPDATE delivery SET due = 1 WHERE state = 'delivered'",
    "what is not final has its content": "DELETE FROM content",
    "content goes with the last delivery that needs it": "INSERT INTO content VALUES (1, x'00')",
    "what is recorded is there": "INSERT INTO recorded VALUES (1, 5, 0)",
    "every message has its first event": "DELETE FROM outbox WHERE event = 'accepted'",
    "a final delivery has one end": "DELETE FROM outbox WHERE event = 'delivered'",
}


@pytest.mark.parametrize("rule", DAMAGE)
async def test_the_audit_notices(tmp_path: Path, clock: FakeClock, rule: str) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    _, (first, _) = await stored(spool, clock, "a@x", "b@x")
    await spool.change([done(first)])
    await stored(spool, clock)
    await spool.close()

    connection = admin.open_files(tmp_path)
    assert audit(connection, tmp_path).findings == ()
    connection.execute(DAMAGE[rule])
    assert rule in {finding.rule for finding in audit(connection, tmp_path).findings}


async def test_the_audit_notices_a_missing_file(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    message, _ = await stored(spool, clock, size=LARGE + 1)
    spool.file(message.id).write_bytes(b"short")
    await spool.close()

    (finding,) = audit(admin.open_files(tmp_path), tmp_path).findings
    assert "has 5 bytes" in finding.text


async def test_content_in_memory_is_one_piece(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    body = spool.body()
    body.write(b"a")
    body.write(b"b")
    assert body.in_memory() == InMemory(b"ab")
    body.discard()
    await spool.close()


async def test_an_events_number_is_never_given_again(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    _, (old,) = await stored(spool, clock)
    await spool.change([done(old)])
    last = (await spool.events(0, 100))[-1].seq
    await spool.mark_journaled(last)
    clock.advance(1000)
    assert await spool.purge(clock()) == 1
    await stored(spool, clock)
    assert [event.event for event in await spool.events(last, 100)] == ["accepted"]
    await spool.close()


async def test_answered_mail_gets_its_delivery_time_again(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    message, (held,) = await stored(spool, clock)
    await spool.change([Change(held, State.HELD, EventKind.HELD, {}, clock() + 1e9, Verdict.pending("wait"))])
    clock.advance(10 * (message.expires - message.received))
    connection = admin.open_files(tmp_path)
    admin.answer(connection, f"{message.text_id}.0", "pass", clock(), by="me", reason="")
    (due,) = await spool.due(clock(), 10)
    assert due.message.expires > clock()
    connection.close()
    await spool.close()


async def test_few_statements_serve_groups_of_every_size(tmp_path: Path, clock: FakeClock) -> None:
    """Each keeps the content that was last bound to it."""

    async def inside() -> None:
        spool = open_spool(tmp_path / "spool", clock)
        for size in (*range(1, 20), 63, 64, 65, 130):
            await asyncio.gather(*(stored(spool, clock) for _ in range(size)))
        await spool.close()

    spool_connection.statement.cache_clear()
    await inside()
    assert spool_connection.statement.cache_info().currsize <= 7


async def test_time_does_not_add_up_for_each_recipient(tmp_path: Path, clock: FakeClock) -> None:
    """Mail that was kept gets its delivery time anew, and no more than that."""

    spool = open_spool(tmp_path / "spool", clock)
    message, deliveries = await stored(spool, clock, *(f"u{n}@x" for n in range(20)))
    for delivery in deliveries:
        await spool.change([Change(delivery, State.QUARANTINED, EventKind.QUARANTINED, {}, clock() + 10**6)])
    connection = admin.open_files(tmp_path)
    clock.advance(5000)
    for n in range(20):
        admin.release(connection, f"{message.text_id}.{n}", clock(), by="me")
    (due, *_) = await spool.due(clock(), 1)
    assert due.message.expires == clock() + 1000
    assert due.message.lifetime == 1000
    await spool.close()


async def test_a_copy_links_large_messages_and_has_all_that_are_needed(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock, recording="all")
    waiting, _ = await stored(spool, clock, size=LARGE + 1)
    kept, (one,) = await stored(spool, clock, size=LARGE + 1)
    await spool.change([done(one)])
    (tmp_path / "spool" / "content" / "0000000000000.tmp").write_bytes(b"coming in")
    assert copy_spool(tmp_path, tmp_path / "copy" / "spool") == 2
    files = {path.name: path for path in (tmp_path / "copy" / "spool" / "content").iterdir()}
    assert set(files) == {f"{waiting.text_id}.eml", f"{kept.text_id}.eml"}
    assert {path.stat().st_nlink for path in files.values()} == {2}
    assert audit(admin.open_files(tmp_path / "copy"), tmp_path / "copy").findings == ()
    spool.file(waiting.id).unlink()
    with pytest.raises(Temporary, match="come and go"):
        copy_spool(tmp_path, tmp_path / "again")
    await spool.close()


@pytest.mark.parametrize("size", [100, LARGE + 1])
@pytest.mark.parametrize("change", [b"y", b"x" * 50, b""], ids=["another byte", "shorter", "empty"])
async def test_content_that_is_not_what_was_stored_is_not_given_out(
    tmp_path: Path, clock: FakeClock, size: int, change: bytes
) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    message, _ = await stored(spool, clock, size=size)
    original = read_all(await spool.content(message.id))
    await spool.close()
    damaged = change + original[1:] if change == b"y" else change
    if size > LARGE:
        (tmp_path / "spool" / "content" / f"{message.text_id}.eml").write_bytes(damaged)
    else:
        with closing(sqlite3.connect(tmp_path / "spool" / "spool.db")) as connection, connection:
            connection.execute("UPDATE content SET bytes = ?", (damaged,))
    spool = open_spool(tmp_path / "spool", clock)
    with pytest.raises(ContentDamaged, match="is damaged"):
        await spool.content(message.id)
    with closing(admin.open_files(tmp_path)) as connection, pytest.raises(ContentDamaged):
        requeue.content(connection, tmp_path, message.id)
    await spool.close()


async def test_content_that_an_older_program_stored_has_no_digest(tmp_path: Path, clock: FakeClock) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    message, _ = await stored(spool, clock)
    await spool.call(lambda c: c.execute("UPDATE message SET digest = NULL"))
    assert read_all(await spool.content(message.id)) == b"x" * 100
    await spool.close()


async def test_a_spool_whose_database_is_missing_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    folder = tmp_path / "spool"

    spool = open_spool(folder, clock)
    await stored(spool, clock, size=LARGE + 1)
    await spool.close()
    (folder / "spool.db").rename(tmp_path / "kept.db")
    with pytest.raises(SpoolUnavailable, match="is missing, and there is mail in"):
        open_spool(folder, clock)
    assert len(list((folder / "content").iterdir())) == 1
    (tmp_path / "kept.db").rename(folder / "spool.db")
    await open_spool(folder, clock).close()


async def test_content_without_a_message_is_put_aside_and_deleted_later(tmp_path: Path, clock: FakeClock) -> None:
    folder = tmp_path / "spool"

    await open_spool(folder, clock).close()
    (folder / "content" / "0000000000000.eml").write_bytes(b"x")
    (folder / "content" / "0000000000001.tmp").write_bytes(b"x")
    await open_spool(folder, clock).close()
    aside = folder / "orphans" / "0000000000000.eml"
    assert aside.read_bytes() == b"x"
    assert list((folder / "content").iterdir()) == []
    os.utime(aside, (1, 1))
    await open_spool(folder, clock).close()
    assert not aside.exists()


async def test_nobody_else_sees_the_spool_whatever_modes_it_had(tmp_path: Path, clock: FakeClock) -> None:
    folder = tmp_path / "spool"

    spool = open_spool(folder, clock)
    await stored(spool, clock, size=LARGE + 1)
    await spool.close()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    await open_spool(folder, clock).close()
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "content")} == {0o700}
