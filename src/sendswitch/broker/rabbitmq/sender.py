"""Puts messages into queues of RabbitMQ, and knows which of them were taken.

A channel on which the first message came while a cluster chose a new leader for a quorum queue is refused everything
for that queue ever after (basic.nack, RabbitMQ 3.10). So a queue that takes nothing gets a channel of its own. But a
queue may also be full.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import PublishError

from sendswitch.broker.rabbitmq import QueueType
from sendswitch.broker.rabbitmq.connection import BrokerAway, Keeper, NotTaken, open_channel, safely
from sendswitch.broker.rabbitmq.topology import declare, declare_queue

# Seconds in which RabbitMQ takes one message of those that were sent; it takes each within twice that time.
TAKEN = 30.0
# Seconds before a message that was refused is sent again, each time over another channel; and those in which a message
# for this queue is sent once only, after that has not helped.
PAUSES, HOPELESS = (0.0, 0.5, 1.0, 2.0, 4.0), 60.0


class Sender:
    """The channels of one connection to which messages for queues go, with confirms."""

    def __init__(self, keeper: Keeper, queue_type: QueueType) -> None:
        self._keeper, self._queue_type = keeper, queue_type
        self._connection: AbstractConnection | None = None
        self.channel: AbstractChannel | None = None
        self._own: dict[str, AbstractChannel] = {}
        self._refused: dict[str, AbstractChannel] = {}  # by queue, the channel on which it took nothing
        self._hopeless: dict[str, float] = {}
        self._taken = 0.0  # when the last message was taken

    def connected(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        """Use a new connection, and its channel with confirms."""
        self.ended()
        self._connection, self.channel = connection, channel

    def ended(self) -> None:
        """Forget the connection: it is gone."""
        self._connection = self.channel = None
        for of in (self._own, self._refused, self._hopeless):
            of.clear()

    def pauses(self, queue: str) -> Sequence[float]:
        """Return how often a message for a queue may be sent again, and how much later each time."""
        return () if time.monotonic() < self._hopeless.get(queue, 0.0) else PAUSES

    def give_up(self, queue: str) -> None:
        """Note that a queue takes nothing, on whatever channel."""
        if self.pauses(queue):
            self._hopeless[queue] = time.monotonic() + HOPELESS

    async def put(self, message: Message, queue: str) -> None:
        """Put a message into a queue, which is made where it is missing. Raises PublishError, NotTaken, BrokerAway."""
        channel, connection = self._channel_for(queue), self._connection
        if channel is None or connection is None:
            raise BrokerAway
        exchange = channel.default_exchange
        try:
            try:
                await self._confirmed(exchange.publish(message, routing_key=queue, mandatory=True))
            except PublishError:
                await declare(connection, self._queue_type)
                await declare_queue(connection, queue, self._queue_type)
                await self._confirmed(exchange.publish(message, routing_key=queue, mandatory=True))
        except NotTaken:
            self._refused[queue] = channel
            raise
        except TimeoutError as error:
            self._refused[queue] = channel
            await self.reopen(queue)
            raise BrokerAway("RabbitMQ has not taken a message") from error

    async def reopen(self, queue: str) -> None:
        """Give a queue a new channel, unless it has one since it was refused. Raises BrokerAway."""
        if self._connection is None or not self._is_refused(queue):
            return
        channel = await open_channel(self._connection, confirms=True)
        unwanted: AbstractChannel | None = channel
        if self._is_refused(queue):  # still: this waited
            unwanted, self._own[queue] = self._own.get(queue), channel
        if unwanted is not None:
            await safely(unwanted.close())

    def _channel_for(self, queue: str) -> AbstractChannel | None:
        return self._own.get(queue, self.channel)

    def _is_refused(self, queue: str) -> bool:
        return queue in self._refused and self._refused[queue] is self._channel_for(queue)

    async def _confirmed(self, publishing: Awaitable[object]) -> None:
        """Wait until RabbitMQ has taken a message. Raises PublishError, NotTaken, BrokerAway, TimeoutError.

        When it takes none for TAKEN seconds, as one without memory does, the connection is made again: RabbitMQ may
        never take what it has not taken by then.
        """
        task, began = asyncio.ensure_future(safely(publishing)), time.monotonic()
        try:
            while not task.done():
                await asyncio.wait((task,), timeout=TAKEN)
                now = time.monotonic()
                if task.done():
                    break
                if now - max(began, self._taken) >= TAKEN:
                    self._keeper.renew(f"RabbitMQ has taken no task for {TAKEN:g} s")
                    raise BrokerAway
                if now - began >= 2 * TAKEN:
                    raise TimeoutError
            task.result()
            self._taken = time.monotonic()
        finally:
            task.cancel()
