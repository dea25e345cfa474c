"""A connection to one of several RabbitMQ hosts, made again for ever.

When a connection is lost, the library ends what waits for it in many ways: with its own errors, with a bare Exception,
or cancelled, although nobody cancelled it. `safely` makes one error of all of them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from aio_pika import Connection
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed, DeliveryError, PublishError
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from sendswitch import logs
from sendswitch.errors import Temporary, in_words

T = TypeVar("T")

# Seconds before a host is tried again: first and at most; half of each is drawn at random.
FIRST_RETRY, LAST_RETRY = 0.2, 5.0
# Seconds for a connection to be made, and between two heartbeats; a host that misses three is gone. Seconds for a
# connection to be closed in order.
PATIENCE, HEARTBEAT, GOODBYE = 10.0, 10, 1.0

# The library logs what it raises, and the log has that already in our words.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika").setLevel(logging.CRITICAL)

Begin = Callable[[AbstractConnection], Awaitable[None]]
"""Prepares a new connection: channels, queues, consumers. Raises BrokerAway, or an answer of RabbitMQ."""

Answers = (PublishError, ChannelNotFoundEntity, ChannelPreconditionFailed)
"""What RabbitMQ answers over a connection that stands: no such queue, no such name, not in this state."""


class BrokerAway(Temporary):
    """RabbitMQ cannot be reached now; the connection is tried again."""


class NotTaken(BrokerAway):
    """RabbitMQ has refused a message (basic.nack): a queue is full, or its leader in a cluster has changed."""


async def safely(work: Awaitable[T]) -> T:
    """Return the result of a call of the library. Raises one of Answers, NotTaken, BrokerAway for all else that it
    raises.
    """
    try:
        return await work
    except Answers:
        raise
    except DeliveryError as error:
        raise NotTaken("RabbitMQ has refused a message") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise BrokerAway("the connection was lost") from None
    except Exception as error:
        raise BrokerAway(in_words(error) or type(error).__name__) from error


async def open_channel(connection: AbstractConnection, *, confirms: bool) -> AbstractChannel:
    """Return a new channel. With `confirms`, publishing raises PublishError for a message that no queue takes. Raises
    BrokerAway.
    """

    async def opened() -> AbstractChannel:
        channel = connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
        await channel.initialize()
        return channel

    return await safely(opened())


class Keeper:
    """Keeps one connection. `begin` prepares each new one, and `ended` is called when it is gone or was not ready."""

    def __init__(self, urls: Sequence[str], begin: Begin, ended: Callable[[], None], *, name: str) -> None:
        self._urls, self._begin, self._ended, self._name = list(urls), begin, ended, name
        self._task: asyncio.Task[None] | None = None
        self._lost: Callable[..., None] = lambda *_: None
        self._why = ""
        self.up = asyncio.Event()
        self.trouble = ""  # why there is no connection
        self.user = ""  # whose account the connection has

    def start(self) -> None:
        """Begin to connect."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def channel(self, connection: AbstractConnection, *, confirms: bool) -> AbstractChannel:
        """Return a new channel (`open_channel`). When RabbitMQ closes it, or ends a consumer on it because its queue is
        gone, a new connection is made. Raises BrokerAway.
        """
        channel = await open_channel(connection, confirms=confirms)
        channel.close_callbacks.add(self._lost)
        underlay = await safely(channel.get_underlay_channel())
        underlay.on_consumer_cancel_callbacks.add(self._lost)
        return channel

    def renew(self, why: str) -> None:
        """Leave the connection, and make a new one."""
        self._why = why
        self.up.clear()
        self._lost()

    async def stop(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep(self) -> None:
        pause = FIRST_RETRY
        random.shuffle(self._urls)  # so that not all come to the first host
        while True:
            url = self._urls[0]
            try:
                await safely(self._once(url))
                pause = FIRST_RETRY
                self.trouble, self._why = self._why or "the connection was lost", ""
            except Exception as error:
                self.trouble = f"{without_password(url)}: {in_words(error)}"
            finally:
                self.up.clear()
                self._ended()
            self._urls.append(self._urls.pop(0))
            logs.broker_away(why=self.trouble, retry_in=pause)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - so that clients do not come all at once
            pause = min(pause * 2, LAST_RETRY)

    async def _once(self, url: str) -> None:
        """Connect and wait for the end of the connection. Raises BrokerAway."""
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def lost(*_: object) -> None:
            if not gone.done():
                gone.set_result(None)

        self._lost = lost  # of this connection only: an old one may end late
        self._why = ""
        self.user = URL(url).user or "guest"  # as the library has it
        async with connected(url, self._name) as connection:
            connection.close_callbacks.add(lost)
            async with asyncio.timeout(PATIENCE):
                await self._begin(connection)
            self.trouble = ""
            self.up.set()
            logs.broker_connected(without_password(url))
            await gone


class connected:
    """A connection to a host, which shows the name in RabbitMQ's lists. Raises BrokerAway.

    At the end it is closed in order, or aborted: a host that reads nothing would never let it end.
    """

    def __init__(self, url: str, name: str) -> None:
        context = ssl.create_default_context() if url.startswith("amqps:") else None
        self._transports = _Transports(TLSTransportFactory() if context else TCPTransportFactory())
        full = URL(url).update_query(heartbeat=str(HEARTBEAT), name=name)
        self._connection = Connection(full, ssl_context=context)
        self._connection.kwargs["transport_factory"] = self._transports

    async def __aenter__(self) -> AbstractConnection:
        try:
            await safely(self._connection.connect(timeout=PATIENCE))
        except BaseException:
            self._transports.abort()
            raise
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        closing = asyncio.ensure_future(self._connection.close())
        try:
            await asyncio.wait((closing,), timeout=GOODBYE)
        finally:
            self._transports.abort()
            await asyncio.wait((closing,), timeout=GOODBYE)
            if closing.done() and not closing.cancelled():
                closing.exception()  # it was lost; we know


class _Transports(TransportFactory):
    """The transports of one connection, so that they can be aborted."""

    def __init__(self, factory: TransportFactory) -> None:
        self._factory = factory
        self._writers: list[asyncio.StreamWriter] = []

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._factory.create(url, **options)
        self._writers.append(writer)
        return reader, writer

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


def without_password(url: str) -> str:
    """Return an URL as it may be shown: without what stands before its last @."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
