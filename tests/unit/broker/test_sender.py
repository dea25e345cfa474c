"""Messages for queues of RabbitMQ that are taken, refused, or neither."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aio_pika import Message
from aio_pika.exceptions import DeliveryError

from sendswitch.broker.rabbitmq import sender as sender_module
from sendswitch.broker.rabbitmq.connection import BrokerAway, Keeper, NotTaken
from sendswitch.broker.rabbitmq.sender import PAUSES, Sender


class Channel:
    """Refuses what is for `full`, says nothing about `silent`, and takes the rest."""

    def __init__(self) -> None:
        self.default_exchange, self.closed = self, False
        self.sent: list[str] = []

    async def initialize(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def publish(self, message: Message, routing_key: str, mandatory: bool) -> None:
        self.sent.append(routing_key)
        if routing_key == "silent":
            await asyncio.Event().wait()
        if routing_key == "full":
            raise DeliveryError(None, cast(Any, "nack"))


class Connection:
    def __init__(self) -> None:
        self.opened: list[Channel] = []

    def channel(self, **options: Any) -> Channel:
        self.opened.append(Channel())
        return self.opened[-1]


class Told:
    """In place of a keeper: notes why it was to renew the connection."""

    def __init__(self) -> None:
        self.why: list[str] = []

    def renew(self, why: str) -> None:
        self.why.append(why)


def made() -> tuple[Sender, Channel, Connection, Told]:
    told, connection, first = Told(), Connection(), Channel()
    sender = Sender(cast(Keeper, told), "classic")
    sender.connected(cast(Any, connection), cast(Any, first))
    return sender, first, connection, told


async def test_a_queue_that_refuses_gets_a_channel_of_its_own() -> None:
    sender, first, connection, told = made()
    with pytest.raises(NotTaken):
        await sender.put(Message(b""), "full")
    await sender.reopen("full")
    await sender.reopen("full")  # it has a new one already
    (own,) = connection.opened
    with pytest.raises(NotTaken):
        await sender.put(Message(b""), "full")
    await sender.put(Message(b""), "other")
    await sender.reopen("other")
    assert (first.sent, own.sent, connection.opened) == (["full", "other"], ["full"], [own])
    await sender.reopen("full")
    assert own.closed
    assert not first.closed
    assert (len(connection.opened), told.why) == (2, [])


async def test_a_queue_that_takes_nothing_is_not_tried_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, *_ = made()
    monkeypatch.setattr(sender_module, "HOPELESS", 0.1)
    assert sender.pauses("full") == PAUSES
    sender.give_up("full")
    assert (sender.pauses("full"), sender.pauses("other")) == ((), PAUSES)
    await asyncio.sleep(0.05)
    sender.give_up("full")  # which makes it no longer
    async with asyncio.timeout(10):
        while not sender.pauses("full"):
            await asyncio.sleep(0.01)
    sender.give_up("full")
    sender.connected(cast(Any, Connection()), cast(Any, Channel()))
    assert sender.pauses("full") == PAUSES


async def test_a_queue_that_says_nothing_while_others_do_gets_another_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "TAKEN", 0.1)
    sender, first, connection, told = made()
    waiting = asyncio.create_task(sender.put(Message(b""), "silent"))
    while not waiting.done():
        await sender.put(Message(b""), "other")
        await asyncio.sleep(0.01)
    with pytest.raises(BrokerAway):
        await waiting
    assert (len(connection.opened), told.why, first.closed) == (1, [], False)
    with pytest.raises(BrokerAway):  # now nothing is taken at all
        await sender.put(Message(b""), "silent")
    assert told.why == ["RabbitMQ has taken no task for 0.1 s"]


async def test_without_a_connection_nothing_is_sent() -> None:
    sender, first, *_ = made()
    sender.ended()
    with pytest.raises(BrokerAway):
        await sender.put(Message(b""), "other")
    await sender.reopen("other")
    assert (first.sent, sender.channel) == ([], None)
