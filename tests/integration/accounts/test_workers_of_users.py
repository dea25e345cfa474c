"""Keys of users, and whose workers run their pipelines, on every database."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select

from sendswitch.accounts import access_keys, users, workers
from sendswitch.accounts.routes import load_routes
from sendswitch.config.model import Config
from sendswitch.db.tables import access_keys as table
from sendswitch.errors import NotFound, Refused
from sendswitch.routing import HERE


def test_keys_of_users(engine: Engine) -> None:
    for name in ("ann", "bob"):
        users.add_user(engine, f"{name}@example.test")
    number, key = access_keys.add_key(engine, "ANN@example.test", "work", "laptop")
    _, another = access_keys.add_key(engine, "bob@example.test", "work", "")
    assert key != another
    assert access_keys.user_of(engine, key, "work") == (number, "ann@example.test")
    for wrong, scope in ((key[:-1], "work"), (key, "send"), ("", "work")):
        assert access_keys.user_of(engine, wrong, scope) is None
    listed = access_keys.list_keys(engine)
    assert [(one.address, one.name, one.used is None) for one in listed] == [
        ("ann@example.test", "laptop", False),
        ("bob@example.test", "", True),
    ]
    assert key not in str(listed)
    with engine.connect() as connection:
        assert key not in str(connection.execute(select(table)).all())
    access_keys.remove_key(engine, number)
    assert access_keys.user_of(engine, key, "work") is None
    with pytest.raises(NotFound):
        access_keys.remove_key(engine, number)
    assert access_keys.valid_keys(engine, "work") == {(listed[1].id, "bob@example.test")}
    # The keys of a user who is removed and comes back are gone.
    users.remove_user(engine, "bob@example.test")
    users.restore_user(engine, "bob@example.test")
    assert access_keys.user_of(engine, another, "work") is None
    with pytest.raises(NotFound):
        access_keys.add_key(engine, "carol@example.test", "work", "")
    with pytest.raises(ValueError, match="scope"):
        access_keys.add_key(engine, "bob@example.test", "everything", "")
    for _ in range(access_keys.MOST):
        access_keys.add_key(engine, "bob@example.test", "work", "")
    with pytest.raises(Refused):
        access_keys.add_key(engine, "bob@example.test", "work", "")


def test_routes_say_whose_workers_are_asked(engine: Engine) -> None:
    for name in ("ann", "bob", "carol", "dave"):
        users.add_user(engine, f"{name}@example.test")
    for name in ("ann", "bob", "dave"):
        users.set_pipeline(engine, f"{name}@example.test", "[[step]]\nuse = 'pass'\n")
    workers.set_workers(engine, "ann@example.test", run_by="own")
    workers.set_workers(engine, "carol@example.test", run_by="own-rabbitmq", when_offline="pool")
    workers.set_workers(engine, "dave@example.test", run_by="site", when_offline="quarantine")
    routes = {route.owner.partition("@")[0]: route for route in load_routes(engine, Config())}
    told = {name: (route.queue, route.version, route.when_offline) for name, route in routes.items()}
    assert told == {
        "ann": ("web.ann@example.test", 1, "pass"),
        "bob": (HERE, 1, "defer"),
        "carol": ("tasks.carol@example.test", 0, "defer"),  # nothing to stand in with
        "dave": (HERE, 1, "quarantine"),
    }
    assert [name for name, route in routes.items() if route.own] == ["ann", "carol"]


@pytest.mark.parametrize(("urls", "when_offline"), [([], "defer"), (["amqp://127.0.0.1:1/"], "pass")])
def test_that_rabbitmq_was_taken_away_lets_nothing_pass(engine: Engine, urls: list[str], when_offline: str) -> None:
    users.add_user(engine, "ann@example.test")
    workers.set_workers(engine, "ann@example.test", run_by="own-rabbitmq", when_offline="pass")
    (route,) = load_routes(engine, Config.model_validate({"broker": {"urls": urls}}))
    assert route.when_offline == when_offline


def test_an_address_that_cannot_be_a_name_in_rabbitmq() -> None:
    for run_by in ("own", "own-rabbitmq"):
        workers.check("ann@example.test", "pass", run_by=run_by, pipeline=True)
    workers.check("o'brien@example.test", "pass", run_by="own", pipeline=True)
    with pytest.raises(ValueError, match="cannot be a name in RabbitMQ"):
        workers.check("o'brien@example.test", "pass", run_by="own-rabbitmq", pipeline=True)
