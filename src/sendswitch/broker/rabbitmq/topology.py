"""The names in RabbitMQ, and how they are made there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import FieldTable

from sendswitch import logs
from sendswitch.broker.rabbitmq import Hosts, QueueType
from sendswitch.broker.rabbitmq.connection import (
    BrokerAway,
    NotTaken,
    connected,
    open_channel,
    safely,
    without_password,
)
from sendswitch.errors import Refused, Temporary
from sendswitch.routing import ALONE, POOL, TASKS, is_own

# The exchanges that workers of the site and workers of users' own publish to, and the account of the site's workers in
# their routing keys. They are two because RabbitMQ 3.10 lets the header CC of a message choose more keys unchecked.
VERDICTS, OWN_VERDICTS, SITE = "verdicts", "verdicts.own", "pool"
# The name that means every node.
EVERY_NODE = "all"
# How queues are declared. A classic one has no argument, or one that was made before there was a choice would differ.
_ARGUMENTS: dict[QueueType, FieldTable | None] = {"classic": None, "quorum": {"x-queue-type": "quorum"}}


class OtherType(Temporary):
    """A queue is there with another type than the configuration says."""

    def __init__(self, queue: str, queue_type: QueueType) -> None:
        super().__init__(
            f"the queue {queue} is not of the type {queue_type} (broker.queue_type): remove it in RabbitMQ; it is made"
            " again, and its tasks are offered again"
        )


def account_of(queue: str) -> str:
    """Return the account whose workers consume a queue: a user's address, or SITE."""
    return SITE if queue == ALONE else queue.removeprefix(TASKS)


def owner_of(account: str) -> str:
    """Return the user whose own workers an account stands for, '' for the site's."""
    return "" if account == SITE else account


def verdict_key(node: str, queue: str) -> str:
    """Return the routing key for what a worker of a queue says to a node."""
    return f"{node}.{account_of(queue)}"


def exchange_for(queue: str) -> str:
    """Return the exchange for what a worker of a queue says."""
    return OWN_VERDICTS if is_own(queue) else VERDICTS


def account_in(exchange: str, routing_key: str, user_id: str | None) -> str:
    """Return the account for which a worker speaks. RabbitMQ has checked that `user_id` is who published.

    Raises ValueError when it may not speak for this account.
    """
    account = routing_key.partition(".")[2]
    if (exchange == OWN_VERDICTS) != ("@" in account) or (exchange == VERDICTS) != (account == SITE):
        raise ValueError(f"{account!r:.100} is no account of {exchange}")
    if not user_id or ("@" in user_id and user_id != account):
        raise ValueError(f"{user_id!r:.100} does not speak for {account:.100}")
    return account


async def declare(connection: AbstractConnection, queue_type: QueueType) -> None:
    """Make the exchanges and the site's queues where they are missing. Raises BrokerAway, OtherType.

    A queue that is away with its host is left out, so that the others work.
    """
    await declare_exchanges(connection)
    for name in (POOL, ALONE):
        try:
            await declare_queue(connection, name, queue_type)
        except NotTaken as error:
            logs.failed("making a queue in RabbitMQ", error=error)


async def declare_exchanges(connection: AbstractConnection) -> None:
    """Make the exchanges where they are missing. Raises BrokerAway."""
    async with _channel(connection) as channel:
        for name in (VERDICTS, OWN_VERDICTS):
            await safely(channel.declare_exchange(name, ExchangeType.TOPIC, durable=True))


async def declare_queue(connection: AbstractConnection, name: str, queue_type: QueueType) -> None:
    """Make a queue where it is missing. Raises BrokerAway, OtherType; NotTaken for one that is away with its host."""
    async with _channel(connection) as channel:
        try:
            await safely(channel.declare_queue(name, durable=True, arguments=_ARGUMENTS[queue_type]))
        except ChannelPreconditionFailed as error:
            raise OtherType(name, queue_type) from error
        except ChannelNotFoundEntity as error:
            raise NotTaken(f"the queue {name} is away with its host in the cluster") from error


@asynccontextmanager
async def _channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    """Yield a channel for one question: an answer that says no closes it."""
    channel = await open_channel(connection, confirms=False)
    try:
        yield channel
    finally:
        await safely(channel.close())


async def install(hosts: Hosts) -> None:
    """Make what is missing on the first host that can be reached. Raises Temporary."""
    async with _first(hosts) as connection:
        await declare(connection, hosts.queue_type)


async def missing(hosts: Hosts, own: Iterable[str] = ()) -> list[str]:
    """Return what is missing, and what is not as it should be, in words. `own` are the queues of users, which may be
    missing. Raises Temporary.
    """
    found = []
    async with _first(hosts) as connection:
        for name in (VERDICTS, OWN_VERDICTS):
            async with _channel(connection) as channel:
                try:
                    await safely(channel.declare_exchange(name, ExchangeType.TOPIC, durable=True, passive=True))
                except ChannelNotFoundEntity:
                    found.append(f"there is no exchange {name}")
        for name in (POOL, ALONE, *own):
            try:
                if await _found(connection, name) is not None:
                    await declare_queue(connection, name, hosts.queue_type)
                elif not is_own(name):
                    found.append(f"there is no queue {name}")
            except OtherType as error:
                found.append(str(error))
    return found


async def _found(connection: AbstractConnection, name: str) -> tuple[int, int] | None:
    """Return how many tasks and workers are at a queue, None for one that is not there. Raises BrokerAway."""
    async with _channel(connection) as channel:
        try:
            queue = await safely(channel.declare_queue(name, passive=True))
        except ChannelNotFoundEntity:
            return None
        told = queue.declaration_result
        return told.message_count or 0, told.consumer_count or 0


async def add_queue(hosts: Hosts, name: str) -> None:
    """Make what is missing, and the queue of one user. Raises Temporary."""
    async with _first(hosts) as connection:
        await declare(connection, hosts.queue_type)
        await declare_queue(connection, name, hosts.queue_type)


async def remove_queue(hosts: Hosts, name: str) -> None:
    """Remove the queue of one user with the tasks in it, which the node offers elsewhere. Raises Temporary."""
    async with _first(hosts) as connection, _channel(connection) as channel:
        await safely(channel.queue_delete(name))


async def remove(hosts: Hosts) -> None:
    """Remove the exchange and the site's queues. Raises Refused while workers or tasks are there; Temporary."""
    async with _first(hosts) as connection:
        for name in (POOL, ALONE):
            # Quorum queues know no deletion on the condition that they are not used.
            if any(await _found(connection, name) or ()):
                raise Refused(f"{name} is in use: stop its workers, and let its tasks be done")
        async with _channel(connection) as channel:
            for name in (POOL, ALONE):
                await safely(channel.queue_delete(name))
            for name in (VERDICTS, OWN_VERDICTS):
                await safely(channel.exchange_delete(name))


@asynccontextmanager
async def _first(hosts: Hosts) -> AsyncIterator[AbstractConnection]:
    """Yield a connection to the first host that can be reached. Raises Temporary with what each of them said."""
    problems = []
    async with AsyncExitStack() as stack:
        for url in hosts.urls:
            try:
                connection = await stack.enter_async_context(connected(url, "sendswitch broker"))
            except BrokerAway as error:
                problems.append(f"{without_password(url)}: {error}")
            else:
                yield connection
                return
    raise Temporary("; ".join(problems))
