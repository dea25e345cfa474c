"""Nodes read the users that were changed and no others, on every database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, select, update

from sendswitch.accounts import access_keys, users, workers
from sendswitch.accounts.routes import load_routes, read_users, renew_summaries
from sendswitch.conditions.pipeline import RULES, Summary, summary_from
from sendswitch.config.model import Config
from sendswitch.db import lists, marks
from sendswitch.db.tables import pipelines
from sendswitch.routing import HERE, POOL, Route

LIGHT, HEAVY = "[[step]]\nuse = 'pass'\n", "[[step]]\nuse = 'sieve'\nscript = 'keep;'\n"


def address(name: str) -> str:
    return f"{name}@example.test"


@contextmanager
def queries() -> Iterator[list[str]]:
    """What is asked of databases inside."""
    asked: list[str] = []

    def before(connection: Any, cursor: Any, sql: str, *_: Any) -> None:
        asked.append(sql)

    event.listen(Engine, "before_cursor_execute", before)
    try:
        yield asked
    finally:
        event.remove(Engine, "before_cursor_execute", before)


def by_owner(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: route.owner)


def of(routes: dict[str, Route]) -> dict[str, tuple[int, str, int]]:
    return {name.partition("@")[0]: (r.version, r.queue, r.candidate) for name, r in routes.items()}


def test_each_change_of_a_user_is_read_and_nothing_else(engine: Engine) -> None:
    for name in ("ann", "Bob", "carol"):
        users.add_user(engine, address(name))
        users.set_pipeline(engine, address(name), LIGHT)
    users.add_user(engine, address("dave"))
    first = read_users(engine, Config())
    assert set(first.there) == {address(name) for name in ("ann", "bob", "carol", "dave")}
    assert set(of(dict(first.routes))) == {"ann", "bob", "carol"}
    assert not first.gone

    def seen(change: Callable[[], object]) -> tuple[set[str], set[str], dict[str, tuple[int, str, int]]]:
        nonlocal first
        change()
        first = read_users(engine, Config(), since=first.number)
        short = ({name.partition("@")[0] for name in names} for names in (first.there, first.gone))
        return *short, of(dict(first.routes))  # type: ignore[return-value]

    assert seen(lambda: None) == (set(), set(), {})
    assert seen(lambda: users.set_pipeline(engine, address("BOB"), HEAVY)) == ({"bob"}, set(), {"bob": (2, POOL, 0)})
    for change, told in (
        (lambda: users.set_pipeline(engine, address("ann"), HEAVY, role="candidate"), {"ann": (1, HERE, 2)}),
        (lambda: users.withdraw(engine, address("ann")), {"ann": (1, HERE, 0)}),
        (lambda: users.set_pipeline(engine, address("ann"), HEAVY, role="candidate"), {"ann": (1, HERE, 3)}),
        (lambda: users.promote(engine, address("ann")), {"ann": (4, POOL, 0)}),
        (lambda: users.roll_back(engine, address("ann"), 1), {"ann": (5, HERE, 0)}),
        (lambda: workers.set_workers(engine, address("ann"), run_by="own"), {"ann": (5, "web.ann@example.test", 0)}),
        (lambda: users.set_pipeline(engine, address("dave"), "x = 2"), {"dave": (1, HERE, 0)}),
    ):
        assert seen(change) == (set(told), set(), told)
    assert seen(lambda: users.set_password(engine, address("ann"), "x")) == (set(), set(), {})
    assert seen(lambda: users.remove_user(engine, address("carol"))) == (set(), {"carol"}, {})
    assert seen(lambda: users.restore_user(engine, address("carol"))) == ({"carol"}, set(), {"carol": (1, HERE, 0)})
    users.remove_user(engine, address("carol"))
    assert seen(lambda: users.add_user(engine, address("carol"))) == ({"carol"}, set(), {})


def test_the_routes_after_changes_are_those_that_are_read_anew(engine: Engine) -> None:
    config = Config()
    for name in "abcdef":
        users.add_user(engine, address(name))
        users.set_pipeline(engine, address(name), LIGHT)
    routes, seen = load_routes(engine, config), read_users(engine, config).number
    users.remove_user(engine, address("a"))
    users.set_pipeline(engine, address("b"), HEAVY)
    users.add_user(engine, address("g"))
    workers.set_workers(engine, address("g"), run_by="own", when_offline="hold")
    users.remove_user(engine, address("c"))
    users.add_user(engine, address("c"))
    changes = read_users(engine, config, since=seen)
    now = routes.changed(changes.routes, {*changes.gone, *changes.there}.difference(changes.routes))
    assert by_owner(now) == by_owner(load_routes(engine, config))
    assert now.of(address("a")) is None
    assert now.find(address("C")) is None
    assert routes.find(address("a")) is not None  # the old ones stay as they were


def test_a_change_costs_what_was_changed(engine: Engine) -> None:
    for n in range(20):
        users.add_user(engine, address(f"user{n}"))
        users.set_pipeline(engine, address(f"user{n}"), HEAVY)
    seen = read_users(engine, Config()).number
    users.set_pipeline(engine, address("user7"), LIGHT)
    with queries() as asked:
        assert list(read_users(engine, Config(), since=seen).routes) == [address("user7")]
    assert len(asked) == 4, asked
    assert not any("pipelines.text" in one for one in asked)  # the summary is enough


def test_summaries_that_are_missing_or_of_other_rules_are_made_again(engine: Engine) -> None:
    users.add_user(engine, address("ann"))
    users.set_pipeline(engine, address("ann"), HEAVY)
    users.add_user(engine, address("bob"))
    users.set_pipeline(engine, address("bob"), "deadline = '7s'\non_timeout = 'hold'\ndeny = 'discard'\n")
    users.add_user(engine, address("broken"))
    users.set_pipeline(engine, address("broken"), "x = 2")
    told = load_routes(engine, Config())
    other = '["' + "9" * len(RULES) + '",true,null,null,null]'
    for stale in ("", other):
        with engine.begin() as connection:
            connection.execute(update(pipelines).values(summary=stale))
        # Whatever another version left, mail goes by the text.
        assert by_owner(load_routes(engine, Config())) == by_owner(told)
        assert renew_summaries(engine) == 2
        assert renew_summaries(engine) == 0
        with engine.connect() as connection:
            made = {v for (v,) in connection.execute(select(pipelines.c.summary))}
        assert {summary_from(text) for text in made} == {
            Summary(light=False),
            Summary(True, 7.0, "hold", "discard"),
            None,
        }
        assert by_owner(load_routes(engine, Config())) == by_owner(told)


def test_a_number_that_can_be_seen_means_that_all_before_can_be_seen(engine: Engine) -> None:
    """Two transactions at once: the second gets its number when the first has ended, whoever began first."""
    for name in ("ann", "bob"):
        users.add_user(engine, address(name))
    seen = read_users(engine, Config()).number
    done = threading.Event()

    def second() -> None:
        users.set_pipeline(engine, address("bob"), LIGHT)
        done.set()

    with engine.begin() as connection:
        users.store(connection, address("ann"), LIGHT)
        other = threading.Thread(target=second)
        other.start()
        assert not done.wait(0.5)
        assert read_users(engine, Config(), since=seen).number == seen
    other.join(10)
    assert done.is_set()
    assert set(read_users(engine, Config(), since=seen).there) == {address("ann"), address("bob")}


def test_what_is_removed_is_what_is_there_now_not_what_was_there_when_the_transaction_began(engine: Engine) -> None:
    """Or a version that another one stored meanwhile would be lost, and its number given again."""
    users.add_user(engine, address("ann"))
    users.set_pipeline(engine, address("ann"), LIGHT)
    with engine.begin() as connection:
        connection.execute(select(pipelines.c.version)).all()
        users.set_pipeline(engine, address("ann"), HEAVY)
        users.remove(connection, address("ann"))
    assert users.restore_user(engine, address("ann")) == 2
    assert users.get_pipeline(engine, address("ann")).text == HEAVY


def test_numbers_of_lists_and_keys(engine: Engine) -> None:
    assert marks.numbers(engine) == {marks.USERS: 0, marks.LISTS: 0, marks.KEYS: 0}
    users.add_user(engine, address("ann"))
    number, _ = access_keys.add_key(engine, address("ann"), "work", "")
    lists.add(engine, "", "deny", ["a.example"], reason="", author="")
    assert marks.numbers(engine) == {marks.USERS: 1, marks.LISTS: 1, marks.KEYS: 0}
    access_keys.remove_key(engine, number)
    assert marks.numbers(engine)[marks.KEYS] == 1
    users.remove_user(engine, address("ann"))
    assert marks.numbers(engine) == {marks.USERS: 2, marks.LISTS: 1, marks.KEYS: 2}


def test_first_changes_at_once(engine: Engine) -> None:
    """There is nothing yet to count on from, and both begin."""
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: users.add_user(engine, address(f"user{n}")), range(6)))
    assert marks.numbers(engine)[marks.USERS] == 6
    assert len(users.list_users(engine)) == 6


def test_one_transaction_has_one_number(engine: Engine) -> None:
    for name in ("ann", "bob"):
        users.add_user(engine, address(name))
    with engine.begin() as connection, queries() as asked:
        for name in ("ann", "bob"):
            users.store(connection, address(name), LIGHT)
            users.store(connection, address(name), HEAVY)
    assert marks.numbers(engine)[marks.USERS] == 3
    assert sum("UPDATE marks" in one for one in asked) == 1
    assert set(read_users(engine, Config(), since=2).there) == {address("ann"), address("bob")}
