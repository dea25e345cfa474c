"""Tables are brought up to date in every database: killed at any statement, by two nodes at once, and never back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, event, text

from sendswitch.accounts import users
from sendswitch.bench.peers import Node
from sendswitch.db import connect
from sendswitch.db.connect import open_database
from sendswitch.db.tables import metadata
from sendswitch.errors import NotFound, Refused


class Killed(Exception):
    """The node was killed here."""


@contextmanager
def killed_at(statement: int) -> Iterator[list[str]]:
    """Every connection ends before the statement of this number that changes tables; gives those before it."""
    done: list[str] = []

    def before(connection: Any, cursor: Any, sql: str, *_: Any) -> None:
        if sql.split()[0] in ("CREATE", "ALTER", "INSERT", "UPDATE"):
            if len(done) == statement:
                raise Killed
            done.append(sql)

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield done
    finally:
        event.remove(Engine, "before_cursor_execute", before)


def as_it_should_be(engine: Engine) -> bool:
    with engine.connect() as connection:
        differences: list[Any] = compare_metadata(MigrationContext.configure(connection), metadata)
    return not differences


def test_a_node_killed_at_any_statement_of_a_migration(database: str) -> None:
    at, whole = 0, False
    while not whole:
        with killed_at(at) as done:
            try:
                open_database(database).dispose()
                whole = True
            except Killed:
                at += 1
    # What was done half each time adds up to the whole, on MariaDB without doing anything twice.
    assert at >= len(done) > 0
    engine = open_database(database)
    assert as_it_should_be(engine)
    users.add_user(engine, "joe@example.test")
    engine.dispose()


def test_of_nodes_that_start_at_once_one_makes_the_tables(database: str) -> None:
    with ThreadPoolExecutor(6) as threads:
        engines = list(threads.map(open_database, [database] * 6))
    assert as_it_should_be(engines[0])
    for engine in engines:
        engine.dispose()


def test_who_waited_for_a_newer_node_leaves_its_tables_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'sendswitch.db'}"
    alone = connect.alone

    @contextmanager
    def after_a_newer_one(engine: Engine) -> Iterator[Connection]:
        with alone(engine) as connection:
            connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
            connection.execute(text("INSERT INTO alembic_version VALUES ('9999')"))
            yield connection

    monkeypatch.setattr(connect, "alone", after_a_newer_one)
    with pytest.raises(Refused, match="made by a newer SendSwitch"):
        open_database(url)


def test_a_newer_program_s_database_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'data' / 'sendswitch.db'}"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for migrate in (True, False):
        with pytest.raises(Refused, match="made by a newer SendSwitch"):
            open_database(url, migrate=migrate)
    node = Node(tmp_path, "127.0.0.1:9")
    done = node.run("run", check=False)
    assert (done.returncode, "newer SendSwitch" in done.stderr) == (4, True), done.stderr


def downgrade(engine: Engine, version: str) -> None:
    """Make a database what the program of that version left."""
    config = Config()
    config.set_main_option("script_location", str(Path(connect.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, version)


def test_an_sqlite_database_is_copied_before_it_is_upgraded(tmp_path: Path) -> None:
    """The copy in the database's place is what the program before can read; a second upgrade makes it anew."""
    file = tmp_path / "sendswitch.db"
    url = f"sqlite:///{file}"
    before = str(int(connect.HEAD) - 1).zfill(4)
    copy = tmp_path / f"sendswitch.db.{before}"
    for address in ("joe@example.test", "ann@example.test"):
        engine = open_database(url)
        assert not copy.exists() or address.startswith("ann")
        users.add_user(engine, address)
        downgrade(engine, before)
        engine.dispose()
        if os.geteuid() == 0:  # as when an administrator's command is the first of the new program
            os.chown(file, 65534, 65534)
        open_database(url).dispose()
        assert (copy.stat().st_uid, copy.stat().st_gid) == (file.stat().st_uid, file.stat().st_gid)
        assert copy.stat().st_mode & 0o777 == 0o600
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (before,)
            assert (address,) in connection.execute("SELECT address FROM users").fetchall()
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["sendswitch.db", copy.name]


def test_the_program_before_goes_on_with_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/roll-back.md says: it refuses the upgraded database and leaves it alone, and opens the copy."""
    file = tmp_path / "sendswitch.db"
    url, before = f"sqlite:///{file}", str(int(connect.HEAD) - 1).zfill(4)
    engine = open_database(url)
    users.add_user(engine, "joe@example.test")
    downgrade(engine, before)
    engine.dispose()
    engine = open_database(url)
    users.add_user(engine, "later@example.test")
    engine.dispose()
    monkeypatch.setattr(connect, "HEAD", before)
    with pytest.raises(Refused, match="newer"):
        open_database(url)
    file.rename(tmp_path / "sendswitch.db.newer")
    shutil.copy(tmp_path / f"sendswitch.db.{before}", file)
    engine = open_database(url)
    assert [user.address for user in users.list_users(engine)] == ["joe@example.test"]
    engine.dispose()


def test_a_removal_can_be_undone_for_its_time_and_then_is_forgotten(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each kind of database. Of two removals of one user the later is undone."""
    engine = open_database(database)
    for which in ("first", "second"):
        users.add_user(engine, "Joe@example.test")
        users.set_password(engine, "joe@example.test", f"hash of {which}")
        users.set_pipeline(engine, "joe@example.test", which)
        users.remove_user(engine, "joe@example.test", author="admin")
    assert [(one.address, one.author) for one in users.list_removed(engine)] == [("Joe@example.test", "admin")] * 2
    # A version never means two pipelines.
    assert users.restore_user(engine, "JOE@example.test") == 2
    assert users.password(engine, "joe@example.test") == ("Joe@example.test", "hash of second")
    assert users.get_pipeline(engine, "joe@example.test").text == "second"
    users.remove_user(engine, "joe@example.test")
    now = time.time()
    assert users.forget_removed(engine, now) == 0
    monkeypatch.setattr(time, "time", lambda: now + users.REMOVED_KEPT + 60)
    assert users.list_removed(engine) == []
    with pytest.raises(NotFound):
        users.restore_user(engine, "joe@example.test")
    assert users.forget_removed(engine, time.time()) == 2
    engine.dispose()
