"""A worker's side of RabbitMQ: takes tasks from queues, and speaks to the nodes that offered them."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError, PublishError

from sendswitch import logs
from sendswitch.broker import frames
from sendswitch.broker.calls import error_from_json
from sendswitch.broker.codec import decode_task, encode_answer
from sendswitch.broker.frames import BadFrame
from sendswitch.broker.pieces import Pieces
from sendswitch.broker.rabbitmq.connection import BrokerAway, Failed, Keeper
from sendswitch.broker.rabbitmq.topology import EVERY_NODE, VERDICTS, account_of, verdict_key
from sendswitch.broker.remote import OnSettings
from sendswitch.errors import Temporary, in_words
from sendswitch.mail.content import Content
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import PipelineResult

# Seconds between two reports of the tasks in hand, and for a call to be answered.
REPORT, CALL = 2.0, 30.0
# Seconds for RabbitMQ to take an answer.
TAKEN = 30.0
# Answers that are kept for tasks that come twice.
KEPT = 1000
REPLIES = "amq.rabbitmq.reply-to"


class RabbitConsumer:
    """A worker's side of RabbitMQ (`base.TaskConsumer`), for `places` tasks at once."""

    def __init__(
        self, urls: Sequence[str], *, name: str, places: int, queues: tuple[str, ...], on_settings: OnSettings
    ) -> None:
        self._name, self._places, self._queues, self._on_settings = name, places, queues, on_settings
        self._keeper = Keeper(urls, self._begin, self._ended, name=f"sendswitch worker {name}")
        self.gone = asyncio.Event()  # never set: RabbitMQ comes back
        self._ready: asyncio.Queue[RabbitLease] = asyncio.Queue()
        self.leases: dict[str, RabbitLease] = {}
        self._answers: OrderedDict[str, bytes] = OrderedDict()
        self._calls: dict[int, asyncio.Future[frames.Frame]] = {}
        self._numbers = itertools.count(1)
        self._applied: dict[str, str] = {}  # the version of each node's settings
        self._applying: dict[str, asyncio.Lock] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._channel: AbstractChannel | None = None
        self._verdicts: AbstractExchange | None = None
        self._tags: list[tuple[Any, str]] = []
        self._stopping = False
        self.done = 0
        self._folder = tempfile.TemporaryDirectory(prefix="sendswitch-work-")

    async def open(self) -> None:
        """Begin to connect. Never raises: RabbitMQ may start later."""
        if not self._work:
            self._keeper.start()
            self._start(self._report())

    async def lease(self, queues: tuple[str, ...]) -> RabbitLease:
        """Wait for a task from the queues of this worker. Raises asyncio.CancelledError only."""
        while (lease := await self._ready.get()).ended:
            pass  # it came over a connection that is gone
        return lease

    async def stop_taking(self) -> None:
        """Want no more tasks; those that wait here go back."""
        self._stopping = True
        while self._tags:
            queue, tag = self._tags.pop()
            with suppress(*Failed):  # without a connection it has ended already
                await queue.cancel(tag, timeout=TAKEN)
        while not self._ready.empty():
            await self._ready.get_nowait().give_back()

    async def close(self) -> None:
        """Give back every task that has no answer, and disconnect."""
        await self.stop_taking()
        for lease in list(self.leases.values()):
            await lease.give_back()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._keeper.stop()
        self._folder.cleanup()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    # The connection

    async def _begin(self, connection: AbstractConnection) -> None:
        speaking = await connection.channel(publisher_confirms=True, on_return_raises=True)
        self._verdicts = await speaking.get_exchange(VERDICTS, ensure=False)
        replies = await speaking.get_queue(REPLIES, ensure=False)
        await replies.consume(self._replied, no_ack=True)
        self._channel = await connection.channel(publisher_confirms=False)
        await self._channel.set_qos(prefetch_count=self._places)
        self._tags = []
        for name in self._queues if not self._stopping else ():
            queue = await self._channel.get_queue(name, ensure=False)
            self._tags.append((queue, await queue.consume(self._came)))
        for channel in (speaking, self._channel):
            await self._keeper.watch(channel)

    def _ended(self) -> None:
        """End what depended on the connection: RabbitMQ gives the tasks to other workers."""
        self._verdicts = None
        for lease in self.leases.values():
            lease.ended = True
        self.leases.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(BrokerAway())

    # Tasks

    async def _came(self, message: AbstractIncomingMessage) -> None:
        try:
            task = decode_task(message.body)
            node = message.reply_to or ""
            if not node or "." in node or task.queue not in self._queues:
                raise ValueError("a task of no node or of another queue")
        except ValueError as error:
            logs.failed("reading a task", error=error)
            await message.reject(requeue=False)
            return
        lease = RabbitLease(self, task, node, message)
        if (answer := self._answers.get(task.token)) is not None:  # it came twice
            await self.say(lease, "answer", answer)
            await lease.acknowledge()
        elif message.redelivered:
            # A worker that had it is gone. The node decides what that means: the task may have broken it.
            await self.say(lease, "lost")
            await lease.acknowledge()
        elif task.token in self.leases:
            await lease.acknowledge()  # this worker has it already
        else:
            self.leases[task.token] = lease
            self._start(self._prepare(lease, str((message.headers or {}).get("settings", ""))))

    async def _prepare(self, lease: RabbitLease, version: str) -> None:
        """Know the settings of a task's node, then hand the task over."""
        node = lease.node
        async with self._applying.setdefault(node, asyncio.Lock()):
            if self._applied.get(node) != version:
                try:
                    told = (await self._ask(lease.task.queue, node, "settings", {})).fields["result"]
                    await self._on_settings(node, told["settings"])
                    self._applied[node] = told["version"]
                except Exception as error:
                    logs.failed(f"taking the settings of {node}", error=error)
                    if node not in self._applied:  # without any there is nothing to work with
                        await lease.discard()
                        return
        if not self._stopping:
            self._ready.put_nowait(lease)
        else:
            await lease.give_back()

    async def say(self, lease: RabbitLease, kind: str, data: bytes = b"") -> bool:
        """Tell the node of a task something about it. Return whether the node will hear it."""
        return await self._publish(lease.task.queue, lease.node, frames.encode(kind, data, token=lease.task.token))

    async def _publish(self, queue: str, node: str, body: bytes, *, reply_to: str | None = None) -> bool:
        if self._verdicts is None:
            return False
        message = Message(body, reply_to=reply_to)
        try:
            await self._verdicts.publish(message, verdict_key(node, queue), mandatory=True, timeout=TAKEN)
        except PublishError:
            return False  # the node is gone
        except (DeliveryError, *Failed):
            return False  # the connection is gone
        return True

    def answered(self, lease: RabbitLease, data: bytes) -> None:
        """Keep an answer for a task that comes twice."""
        self.done += 1
        self._answers[lease.task.token] = data
        if len(self._answers) > KEPT:
            self._answers.popitem(last=False)

    async def _report(self) -> None:
        """Tell every node once in a while which tasks are here."""
        while True:
            by_account = {account_of(queue): queue for queue in self._queues}
            for account, queue in by_account.items():
                had = self.leases.items()
                tokens = [token for token, lease in had if account_of(lease.task.queue) == account]
                body = frames.encode("working", name=self._name, places=self._places, done=self.done, tokens=tokens)
                await self._publish(queue, EVERY_NODE, body)
            await asyncio.sleep(REPORT)

    # Calls

    async def call(self, node: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return the result of a call to a node. Raises Temporary without a connection, and the call's errors."""
        return (await self._ask(self._queues[0], node, name, arguments)).fields.get("result")

    async def _ask(self, queue: str, node: str, name: str, arguments: Mapping[str, Any]) -> frames.Frame:
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        body = frames.encode("call", id=number, name=name, arguments=dict(arguments))
        try:
            if not await self._publish(queue, node, body, reply_to=REPLIES):
                raise BrokerAway
            async with asyncio.timeout(CALL):
                frame: frames.Frame = await future
        except TimeoutError as error:
            raise Temporary(f"{node} did not answer") from error
        finally:
            del self._calls[number]
        if "error" in frame.fields:
            raise error_from_json(frame.fields)
        return frame

    async def _replied(self, message: AbstractIncomingMessage) -> None:
        try:
            frame = frames.decode(message.body)
            future = self._calls.get(frame.get("id", int))
        except BadFrame as error:
            logs.failed("reading a reply", error=error)
            return
        if future is not None and not future.done():
            future.set_result(frame)

    async def content(self, lease: RabbitLease) -> Content:
        """Return content that did not come with its task. Raises Temporary."""
        pieces, more = Pieces(Path(self._folder.name), lease.task.content.size), True
        try:
            while more:
                told = {"token": lease.task.token, "start": pieces.got}
                piece = (await self._ask(lease.task.queue, lease.node, "content", told)).data
                more = pieces.add(piece) and bool(piece)
            return pieces.content()
        except OSError as error:
            raise Temporary(in_words(error)) from error
        finally:
            pieces.drop()


class RabbitLease:
    """A task that this worker has from RabbitMQ."""

    __slots__ = ("_consumer", "_message", "ended", "node", "task")

    def __init__(self, consumer: RabbitConsumer, task: Task, node: str, message: AbstractIncomingMessage) -> None:
        self._consumer, self.task, self.node, self._message = consumer, task, node, message
        self.ended = False

    async def content(self) -> Content:
        """Return the task's content. Raises Temporary when it cannot be read."""
        content = self.task.content
        return await self._consumer.content(self) if isinstance(content, Reference) else content

    async def answer(self, result: PipelineResult) -> None:
        """Send the answer, then forget the task. Without a connection it goes nowhere."""
        if self._end():
            task = self.task
            data = encode_answer(Answer(task.message, task.n, task.token, result))
            self._consumer.answered(self, data)
            if await self._consumer.say(self, "answer", data):
                await self.acknowledge()

    async def give_back(self) -> None:
        """Ask the node to offer the task again."""
        if self._end() and await self._consumer.say(self, "back"):
            await self.acknowledge()

    async def discard(self) -> None:
        """End the lease without an answer."""
        if self._end():
            await self._consumer.say(self, "discard")
            await self.acknowledge()

    async def acknowledge(self) -> None:
        """Have RabbitMQ forget the task. Without a connection another worker gets it."""
        with suppress(*Failed):
            await self._message.ack()

    def _end(self) -> bool:
        if self.ended:
            return False
        self.ended = True
        self._consumer.leases.pop(self.task.token, None)
        return True
