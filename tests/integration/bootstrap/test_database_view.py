"""A node follows the users, lists and keys of a database that others change, on every kind of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError

from sendswitch.accounts import access_keys, users, workers
from sendswitch.accounts.routes import read_users
from sendswitch.bootstrap import database_view
from sendswitch.bootstrap.database_view import LOOK, DatabaseView, Keys
from sendswitch.config.model import Config
from sendswitch.db import lists, marks
from sendswitch.db.tables import marks as marks_table
from sendswitch.db.tables import pipelines
from sendswitch.queue.settings import Current
from sendswitch.routing import Route, Routes

ANN, BOB = "ann@example.test", "bob@example.test"
LIGHT, HEAVY = "[[step]]\nuse = 'pass'\n", "[[step]]\nuse = 'sieve'\nscript = 'keep;'\n"


@dataclass
class NodeParts:
    """The parts of a node that are told."""

    engine: Engine
    config: Config = field(default_factory=Config)
    routes: list[Route] = field(default_factory=list)
    told: int = 0
    keys: list[Keys] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = SimpleNamespace(routes=Routes())
        self.view = DatabaseView(self.engine, lambda: self.config, cast(Current, self), self.routes.extend)

    def use_routes(self, routes: Routes) -> None:
        self.settings.routes = routes

    async def tell(self) -> None:
        self.told += 1

    def version(self, address: str) -> int:
        route = self.settings.routes.find(address)
        return route.version if route is not None else 0


@asynccontextmanager
async def node(engine: Engine) -> AsyncIterator[NodeParts]:
    parts = NodeParts(engine)
    await parts.view.open()
    following = asyncio.create_task(parts.view.follow(parts.tell, parts.keys.append))
    try:
        yield parts
    finally:
        following.cancel()
        await asyncio.wait([following])


async def until(holds: Callable[[], bool], limit: float = 10.0) -> float:
    """Wait until something holds; return the seconds it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < limit
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_what_is_changed_elsewhere_holds_on_every_node_within_a_second(engine: Engine) -> None:
    users.add_user(engine, ANN)
    users.set_pipeline(engine, ANN, LIGHT)
    async with node(engine) as one, node(engine) as two:
        assert (one.version(ANN), two.version(ANN)) == (1, 1)
        assert [route.owner for route in one.routes] == [ANN]
        users.set_pipeline(engine, ANN, HEAVY)
        assert await until(lambda: one.version(ANN) == two.version(ANN) == 2) < 5  # `bench` measures it
        assert [route.needs_pool for route in two.routes] == [False, True]
        await until(lambda: (one.told, two.told) == (1, 1))
        users.add_user(engine, BOB)
        await until(lambda: one.view.directory.lookup(BOB) == BOB)
        workers.set_workers(engine, BOB, run_by="own")
        await until(lambda: two.settings.routes.find(BOB) is not None)
        users.remove_user(engine, BOB)
        await until(lambda: two.settings.routes.find(BOB) is None and two.view.directory.lookup(BOB) == "")
        assert two.version(ANN) == 2


async def test_lists_and_keys_are_followed(engine: Engine) -> None:
    users.add_user(engine, ANN)
    (first, _), (second, _) = (access_keys.add_key(engine, ANN, "work", "") for _ in range(2))
    async with node(engine) as one:
        read = one.view.lists_read
        lists.add(engine, "", "deny", ["spam.example"], reason="loud", author="me")
        await until(lambda: one.view.lists_read != read)
        assert one.keys == []
        access_keys.remove_key(engine, first)
        # Twice: a worker may have been logging in with the key that was removed.
        await until(lambda: one.keys == [{(second, ANN)}, {(second, ANN)}])
        users.remove_user(engine, ANN)
        await until(lambda: one.keys[-1] == frozenset())


async def test_without_changes_nobody_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    numbers = marks.numbers

    def counted(engine: Engine) -> object:
        nonlocal looks
        looks += 1
        return numbers(engine)

    monkeypatch.setattr(marks, "numbers", counted)
    async with node(engine) as one:
        await until(lambda: looks > 3)
        assert one.told == 0
        one.view.look()
        await until(lambda: one.told == 1)


def add_both(engine: Engine) -> None:
    for name in (ANN, BOB):
        users.add_user(engine, name)
        users.set_pipeline(engine, name, LIGHT)


async def test_a_changed_configuration_holds_for_every_user_and_for_lists(engine: Engine) -> None:
    add_both(engine)
    async with node(engine) as one:
        read = one.view.lists_read
        one.config = Config.model_validate({"pipelines": {"on_timeout": "hold"}})
        one.view.look(whole=True)
        await until(lambda: {route.on_timeout for route in one.settings.routes} == {"hold"})
        await until(lambda: one.told == 1)
        assert one.view.lists_read != read  # their addresses have extensions by the configuration


async def test_a_configuration_that_is_changed_while_users_are_read_holds_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_both(engine)
    async with node(engine) as one:

        def meanwhile(*given: Any, **named: Any) -> Any:
            monkeypatch.setattr(database_view, "read_users", read_users)
            found = read_users(*given, **named)
            one.config = Config.model_validate({"pipelines": {"on_timeout": "hold"}})
            one.view.look(whole=True)
            return found

        monkeypatch.setattr(database_view, "read_users", meanwhile)
        one.view.look(whole=True)
        await until(lambda: {route.on_timeout for route in one.settings.routes} == {"hold"})


async def test_summaries_that_cannot_be_written_keep_no_node_from_starting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_both(engine)

    def locked(engine: Engine) -> int:
        raise OperationalError("update", {}, Exception("deadlock"))

    monkeypatch.setattr(database_view, "renew_summaries", locked)
    async with node(engine) as one:
        assert (one.version(ANN), one.version(BOB)) == (1, 1)


async def test_after_a_backup_was_restored_all_is_read(engine: Engine) -> None:
    add_both(engine)
    async with node(engine) as one:
        users.set_pipeline(engine, BOB, HEAVY)
        await until(lambda: one.version(BOB) == 2)
        with engine.begin() as connection:  # a change of another life
            connection.execute(update(pipelines).values(version=pipelines.c.version + 10))
            connection.execute(update(marks_table).where(marks_table.c.name == marks.USERS).values(value=1))
        await until(lambda: (one.version(ANN), one.version(BOB)) == (11, 12))


async def test_a_database_that_is_away_changes_nothing_and_is_told_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    users.add_user(engine, ANN)
    users.set_pipeline(engine, ANN, LIGHT)
    away, numbers, asked = True, marks.numbers, 0

    def sometimes(engine: Engine) -> object:
        nonlocal asked
        asked += 1
        if away:
            raise OSError("the database is away")
        return numbers(engine)

    async with node(engine) as one:
        monkeypatch.setattr(marks, "numbers", sometimes)
        users.set_pipeline(engine, ANN, HEAVY)
        await until(lambda: asked > 2)
        assert one.version(ANN) == 1
        away = False
        await until(lambda: one.version(ANN) == 2)
        away = True
        before = asked
        await until(lambda: asked > before + 1)
    assert capsys.readouterr().err.count("the database is away") == 2


async def test_after_a_failure_everything_is_read_whatever_the_numbers_say(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may have taken its place, where the same number means another change."""
    users.add_user(engine, ANN)
    users.set_pipeline(engine, ANN, LIGHT)
    numbers = marks.numbers

    def away(engine: Engine) -> object:
        raise OSError("it is away")

    async with node(engine) as one:
        lists_read = one.view.lists_read
        monkeypatch.setattr(marks, "numbers", away)
        with engine.begin() as connection:
            connection.execute(update(pipelines).values(version=7))
        await asyncio.sleep(2 * LOOK)
        assert one.version(ANN) == 1
        monkeypatch.setattr(marks, "numbers", numbers)
        await until(lambda: one.version(ANN) == 7 and one.view.lists_read != lists_read and one.keys != [])


async def test_what_an_older_node_changed_is_seen_in_the_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_view, "WHOLE", 1.0)
    users.add_user(engine, ANN)
    users.set_pipeline(engine, ANN, LIGHT)
    async with node(engine) as one:
        with engine.begin() as connection:  # it counts nothing
            connection.execute(update(pipelines).values(version=7))
        await until(lambda: one.version(ANN) == 7)


async def test_a_list_that_cannot_be_read_is_not_asked_for_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers keep the old lists too: they ask when `lists_read` is another."""
    async with node(engine) as one:
        read, told = one.view.lists_read, one.told

        def broken() -> None:
            raise ValueError("no entry")

        monkeypatch.setattr(one.view.lists, "refresh", broken)
        lists.add(engine, "", "deny", ["spam.example"], reason="loud", author="me")
        await until(lambda: one.told == told + 1)
        await asyncio.sleep(2 * LOOK)
        assert (one.view.lists_read, one.told) == (read, told + 1)
    assert capsys.readouterr().err.count("no entry") == 1


async def test_who_waits_for_a_change_has_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_view, "LOOK", 60.0)
    for name in (ANN, BOB):
        users.add_user(engine, name)
    async with node(engine) as one:
        users.set_pipeline(engine, ANN, LIGHT)
        await one.view.catch_up()
        assert one.version(ANN) == 1
        users.set_pipeline(engine, BOB, LIGHT)
        await asyncio.gather(one.view.catch_up(), one.view.catch_up())
        assert one.version(BOB) == 1


async def test_who_waits_does_not_wait_for_a_database_that_is_away(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_view, "PATIENCE", 0.2)
    async with node(engine) as one:

        def hang(engine: Engine) -> object:
            time.sleep(1)
            raise OperationalError("", {}, Exception())

        monkeypatch.setattr(marks, "numbers", hang)
        one.view.look()
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await one.view.catch_up()
        assert time.monotonic() - began < 0.9
