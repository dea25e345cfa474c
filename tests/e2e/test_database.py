"""The journal's database in trouble: gone, slow, locked, full. Mail never notices, and the journal gets it all."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, time

import pytest
from sqlalchemy import create_engine, text

from sendswitch.bench.measure import figure, memory_of
from sendswitch.bench.peers import Node, public_folder
from sendswitch.bench.postgresql import POSTGRES, Postgres, postgres
from sendswitch.mail import ids
from tests.conftest import need
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, queue, said, send, until

# Seconds in which mail is through, whatever the database does.
SOON = 6
# Seconds that a slow database takes for one row.
SLOW = 0.1


@contextlib.contextmanager
def node_with(folder: Path, url: str, hop: NextHop) -> Iterator[Node]:
    settings = QUICK | {"database": {"url": url}}
    with Node(folder, f"127.0.0.1:{hop.port}", settings=settings) as node:
        send(node.port, subject="before")
        until(lambda: said(node, "message", "list", "subject:before", "state:delivered"), node=node)
        yield node


def mail_flows(node: Node, hop: NextHop, count: int = 20) -> None:
    """That many messages come through as if the database were not there."""
    before, begin = len(hop.parcels), monotonic()
    for n in range(count):
        send(node.port, subject=f"meanwhile {n}")
    until(lambda: len(hop.parcels) == before + count, node=node)
    assert monotonic() - begin < SOON


def all_there(node: Node, count: int = 20) -> None:
    """The journal has all of them, and the audit agrees."""
    until(
        lambda: len(said(node, "message", "list", "subject:meanwhile", "state:delivered", "--limit", "1000")) == count,
        60,
        node,
    )
    until(lambda: not queue(node), node=node)
    clean(node)


def test_a_database_that_goes_away_costs_only_time(tmp_path: Path, public: Path) -> None:
    if not POSTGRES.exists():
        need("postgres", "postgresql")
    database = Postgres(public / "postgres")
    database.start()
    settings = QUICK | {"database": {"url": database.url}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        send(node.port, subject="before")
        until(lambda: said(node, "message", "list", "subject:before", "state:delivered"), node=node)
        database.stop()
        for n in range(5):
            send(node.port, subject=f"meanwhile {n}")
        until(lambda: "journal_failed" in node.log.read_text(), node=node)
        until(lambda: len(hop.parcels) == 6 and not queue(node), node=node)
        with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/healthz?check=journal", timeout=10) as answer:
            assert json.loads(answer.read())["status"] == "healthy"  # nobody need be called for a minute or two
        database.start()
        until(lambda: "journal_recovered" in node.log.read_text(), 90, node)
        until(lambda: len(said(node, "message", "list", "subject:meanwhile", "state:delivered")) == 5, node=node)
    database.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not POSTGRES.exists():
        need("postgres", "postgresql")
    with public_folder("database") as folder, postgres(folder / "postgres") as url:
        yield url


def test_a_database_that_is_slow(tmp_path: Path, server: str) -> None:
    engine = create_engine(server)
    with NextHop() as hop, node_with(tmp_path, server, hop) as node:
        with engine.begin() as connection:
            connection.execute(
                text(
                    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                    f" $$BEGIN PERFORM pg_sleep({SLOW}); RETURN NULL; END$$"
                )
            )
            connection.execute(text("CREATE TRIGGER slow AFTER INSERT ON events EXECUTE FUNCTION slow()"))
        mail_flows(node, hop)
        mail_flows(node, hop)
        all_there(node, 40)
    engine.dispose()


def test_a_database_whose_tables_somebody_locks(tmp_path: Path, server: str) -> None:
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    with NextHop() as hop, node_with(tmp_path, server, hop) as node:
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE messages, deliveries, events IN ACCESS EXCLUSIVE MODE"))
            mail_flows(node, hop)
        all_there(node)
    engine.dispose()


def test_an_embedded_database_that_somebody_locks(tmp_path: Path) -> None:
    """As a backup program or a person with sqlite3 would; for longer than we wait for the lock."""
    database = tmp_path / "journal.db"
    engine = create_engine(f"sqlite:///{database}")
    with NextHop() as hop, node_with(tmp_path / "node", f"sqlite:///{database}", hop) as node:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("BEGIN EXCLUSIVE"))
            mail_flows(node, hop)
            until(lambda: "journal_failed" in node.log.read_text(), node=node)
            assert "database is locked" in node.log.read_text()
            connection.execute(text("COMMIT"))
        until(lambda: "journal_recovered" in node.log.read_text(), node=node)
        all_there(node)
    engine.dispose()


def test_a_database_that_is_full(tmp_path: Path, small_disk: Path) -> None:
    with NextHop() as hop, node_with(tmp_path, f"sqlite:///{small_disk}/journal.db", hop) as node:
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        mail_flows(node, hop)
        until(lambda: "journal_failed" in node.log.read_text(), node=node)
        assert "full" in node.log.read_text()
        filler.unlink()
        until(lambda: "journal_recovered" in node.log.read_text(), 60, node)
        all_there(node)


@pytest.mark.parametrize(
    "events", [50_000, pytest.param(1_000_000, marks=pytest.mark.soak)], ids=["many", "a million, in make soak"]
)
def test_a_database_that_was_away_for_long(tmp_path: Path, events: int) -> None:
    """What gathered in the outbox is taken over beside the mail, in pieces, whatever its size."""
    with NextHop() as hop, node_with(tmp_path, f"sqlite:///{tmp_path}/journal.db", hop) as node:
        node.stop()
        fill_outbox(next((node.data / "spool").glob("*.db")), events // 2)
        begin = monotonic()
        node.start()
        assert monotonic() - begin < 20
        mail_flows(node, hop)
        for page in ("metrics", "healthz", "readyz"):
            begin = monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/{page}", timeout=10) as answer:
                assert answer.status == 200
            assert monotonic() - begin < 8, page
        assert figure(node, "sendswitch_outbox_events") > events / 2
        until(lambda: figure(node, "sendswitch_outbox_events") == 0, events / 2000, node)
        assert node.process is not None
        assert memory_of(node.process.pid, "VmHWM") < 300
        engine = create_engine(f"sqlite:///{tmp_path}/journal.db")
        with engine.connect() as connection:
            told = connection.execute(text("SELECT count(*) FROM events")).scalar()
        engine.dispose()
        assert told == events + 2 * 21
        all_there(node)


def fill_outbox(spool: Path, messages: int) -> None:
    """So many delivered messages of an hour ago, about which the journal knows nothing."""
    first = ids.first_at(time() - 3600)
    with contextlib.closing(sqlite3.connect(spool)) as connection:
        connection.executescript(
            f"""
            CREATE TEMP TABLE made AS WITH RECURSIVE n(id) AS
              (SELECT {first} UNION ALL SELECT id + 2048 FROM n LIMIT {messages}) SELECT id FROM n;
            INSERT INTO message SELECT id, unixepoch() - 3600, unixepoch() + 1e6, 's@example.org', 9, 0, 1, 'filter',
              '{{}}', 432000, NULL FROM made;
            INSERT INTO delivery SELECT id, 0, 'joe@example.test', '', '', 'delivered', unixepoch() - 3600, NULL, 0,
              NULL, NULL, '250 ok' FROM made;
            INSERT INTO outbox (message, n, at, event, data) SELECT id, NULL, unixepoch() - 3600, 'accepted',
              '{{"from":"s@example.org","to":["joe@example.test"],"size":9,"via":"filter"}}' FROM made;
            INSERT INTO outbox (message, n, at, event, data) SELECT id, 0, unixepoch() - 3600, 'delivered',
              '{{"reply":"250 ok","seconds":0.01}}' FROM made;
            """
        )
