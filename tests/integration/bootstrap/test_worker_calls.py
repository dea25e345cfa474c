"""What workers ask of a node, on a real database."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine

from sendswitch.accounts import users
from sendswitch.bootstrap.worker_calls import WorkerCalls
from sendswitch.broker.calls import Call
from sendswitch.config.model import Config
from sendswitch.db import lists
from sendswitch.db.connect import open_database
from sendswitch.errors import NotFound
from sendswitch.processors.rate_counters import RateCounters

ANN = "ann@example.test"


def calls_on(engine: Engine) -> dict[str, Call]:
    nobody = cast(Any, None)
    return WorkerCalls(engine, Config, nobody, outbox=nobody, auto_replies=nobody, counters=RateCounters()).by_name()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(f"sqlite:///{tmp_path}/x.db")


async def test_a_user_who_was_removed_and_added_again_has_the_new_pipeline(engine: Engine) -> None:
    pipeline = calls_on(engine)["pipeline"]
    for text in ("[[step]]\nuse = 'pass'\n", "[[step]]\nuse = 'quarantine'\n"):
        users.add_user(engine, ANN)
        version = users.set_pipeline(engine, ANN, text)
        assert await pipeline({"owner": ANN, "version": version}) == text
        users.remove_user(engine, ANN)
    with pytest.raises(NotFound):
        await pipeline({"owner": ANN, "version": 1})


async def test_the_lists_are_as_they_were_read_last_while_the_database_is_away(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = calls_on(engine)["lists"]
    lists.add(engine, "", "deny", ["spam.example"], reason="loud", author="me")
    told = await called({})
    assert told["rows"] == [("", "deny", "spam.example", None, "loud")]

    def away(engine: Engine) -> None:
        raise OSError("the database is away")

    monkeypatch.setattr(lists, "entries", away)
    assert await called({}) == told
    with pytest.raises(OSError, match="away"):
        await calls_on(engine)["lists"]({})
