"""Passwords: who has which, in every database; who has none cannot be told apart; an outage is no refusal."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from argon2.exceptions import VerificationError
from sqlalchemy import Engine, text

from sendswitch.auth import passwords
from sendswitch.auth.passwords import MOST_WAITING, Passwords, generate, set_password
from sendswitch.db import users
from sendswitch.db.connect import open_database
from sendswitch.db.declared import export
from sendswitch.errors import NotFound, Temporary

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def engine(database: str) -> Any:
    engine = open_database(database)
    users.add_user(engine, "Joe@example.test")
    users.add_user(engine, "ann@example.test")
    yield engine
    engine.dispose()


def test_a_password_is_its_user_s_and_goes_with_the_user(engine: Engine, run: Run) -> None:
    checks = Passwords(engine)
    set_password(engine, "joe@example.test", "pässword")
    assert run(checks.check("joe@EXAMPLE.test", "pässword")) == "Joe@example.test"
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
        assert run(checks.check(user, password)) == ""
    with engine.connect() as connection:
        assert "pässword" not in str(connection.execute(text("SELECT * FROM users")).all())
    assert "password" not in export(engine)
    set_password(engine, "joe@example.test", "")
    assert run(checks.check("joe@example.test", "pässword")) == ""
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


def test_an_outage_or_a_crowd_is_no_refusal(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Passwords(engine)

    async def crowd() -> list[object]:
        many = [checks.check("joe@example.test", "x") for _ in range(MOST_WAITING + 5)]
        return await asyncio.gather(*many, return_exceptions=True)

    monkeypatch.setattr(passwords, "_hasher", Quick())
    found = run(crowd())
    assert sum(isinstance(answer, Temporary) for answer in found) == 5
    assert found.count("") == MOST_WAITING
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE users"))
    with pytest.raises(Temporary, match="cannot be read"):
        run(checks.check("joe@example.test", "x"))


class Quick:
    """A hash that costs nothing: what is tested is the crowd."""

    def hash(self, password: str) -> str:
        return password

    def verify(self, hashed: str, password: str) -> bool:
        raise VerificationError
