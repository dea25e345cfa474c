"""A connection to one of several RabbitMQ hosts, made again for ever."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from aio_pika import connect
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError
from yarl import URL

from sendswitch import logs
from sendswitch.errors import Temporary, in_words

# Seconds before a host is tried again: first and at most; half of each is drawn at random.
FIRST_RETRY, LAST_RETRY = 0.2, 5.0
# Seconds for a connection to be made, and between two heartbeats; a host that misses two is gone.
PATIENCE, HEARTBEAT = 10.0, 10

# The library logs what it raises, and the log has that already in our words.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

Failed = (AMQPError, OSError, asyncio.TimeoutError, RuntimeError)
"""What the library raises when a connection or a channel is gone or refuses."""

Begin = Callable[[AbstractConnection], Awaitable[None]]
"""Prepares a new connection: channels, queues, consumers."""


class BrokerAway(Temporary):
    """RabbitMQ cannot be reached now; the connection is tried again."""


class Keeper:
    """Keeps one connection. `begin` prepares each new one, and `ended` is called when it is gone."""

    def __init__(self, urls: Sequence[str], begin: Begin, ended: Callable[[], None], *, name: str) -> None:
        self._urls, self._begin, self._ended, self._name = list(urls), begin, ended, name
        self._task: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self.up = asyncio.Event()
        self.trouble = ""  # why there is no connection

    def start(self) -> None:
        """Begin to connect."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def watch(self, channel: AbstractChannel) -> None:
        """Make a new connection when RabbitMQ closes this channel, or ends a consumer because its queue is gone."""
        channel.close_callbacks.add(self._lost)
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(self._lost)

    def _lost(self, *_: object) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

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
                await self._once(url)
                pause = FIRST_RETRY
                self.trouble = "the connection was lost"
            except Failed as error:
                self.trouble = f"{without_password(url)}: {in_words(error) or type(error).__name__}"
            finally:
                was_up = self.up.is_set()
                self.up.clear()
                if was_up:
                    self._ended()
            self._urls.append(self._urls.pop(0))
            logs.broker_away(why=self.trouble, retry_in=pause)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - so that clients do not come all at once
            pause = min(pause * 2, LAST_RETRY)

    async def _once(self, url: str) -> None:
        """Connect and wait for the end of the connection. Raises one of Failed."""
        connection = await connected(url, self._name)
        gone = self._gone = asyncio.get_running_loop().create_future()
        connection.close_callbacks.add(self._lost)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._begin(connection)
            self.trouble = ""
            self.up.set()
            logs.broker_connected(without_password(url))
            await gone
        finally:
            await asyncio.wait({asyncio.ensure_future(connection.close())}, timeout=1.0)


async def connected(url: str, name: str) -> AbstractConnection:
    """Return a connection to a host, which shows the name in RabbitMQ's lists. Raises one of Failed."""
    context = ssl.create_default_context() if url.startswith("amqps:") else None
    full = URL(url).update_query(heartbeat=str(HEARTBEAT), name=name)
    return await connect(full, timeout=PATIENCE, ssl_context=context)


def without_password(url: str) -> str:
    """Return an URL as it may be shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
