"""The journal on every database: batches once or twice, searching, stories, pruning, and databases that are away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.exc import OperationalError

from sendswitch.accounts import users, workers
from sendswitch.accounts.routes import load_routes
from sendswitch.admin import desired_state as declared
from sendswitch.config.model import Config
from sendswitch.db import journal, lists, marks
from sendswitch.db.connect import open_database
from sendswitch.db.tables import deliveries, events, messages
from sendswitch.errors import InvalidConfiguration, NotFound, Temporary
from sendswitch.journal.events import Event, EventKind
from sendswitch.journal.search import SearchFacts, matches, parse
from sendswitch.mail import ids
from sendswitch.mail.content import InMemory
from sendswitch.monitoring import auditor as ledger
from sendswitch.monitoring import journal_relay as journaling
from sendswitch.monitoring.journal_relay import keep_journal
from sendswitch.spool.opening import open_spool
from sendswitch.spool.records import Change, Delivery
from sendswitch.spool.spool import new_message
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock, envelope

DAY = 86400.0
NOW = 1_700_000_000.0


def accepted(message: int, *to: str, seq: int = 1, **facts: Any) -> Event:
    data = {"from": "alice@example.org", "to": list(to), "size": 1000, "via": "filter"} | facts
    return Event(seq, message, None, ids.received(message), "accepted", data)


def id_at(seconds: float, n: int = 0) -> int:
    return ids.first_at(seconds) + n


VERDICT = {
    "action": "deny",
    "tags": ["SPAM", "NEWS"],
    "score": 7.5,
    "reason": "too loud",
    "trace": [{"processor": "lists", "seconds": 0.001, "outcome": "deny", "saw": "loud@example.org"}],
}


def test_users_and_pipelines_are_kept_alike(engine: Engine) -> None:
    users.add_user(engine, "ann@example.test")
    assert users.set_pipeline(engine, "ANN@example.test", "x = 1") == 1
    assert users.set_pipeline(engine, "ann@example.test", "x = 2") == 2
    assert [(user.address, user.version) for user in users.list_users(engine)] == [("ann@example.test", 2)]
    assert abs(users.list_users(engine)[0].created - __import__("time").time()) < 60
    assert users.all_pipelines(engine)[0].text == "x = 2"


def test_a_batch_that_is_cut_another_way_the_second_time(engine: Engine) -> None:
    """After a crash the journal is told again, and more has happened since."""
    one = id_at(NOW)
    came = accepted(one, "ann@example.test", "bob@example.test")
    later = [
        Event(2, one, 0, NOW, "verdict", VERDICT),
        Event(3, one, 0, NOW + 1, "bounced", {"reply": "550 no"}),
        Event(4, one, 1, NOW + 2, "delivered", {"reply": "250 ok"}),
    ]
    for batch in ([came], [came, *later[:2]], [came, *later], [came], [came, later[0]], later[1:]):
        journal.write(engine, batch)
    kept = journal.story(engine, one)
    assert [row["state"] for row in kept.deliveries] == ["bounced", "delivered"]
    assert (kept.deliveries[0]["action"], kept.deliveries[0]["tags"]) == ("deny", " SPAM NEWS ")
    assert len(kept.events) == 4


def test_a_candidate_is_promoted_or_not_and_history_can_be_gone_back_to(engine: Engine) -> None:
    users.add_user(engine, "ann@example.test")
    users.set_pipeline(engine, "ann@example.test", "one", author="me")
    assert users.set_pipeline(engine, "ann@example.test", "two", role="candidate") == 2
    assert users.set_pipeline(engine, "ann@example.test", "three", role="candidate") == 3
    assert [route.candidate for route in load_routes(engine, Config())] == [3]
    assert users.get_pipeline(engine, "ann@example.test").text == "one"
    assert [stored.version for stored in users.all_pipelines(engine)] == [1]
    assert users.list_users(engine)[0].version == 1
    assert users.promote(engine, "ann@example.test", author="you") == (3, 4)
    assert [route.candidate for route in load_routes(engine, Config())] == [0]
    live = users.get_pipeline(engine, "ann@example.test")
    assert (live.version, live.text, live.author) == (4, "three", "you")
    with pytest.raises(NotFound, match="has no candidate"):
        users.promote(engine, "ann@example.test")
    with pytest.raises(NotFound, match="has no candidate"):
        users.withdraw(engine, "ann@example.test")
    assert users.roll_back(engine, "ann@example.test", None) == (1, 5)
    assert users.get_pipeline(engine, "ann@example.test").text == "one"
    with pytest.raises(NotFound, match="no live version 2"):
        users.roll_back(engine, "ann@example.test", 2)
    assert users.roll_back(engine, "ann@example.test", 4) == (4, 6)
    roles = [(stored.version, stored.role) for stored in users.history(engine, "ann@example.test")]
    assert roles == [(6, "live"), (5, "live"), (4, "live"), (3, "retired"), (2, "retired"), (1, "live")]
    with pytest.raises(NotFound):
        users.history(engine, "bob@example.test")


def test_what_a_file_declares_is_planned_and_made(engine: Engine, tmp_path: Path) -> None:
    def ok(text: str, name: str) -> None:
        if "wrong" in text:
            raise InvalidConfiguration([f"{name}: wrong"])

    users.add_user(engine, "ann@example.test")
    users.set_pipeline(engine, "ann@example.test", "one = 1\n'''\n\"\"\"\n")
    users.add_user(engine, "Bob@example.test")
    file = tmp_path / "users.toml"
    file.write_text(declared.export(engine))
    assert declared.plan(engine, declared.read(file.read_text(), str(file), ok, str.strip), prune=True) == []
    file.write_text(
        '[[user]]\naddress = "ANN@example.test"\npipeline = "two = 2"\n'
        '[[user]]\naddress = "@all.example"\npipeline = "three = 3"\n[[user]]\naddress = "dave@example.test"\n'
    )
    steps = declared.plan(engine, declared.read(file.read_text(), str(file), ok, str.strip), prune=True)
    assert [(step.what, step.of) for step in steps] == [
        ("change", "ann@example.test"),
        ("add", "@all.example"),
        ("add", "dave@example.test"),
        ("remove", "Bob@example.test"),
    ]
    assert len(declared.plan(engine, declared.read(file.read_text(), str(file), ok, str.strip), prune=False)) == 3
    # All or nothing: somebody was quicker with one of them.
    with pytest.raises(NotFound):
        declared.apply(engine, [*steps, declared.UserChange("gone@example.test", "remove")], author="me")
    assert users.get_pipeline(engine, "ann@example.test").version == 1
    declared.apply(engine, steps, author="me")
    assert declared.plan(engine, declared.read(file.read_text(), str(file), ok, str.strip), prune=True) == []
    addresses = {user.address for user in users.list_users(engine)}
    assert addresses == {"@all.example", "ann@example.test", "dave@example.test"}
    assert users.get_pipeline(engine, "ann@example.test").author == "me"
    twice = '[[user]]\naddress = "a@b"\n[[user]]\naddress = "A@B"\n'
    file.write_text(f'[[user]]\naddress = "x"\npipeline = "wrong"\n{twice}')
    with pytest.raises(InvalidConfiguration) as caught:
        declared.read(file.read_text(), str(file), ok, str.strip)
    assert len(caught.value.problems) == 3
    file.write_text('[[user]]\nadress = "x"\n')
    with pytest.raises(InvalidConfiguration, match="did you mean 'address'"):
        declared.read(file.read_text(), str(file), ok, str.strip)


def test_lists_are_declared_too(engine: Engine, tmp_path: Path) -> None:
    def check(entry: str) -> str:
        if " " in entry:
            raise ValueError(f"{entry!r} is no entry")
        return entry

    def read() -> declared.Wanted:
        return declared.read(file.read_text(), str(file), lambda text, name: None, check)

    lists.add(engine, "", "deny", ["spam.example", '/^"x\\\\/'], reason='loud "and" long', author="root", expires=1.8e9)
    lists.add(engine, "ann@x.example", "allow", ["friend@x.example"], reason="", author="root")
    file = tmp_path / "all.toml"
    file.write_text(declared.export(engine))
    assert declared.plan(engine, read(), prune=True) == []
    file.write_text(
        '[[list]]\nlist = "deny"\nentries = ["new.example", { entry = "spam.example", until = 2030-01-01T00:00:00Z }]\n'
        '[[list]]\nfor = "@x.example"\nlist = "allow"\nentries = ["friends.example"]\n'
    )
    steps = declared.plan(engine, read(), prune=False)
    assert [(step.of, step.what, step.diff()) for step in steps] == [
        (
            "deny list of the site",
            "change",
            ['+"new.example"', '+{ entry = "spam.example", until = 2030-01-01T00:00:00Z }'],
        ),
        ("allow list of x.example", "change", ['+"friends.example"']),
    ]
    before = marks.numbers(engine)[marks.LISTS]
    declared.apply(engine, steps, author="me")
    assert marks.numbers(engine)[marks.LISTS] > before
    assert declared.plan(engine, read(), prune=False) == []
    (gone, *more) = declared.plan(engine, read(), prune=True)
    assert gone.diff() == ['-/^"x\\\\/']
    declared.apply(engine, [gone, *more], author="me")
    told = [(e.scope, e.list, e.entry, e.reason, e.author) for e in lists.entries(engine)]
    assert told == [
        ("", "deny", "spam.example", "", "me"),
        ("", "deny", "new.example", "", "me"),
        ("x.example", "allow", "friends.example", "", "me"),
    ]
    for text in ('for = "a b@"\nlist = "deny"', 'list = "deny"\nentries = ["a b"]', 'list = "grey"'):
        file.write_text(f"[[list]]\n{text}\n")
        with pytest.raises(InvalidConfiguration, match=r"all.toml:[12]: "):
            read()


def test_comparisons_are_counted_and_go_with_their_message(engine: Engine) -> None:
    def compared(seq: int, message: int, differing: list[str], version: int = 2) -> Event:
        data = {"pipeline": "Ann@example.test", "version": version, "was": "pass", "was_action": "pass"}
        now = "deny" if differing else "pass"
        return Event(seq, message, 0, NOW, "candidate", data | {"now": now, "now_action": now, "differing": differing})

    one, two, refused = id_at(NOW), id_at(NOW + 1), id_at(NOW + 2)
    batch = [accepted(one, "ann@example.test", subject="hi"), accepted(two, "ann@example.test", seq=2)]
    batch += [compared(3, one, ["action"]), compared(4, two, []), compared(5, refused, ["action"])]
    batch += [compared(6, one, [], version=3)]
    batch += [Event(7 + n, message, 0, NOW, "delivered", {"reply": "250 ok"}) for n, message in enumerate((one, two))]
    for _ in range(2):
        journal.write(engine, batch)
    owner = "ANN@example.test"
    assert journal.agreement(engine, owner, 2) == [("pass", "pass", False, 1), ("pass", "deny", True, 2)]
    found = journal.disagreements(engine, owner, 2, 10)
    assert [(row["message"], row["subject"], row["recipient"]) for row in found] == [
        (refused, None, None),
        (one, "hi", "ann@example.test"),
    ]
    assert journal.agreement(engine, "bob@example.test", 2) == []
    while journal.prune(engine, before=NOW + DAY, most=1000):
        pass
    assert journal.agreement(engine, owner, 2) == []


def test_a_batch_that_comes_twice_changes_nothing(engine: Engine) -> None:
    one = id_at(NOW)
    first = [
        accepted(
            one, "ann@example.test", "bob@example.test", subject="Grüße \N{PARTY POPPER}\0", client={"ident": "4XYZ"}
        ),
        Event(2, one, 0, NOW + 1, "verdict", VERDICT),
    ]
    second = [
        Event(3, one, 0, NOW + 2, "bounced", {"reply": "550 5.7.1 no", "reason": "denied"}),
        Event(4, one, 1, NOW + 3, "deferred", {"why": "451 busy", "attempt": 2}),
    ]
    for batch in (first, first, second, second):
        journal.write(engine, batch)
    with engine.connect() as connection:
        (message,) = connection.execute(select(messages)).mappings()
        ann, bob = connection.execute(select(deliveries).order_by(deliveries.c.n)).mappings()
        assert len(connection.execute(select(events)).all()) == 4
    assert message["subject"] == "Grüße \N{PARTY POPPER}"
    assert message["queue_id"] == "4XYZ"
    assert (ann["state"], ann["action"], ann["tags"], ann["processor"]) == ("bounced", "deny", " SPAM NEWS ", "lists")
    assert (ann["reason"], ann["reply"], ann["since"]) == ("too loud", "550 5.7.1 no", NOW + 2)
    assert (bob["state"], bob["attempts"], bob["reply"]) == ("accepted", 2, "451 busy")
    kept = journal.story(engine, one)
    assert [event.event for event in kept.events] == ["accepted", "verdict", "bounced", "deferred"]
    assert kept.events[1].data == VERDICT
    assert len(kept.deliveries) == 2


def test_what_strangers_write_is_kept_in_any_length(engine: Engine) -> None:
    to = [f"r{n}@{'x' * 200}.example" for n in range(3000)]
    long = accepted(
        id_at(NOW), *to, subject="\N{PILE OF POO}" * 10_000, message_id="x" * 9999, client={"helo": "\0" * 999}
    )
    journal.write(engine, [long])
    assert len(journal.story(engine, id_at(NOW)).deliveries) == 3000
    assert len(journal.story(engine, id_at(NOW)).events[0].data["to"]) == 3000


def test_an_event_the_database_refuses_stops_no_other(engine: Engine) -> None:
    one, two = id_at(NOW), id_at(NOW, 1)
    bad = Event(2, one, 0, None, "x", {})  # type: ignore[arg-type] # no time: refused everywhere
    journal.write(engine, [accepted(one, "a@b.example"), bad, accepted(two, "a@b.example", seq=3)])
    assert [row.message["id"] for row in journal.find(engine, [], limit=9)] == [two, one]
    with engine.connect() as connection:
        assert len(connection.execute(select(events)).all()) == 2


def test_children_of_a_forward_and_mail_refused_before_the_queue(engine: Engine) -> None:
    one, two = id_at(NOW), id_at(NOW, 5)
    data = {"to": ["dave@example.test"], "copy": False, "children": [[1, "dave@example.test", "accepted"]]}
    journal.write(
        engine,
        [
            accepted(one, "carol@example.test"),
            Event(2, one, 0, NOW, "forwarded", data),
            Event(3, one, 1, NOW, "delivered", {"reply": "250 2.0.0 Ok", "seconds": 0.1}),
            accepted(two, "ann@example.test", rejected="550 no", verdicts={"0": VERDICT}),
        ],
    )
    found = {(row.delivery["recipient"], row.delivery["state"]) for row in journal.find(engine, [], limit=10)}
    assert found == {
        ("carol@example.test", "forwarded"),
        ("dave@example.test", "delivered"),
        ("ann@example.test", "rejected"),
    }


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("", ["a", "b", "c"]),
        ("from:ALICE", ["a"]),
        ("-from:alice", ["b", "c"]),
        ("invoice", ["a", "b"]),
        ("subject:invoice !from:alice", ["b"]),
        ('"the invoice"', ["a"]),
        ("to:ann", ["a", "b", "c"]),
        ("user:ANN@example.test", ["a", "b"]),
        ("tag:spam", ["b"]),
        ("tag:spa", []),
        ("state:bounced", ["b"]),
        ("verdict:deny", ["b"]),
        ("processor:lists", ["b"]),
        ("larger:1MB", ["c"]),
        ("smaller:1MB", ["a", "b"]),
        ("after:2d", ["b", "c"]),
        ("before:2d", ["a"]),
        ("ip:192.0.2.7", ["c"]),
        ("queue-id:4ABC", ["c"]),
        ("helo:laptop", ["c"]),
        ("helo:mail.example", ["c"]),
        ("addressed:bob@", ["b"]),
        ("message-id:x@y", ["c"]),
        ("100%", ["c"]),
        ("subject:_", []),
        ("cc:carol", ["c"]),
        ("reply-to:desk", ["c"]),
        ("bcc:ann", ["a", "b"]),
        ("bcc:bob", []),
        ("has:attachment", ["c"]),
        ("has:inline", []),
        ("-has:attachment", ["a", "b"]),
        ("is:tagged", ["b"]),
        ("-is:tagged", ["a", "c"]),
        ("rule:loud", ["b"]),
        ("score:>7 score:<=7.5", ["b"]),
        ("score:<7.5", []),
        ("-score:<7", ["a", "b", "c"]),
    ],
)
def test_searching(engine: Engine, search: str, expected: list[str]) -> None:
    a, b, c = id_at(NOW - 3 * DAY), id_at(NOW - DAY), id_at(NOW)
    batch = [
        accepted(a, "ann@example.test", seq=1, subject="the Invoice"),
        accepted(b, "Ann@example.test", seq=2, subject="invoice the", **{"from": "bob@example.org"}),
        Event(3, b, 0, NOW, "verdict", VERDICT),
        Event(4, b, 0, NOW, "bounced", {"reply": "550 no"}),
        accepted(
            c,
            "ann+x@example.test",
            seq=5,
            size=2_000_000,
            subject="100% off",
            message_id="<x@y>",
            client={"address": "192.0.2.7", "ident": "4ABC", "helo": "laptop", "name": "mail.example.org"},
            header_to="Ann <ANN+x@example.test>",
            header_cc="Carol <carol@example.org>",
            reply_to="desk@example.org",
            parts=["attachment"],
            **{"from": ""},
        ),
    ]
    journal.write(engine, batch)
    names = {a: "a", b: "b", c: "c"}
    terms = parse(search, NOW)
    found = [names[row.message["id"]] for row in journal.find(engine, terms, limit=10)]
    assert sorted(found) == expected
    if "processor" not in search:  # the spool does not know it
        rows = journal.find(engine, [], limit=10)
        assert sorted(names[row.message["id"]] for row in rows if matches(terms, _facts(row))) == expected


def _facts(row: journal.Found) -> SearchFacts:
    """Return the facts of a row as the spool would have them."""
    message, delivery = row.message, row.delivery
    names = ("sender", "size", "subject", "message_id", "helo", "client_name", "queue_id")
    return SearchFacts(
        message=message["id"],
        **{name: message[name] for name in (*names, "header_to", "header_cc", "reply_to")},
        **{name: delivery[name] for name in ("recipient", "state", "action", "reason", "score")},
        address=message["client_address"],
        tags=tuple(delivery["tags"].split()),
        parts=tuple(message["parts"].split()),
    )


def test_pages(engine: Engine) -> None:
    journal.write(engine, [accepted(id_at(NOW, n), "a@b.example", "c@d.example", seq=n) for n in range(5)])
    seen: list[tuple[int, int]] = []
    while True:
        page = journal.find(engine, [], limit=3, before=seen[-1] if seen else None)
        if not page:
            break
        seen += [(row.delivery["message"], row.delivery["n"]) for row in page]
    assert len(seen) == len(set(seen)) == 10
    assert seen == sorted(seen, key=lambda key: (-key[0], key[1]))


def test_pruning_by_age_and_by_number_leaves_what_is_not_final(engine: Engine) -> None:
    old, held, new = id_at(NOW - 9 * DAY), id_at(NOW - 9 * DAY, 1), id_at(NOW)
    done = {"reply": "250 ok"}
    journal.write(
        engine,
        [
            accepted(old, "a@b.example", seq=1),
            Event(2, old, 0, NOW, "delivered", done),
            accepted(held, "a@b.example", seq=3),
            accepted(new, "a@b.example", seq=4),
            Event(5, new, 0, NOW, "delivered", done),
        ],
    )
    assert journal.prune(engine, before=NOW - 7 * DAY, most=100) == 1
    assert journal.prune(engine, before=NOW - 7 * DAY, most=100) == 0
    assert [row.message["id"] for row in journal.find(engine, [], limit=9)] == [new, held]
    assert journal.story(engine, old).events == []
    more = [accepted(id_at(NOW, n), "a@b.example", seq=n) for n in range(10, 15)]
    journal.write(engine, more + [Event(n + 90, id_at(NOW, n), 0, NOW, "delivered", done) for n in range(10, 15)])
    assert journal.prune(engine, before=0, most=3) == 3
    assert len(journal.find(engine, [], limit=99)) == 4


async def test_events_go_over_once_and_an_outage_costs_only_time(
    engine: Engine, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaling, "GATHER", 0.01)
    monkeypatch.setattr(journaling, "FIRST_RETRY", 0.01)
    away = True
    tried = 0

    def write(batch: Sequence[Event]) -> None:
        nonlocal tried
        tried += 1
        if away:
            raise OperationalError("insert", {}, Exception("server has gone away"))
        journal.write(engine, batch)
        if tried % 2:
            raise OperationalError("commit", {}, Exception("the answer was lost"))

    async def inside() -> None:
        nonlocal away
        spool = open_spool(tmp_path, clock)
        keeper = asyncio.create_task(keep_journal(spool, write))
        for n in range(20):
            message = new_message(spool, envelope(), InMemory(b"x"), now=clock(), lifetime=9, via="filter", id_=None)
            delivery = Delivery(message, 0, message.envelope.recipients[0], due=clock())
            await spool.accept(message, [delivery])
            if n == 10:
                async with asyncio.timeout(10):
                    while tried < 3:
                        await asyncio.sleep(0.01)
                # Nothing is purged that the journal does not have.
                await spool.change([Change(delivery, State.DELIVERED, EventKind.DELIVERED, {"reply": "250 ok"})])
                clock.advance(30 * DAY)
                assert await spool.purge(clock()) == 0
                away = False
        async with asyncio.timeout(10):
            while (await spool.figures())[2]:
                await asyncio.sleep(0.01)
        assert len(journal.find(engine, [], limit=99)) == 20
        assert await spool.purge(clock()) == 1
        # The newest event's number is never given again, whatever was purged.
        last = await spool.journaled()
        keeper.cancel()
        await spool.close()
        again = open_spool(tmp_path, clock)
        assert await again.journaled() == last
        await again.close()

    await inside()


def test_a_database_that_cannot_be_opened_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(Temporary) as failed:
        open_database("postgresql+psycopg://me:s3cret@127.0.0.1:1/x")
    assert "s3cret" not in str(failed.value)
    assert "127.0.0.1:1" in str(failed.value)
    for url in ("nonsense", "oracle+nothing://x"):
        with pytest.raises(InvalidConfiguration):
            open_database(url)


BROKEN = {
    ledger.HAS_MESSAGE: delete(messages),
    ledger.HAS_DELIVERY: delete(deliveries).where(deliveries.c.n == 1),
    ledger.SAME_STATE: update(deliveries).where(deliveries.c.n == 0).values(state="discarded"),
    ledger.HAS_EVENTS: delete(events).where(events.c.event == "delivered"),
}


@pytest.mark.parametrize("rule", BROKEN)
async def test_the_ledger_notices_what_the_journal_has_lost(
    rule: str, engine: Engine, tmp_path: Path, clock: FakeClock
) -> None:
    spool = open_spool(tmp_path / "spool", clock)
    for _ in range(3):
        message = new_message(
            spool, envelope("s@x", "a@x", "b@x"), InMemory(b"x"), now=clock(), lifetime=100, via="filter"
        )
        both = [Delivery(message, n, r, due=clock()) for n, r in enumerate(message.envelope.recipients)]
        await spool.accept(message, both)
        await spool.change([Change(both[0], State.DELIVERED, EventKind.DELIVERED, {"reply": "250 ok"})])
    assert ledger.full_audit(tmp_path, engine).findings == ()  # the journal was told nothing yet
    await journaling.finish_journal(spool, lambda batch: journal.write(engine, batch))
    # Something happens that the journal is not told of yet: no finding.
    await spool.change([Change(both[1], State.DELIVERED, EventKind.DELIVERED, {"reply": "250 ok"})])
    await spool.close()

    assert ledger.full_audit(tmp_path, engine).findings == ()
    with engine.begin() as connection:
        if rule == ledger.HAS_MESSAGE:  # the oldest stays, or all would count as pruned
            newest = connection.execute(select(func.max(messages.c.id))).scalar()
            connection.execute(delete(messages).where(messages.c.id == newest))
        else:
            connection.execute(BROKEN[rule])
    assert {finding.rule for finding in ledger.full_audit(tmp_path, engine).findings} == {rule}


async def test_the_ledger_knows_what_was_pruned(engine: Engine, tmp_path: Path, clock: FakeClock) -> None:
    """An old message that is held must not make those look lost that came after it and were forgotten."""

    spool = open_spool(tmp_path / "spool", clock)
    for number in range(20):
        message = new_message(spool, envelope("s@x", "a@x"), InMemory(b"x"), now=clock(), lifetime=100, via="filter")
        (one,) = [Delivery(message, n, r, due=clock()) for n, r in enumerate(message.envelope.recipients)]
        await spool.accept(message, [one])
        if number:
            await spool.change([Change(one, State.DELIVERED, EventKind.DELIVERED, {"reply": "250 ok"})])
        clock.advance(1)
    await journaling.finish_journal(spool, lambda batch: journal.write(engine, batch))
    await spool.close()

    while journal.prune(engine, before=0, most=5):
        pass
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(messages)).scalar() == 6
    assert ledger.full_audit(tmp_path, engine).findings == ()
    with engine.begin() as connection:
        newest = connection.execute(select(func.max(messages.c.id))).scalar()
        connection.execute(delete(messages).where(messages.c.id == newest))
    assert {finding.rule for finding in ledger.full_audit(tmp_path, engine).findings} == {ledger.HAS_MESSAGE}


def test_a_file_says_whose_workers_run_a_pipeline(engine: Engine, tmp_path: Path) -> None:
    for name in ("ann", "bob", "carol"):
        users.add_user(engine, f"{name}@example.test")
    workers.set_workers(engine, "ANN@example.test", run_by="own", when_offline="quarantine")
    workers.set_workers(engine, "bob@example.test", run_by="own")
    users.set_pipeline(engine, "bob@example.test", "one = 1\n")
    text = declared.export(engine)
    assert 'run_by = "own"\nwhen_offline = "quarantine"' in text
    workers.set_workers(engine, "carol@example.test", run_by="own-rabbitmq")
    text = declared.export(engine)
    assert 'address = "carol@example.test"\nrun_by = "own-rabbitmq"' in text

    def steps(text: str) -> list[declared.Change]:
        return declared.plan(engine, declared.read(text, "file", lambda *_: None, str.strip), prune=True)

    assert steps(text) == []
    other = text.replace('run_by = "own"\nwhen_offline = "quarantine"', 'when_offline = "hold"').replace("one", "two")
    assert [(step.of, step.what) for step in steps(other)] == [
        ("ann@example.test", "change"),
        ("bob@example.test", "change"),
    ]
    assert '-run_by = "own"' in steps(other)[0].diff()
    declared.apply(engine, steps(other), author="me")
    assert steps(other) == []
    found = {one.address: (one.run_by, one.when_offline) for one in workers.all_workers(engine)}
    assert found == {
        "ann@example.test": ("site", "hold"),
        "bob@example.test": ("own", "pass"),
        "carol@example.test": ("own-rabbitmq", "pass"),
    }
    assert [stored.owner for stored in users.history(engine, "ann@example.test")] == []
    for wrong, why in (
        ('run_by = "own"\nwhen_offline = "pool"', "no pipeline to run"),
        ('when_offline = "pool"\npipeline = "x = 1"', "theirs already"),
        ('when_offline = "never"', "when_offline"),
    ):
        with pytest.raises(InvalidConfiguration, match=why):
            declared.read(f'[[user]]\naddress = "a@b.test"\n{wrong}\n', "file", lambda *_: None, str.strip)
