"""What workers ask of a node, on a real database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine

from sendswitch.accounts import users
from sendswitch.bootstrap.worker_calls import WorkerCalls, settings_for_workers
from sendswitch.broker.calls import Call
from sendswitch.config.model import Config
from sendswitch.db import lists
from sendswitch.db.connect import open_database
from sendswitch.errors import NotFound, Refused
from sendswitch.processors.rate_counters import RateCounters

ANN = "ann@example.test"


def calls_on(engine: Engine, owner: str = "") -> Mapping[str, Call]:
    nobody = cast(Any, None)
    made = WorkerCalls(engine, Config, nobody, outbox=nobody, auto_replies=nobody, counters=RateCounters())
    return made.of(owner)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(f"sqlite:///{tmp_path}/x.db")


@pytest.mark.parametrize(
    ("site", "own", "boxed"), [("bwrap", False, True), ("bwrap", True, False), ("none", False, False)]
)
def test_the_site_s_sandbox_is_for_the_site_s_workers(site: str, own: bool, boxed: bool) -> None:
    """Those of a user's own run on the user's machine."""
    config = Config.model_validate({"pipelines": {"sandbox": site}})
    assert settings_for_workers(config, config, "1", "info", own=own)["sandbox"] is boxed


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


async def test_workers_of_a_user_get_what_is_the_user_s(engine: Engine) -> None:
    for name in ("ann", "bob"):
        users.add_user(engine, f"{name}@example.test")
        users.set_pipeline(engine, f"{name}@example.test", f"# {name}")
    lists.add(engine, "", "deny", ["site.example"], reason="", author="")
    lists.add(engine, "bob@example.test", "deny", ["bob.example"], reason="", author="")
    lists.add(engine, ANN, "allow", ["ann.example"], reason="", author="")
    calls = calls_on(engine, "Ann@example.test")
    assert await calls["pipeline"]({"owner": ANN, "version": 1}) == "# ann"
    with pytest.raises(Refused, match="not that of"):
        await calls["pipeline"]({"owner": "bob@example.test", "version": 1})
    assert [row[2] for row in (await calls["lists"]({}))["rows"]] == ["ann.example"]
    names = [(ANN, False), ("bob@example.test", False), (ANN, True), *[(ANN, True)] * 1000]
    assert await calls["routed"]({"names": names}) == [(ANN, False), (ANN, True)]
    assert set(calls_on(engine)) - set(calls) == {"notice", "auto_reply", "within_limit"}
