"""Passwords: who has which, in every database; who has none cannot be told apart; an outage is no refusal."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from argon2.exceptions import VerificationError, VerifyMismatchError
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from sendswitch.accounts import passwords, users
from sendswitch.accounts.passwords import MOST_WAITING, Passwords, generate, set_password
from sendswitch.admin.desired_state import export
from sendswitch.db.connect import open_database
from sendswitch.errors import NotFound, Temporary

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def engine(database: str) -> Any:
    engine = open_database(database)
    users.add_user(engine, "Joe@example.test")
    users.add_user(engine, "ann@example.test")
    yield engine
    engine.dispose()


async def test_a_password_is_its_user_s_and_goes_with_the_user(engine: Engine) -> None:
    checks = Passwords(engine)
    set_password(engine, "joe@example.test", "pässword")
    assert await checks.check("joe@EXAMPLE.test", "pässword") == "Joe@example.test"
    assert [(user.address, user.login) for user in users.list_users(engine)] == [
        ("Joe@example.test", True),
        ("ann@example.test", False),
    ]
    for user, password in (
        ("joe@example.test", "pässword "),
        ("ann@example.test", "pässword"),
        ("ann@example.test", ""),
        ("nobody@example.test", "x"),
    ):
        assert await checks.check(user, password) == ""
    with engine.connect() as connection:
        assert "pässword" not in str(connection.execute(text("SELECT * FROM users")).all())
    assert "password" not in export(engine)
    set_password(engine, "joe@example.test", "")
    assert await checks.check("joe@example.test", "pässword") == ""
    assert generate() != generate()


def test_who_can_have_none(engine: Engine) -> None:
    users.add_user(engine, "@example.org")
    for address, error in (("@example.org", ValueError), ("nobody@example.test", NotFound)):
        with pytest.raises(error):
            set_password(engine, address, "x")
    for password in ("x" * 1025, "a\0b"):
        with pytest.raises(ValueError, match="1024 bytes"):
            set_password(engine, "joe@example.test", password)


def test_nobody_can_tell_by_the_time_who_has_one(engine: Engine, run: Run) -> None:
    checks = Passwords(engine)
    set_password(engine, "joe@example.test", "right")
    run(checks.check("joe@example.test", "once, to be warm"))
    run(checks.check("nobody@example.test", "once, to be warm"))

    def took(user: str) -> float:
        begin = time.perf_counter()
        run(checks.check(user, "wrong"))
        return time.perf_counter() - begin

    times = {user: statistics.median(took(user) for _ in range(7)) for user in ("joe@example.test", "x@example.test")}
    # Without the hash nobody has, the second would take a hundredth.
    assert 0.2 < times["joe@example.test"] / times["x@example.test"] < 5, times


async def test_an_outage_or_a_crowd_is_no_refusal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Passwords(engine)

    async def crowd() -> list[object]:
        many = [checks.check("joe@example.test", "x") for _ in range(MOST_WAITING + 5)]
        return await asyncio.gather(*many, return_exceptions=True)

    monkeypatch.setattr(passwords, "hasher", Quick(VerifyMismatchError()))
    found = await crowd()
    assert sum(isinstance(answer, Temporary) for answer in found) == 5
    assert found.count("") == MOST_WAITING
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE users"))
    with pytest.raises(Temporary, match="cannot be read"):
        await checks.check("joe@example.test", "x")


def test_a_hash_is_in_no_error(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE users RENAME COLUMN password TO other"))
    with pytest.raises(SQLAlchemyError) as caught:
        users.set_password(engine, "joe@example.test", "a-hash-nobody-shall-see")
    assert "nobody-shall-see" not in str(caught.value)


async def test_what_cannot_be_checked_is_no_refusal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2 says the same of too little memory as of a wrong password, but for the class."""
    checks = Passwords(engine)
    set_password(engine, "joe@example.test", "right")
    monkeypatch.setattr(passwords, "hasher", Quick(VerificationError("Memory allocation error")))
    for user in ("joe@example.test", "nobody@example.test"):
        with pytest.raises(Temporary, match="Memory allocation"):
            await checks.check(user, "right")


async def test_a_database_that_hangs_is_no_refusal_and_holds_nobody_else_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many that they would have every thread of the loop's own, were they run there.
    many, go = [Passwords(engine) for _ in range(20)], threading.Event()

    def hang(engine: Engine, address: str) -> tuple[str, str]:
        go.wait(20)
        return "", ""

    monkeypatch.setattr(passwords, "LIMIT", 0.2)
    monkeypatch.setattr(users, "password", hang)

    crowd = [asyncio.create_task(checks.check("joe@example.test", "x")) for checks in many for _ in range(2)]
    while sum(checks.waiting for checks in many) < len(crowd):
        await asyncio.sleep(0)
    # The mail path reads in threads of its own, however many the database holds.
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 0.15) == "read"
    for answer in await asyncio.gather(*crowd, return_exceptions=True):
        assert isinstance(answer, Temporary)
        assert "within 0.2 s" in str(answer)
    go.set()


class Quick:
    """A hash that costs nothing: what is tested is the crowd, or the `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def hash(self, password: str) -> str:
        return password

    def verify(self, hashed: str, password: str) -> bool:
        raise self._error
