"""What the library raises when a connection is lost becomes one error, and no URL is shown with its password."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aio_pika import Connection
from aio_pika.exceptions import AMQPConnectionError, ChannelNotFoundEntity
from yarl import URL

from sendswitch.broker.rabbitmq.connection import BrokerAway, Keeper, open_channel, safely, without_password
from sendswitch.config.load import validate
from sendswitch.config.model import BrokerSection
from sendswitch.errors import InvalidConfiguration


async def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [AMQPConnectionError("gone"), Exception(), OSError(104, "reset"), TimeoutError(), RuntimeError("closed")],
    ids=lambda error: type(error).__name__,
)
async def test_a_lost_connection_is_one_error(error: Exception) -> None:
    with pytest.raises(BrokerAway):
        await safely(raising(error))


async def test_a_call_that_nobody_cancelled_is_a_lost_connection() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)
    with pytest.raises(BrokerAway, match="lost"):
        await safely(future)


async def test_a_call_that_is_cancelled_ends() -> None:
    task = asyncio.ensure_future(safely(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_rabbitmq_answers_stays_as_it_is() -> None:
    with pytest.raises(ChannelNotFoundEntity):
        await safely(raising(ChannelNotFoundEntity("no queue")))


async def test_a_connection_that_is_closed_has_no_channels() -> None:
    """The library says so before anybody waits for it."""
    with pytest.raises(BrokerAway, match="not opened"):
        await open_channel(Connection(URL("amqp://127.0.0.1:1/")), confirms=False)


async def test_nothing_ends_the_keeping_of_a_connection() -> None:
    calls: list[str] = []

    async def begin(connection: Any) -> None:
        raise AssertionError("there is no connection")

    keeper = Keeper(["amqp://127.0.0.1:1/", "amqp://host..name/"], begin, lambda: calls.append("ended"), name="x")
    keeper.start()
    async with asyncio.timeout(10):
        while len(calls) < 3:
            await asyncio.sleep(0.01)
    assert keeper.trouble
    assert not keeper.up.is_set()
    await keeper.stop()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqps://ann:secret@mq.example:5671/v", "amqps://mq.example:5671/v"),
        ("amqps://ann:8/Kx+q@mq.example/v", "amqps://mq.example/v"),
        ("amqp://ann:12#ab@mq.example/v", "amqp://mq.example/v"),
        ("amqp://mq.example", "amqp://mq.example"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "", "mq.example", "http://mq.example", "amqp://", "amqp://:5672", "amqp://mq.example:x", "amqp://u:a/b@mq.example",
        "amqp://u:12#ab@mq.example", "amqp://u:a?b@mq.example", "amqp://u:a@b@mq.example",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidConfiguration, match="it is no URL such as") as refused:
        validate(BrokerSection, {"urls": [url]}, "x.toml", {})
    assert url not in str(refused.value) or not url
    assert "u:" not in str(refused.value)


@pytest.mark.parametrize("url", ["amqp://mq.example", "amqps://ann:p%2Fw%40@mq.example:5671/v"])
def test_a_url_that_is_one_is_taken(url: str) -> None:
    (taken,) = BrokerSection(urls=[url]).urls
    assert taken.get_secret_value() == url
