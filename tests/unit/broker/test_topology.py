"""The names in RabbitMQ: whose queue, whose key, and who may say what."""

from __future__ import annotations

import re

import pytest

from sendswitch.broker.rabbitmq import accounts
from sendswitch.broker.rabbitmq.topology import (
    OWN_VERDICTS,
    VERDICTS,
    account_in,
    account_of,
    exchange_for,
    verdict_key,
)
from sendswitch.routing import ALONE, POOL, rabbitmq_queue

ANN = "ann@example.test"


@pytest.mark.parametrize(
    ("queue", "account", "key"),
    [
        (POOL, "pool", "n1.pool"),
        (ALONE, "pool", "n1.pool"),
        (rabbitmq_queue(ANN), ANN, f"n1.{ANN}"),
        (rabbitmq_queue("@example.test"), "@example.test", "n1.@example.test"),
    ],
)
def test_a_worker_speaks_for_the_account_of_its_queue(queue: str, account: str, key: str) -> None:
    assert account_of(queue) == account
    assert verdict_key("n1", queue) == key
    assert account_in(exchange_for(queue), key, "site") == account


def test_a_user_speaks_for_nobody_else() -> None:
    assert account_in(OWN_VERDICTS, f"n1.{ANN}", ANN) == ANN
    for exchange, key, user in (
        (OWN_VERDICTS, "n1.bob@example.test", ANN),
        (VERDICTS, "n1.pool", ANN),
        (VERDICTS, "n1.pool", None),
        (VERDICTS, "n1.pool", ""),
        (OWN_VERDICTS, f"n1.{ANN}", None),
    ):
        with pytest.raises(ValueError, match="does not speak for"):
            account_in(exchange, key, user)
    for exchange, key in (
        *((VERDICTS, key) for key in ("n1", "n1.", "n1.alone", "", f"n1.{ANN}", "n1.pool.x")),
        *((OWN_VERDICTS, key) for key in ("n1", "n1.", "n1.pool", "")),
        *(("", f"n1.{ANN}"), ("", "n1.pool")),
    ):
        with pytest.raises(ValueError, match="is no account"):
            account_in(exchange, key, "site")


@pytest.mark.parametrize(
    "address",
    [ANN, "a.b+c@example.test", "x-y_z@bücher.example", "@example.test"],
)
def test_permissions_are_about_one_address(address: str) -> None:
    """As RabbitMQ compares them: bytes, with expressions that are searched for."""

    def allowed(kind: str, name: str) -> bool:
        told = accounts.permissions(address) | {"topic": accounts.topic_permissions(address)["write"]}
        return re.search(told[kind].encode(), name.encode()) is not None

    assert allowed("read", rabbitmq_queue(address))
    assert allowed("topic", verdict_key("n1", rabbitmq_queue(address)))
    assert allowed("topic", verdict_key("all", rabbitmq_queue(address)))
    assert allowed("write", "verdicts.own")
    for other in ("x" + address, address + "x", address.replace(".", "x"), "pool", "alone", ""):
        assert not allowed("read", f"tasks.{other}")
        assert not allowed("topic", f"n1.{other}")
    for name in ("verdicts", "verdicts.ownx", "xverdicts.own", "verdictsXown", "amq.default", ""):
        assert not allowed("write", name)
    assert not any(allowed("configure", name) for name in ("verdicts", rabbitmq_queue(address)))
    assert not allowed("topic", f"n1.n2.{address}")
    assert not allowed("topic", "n1.pool")


def test_the_url_of_a_worker() -> None:
    for broker, expected in (
        ("amqps://site:secret@mq.example:5671/mail", "amqps://ann%40example.test:pw@mq.example:5671/mail"),
        ("amqp://mq.example", "amqp://ann%40example.test:pw@mq.example"),
        ("amqp://a:b@[::1]/%2F", "amqp://ann%40example.test:pw@[::1]/%2F"),
    ):
        assert accounts.url_of(broker, ANN, "pw") == expected
    assert [accounts.vhost_of(f"amqp://mq.example{path}") for path in ("", "/", "/%2F", "/mail")] == [
        *("%2F", "%2F", "%2F", "mail"),
    ]
