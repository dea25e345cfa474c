"""A worker's side of RabbitMQ: takes tasks from queues, and speaks to the nodes that offered them."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import PublishError

from sendswitch import logs
from sendswitch.broker import frames
from sendswitch.broker.calls import error_from_json
from sendswitch.broker.codec import decode_task, encode_answer
from sendswitch.broker.frames import BadFrame
from sendswitch.broker.pieces import Pieces
from sendswitch.broker.rabbitmq.connection import BrokerAway, Keeper, safely
from sendswitch.broker.rabbitmq.served_calls import MOST
from sendswitch.broker.rabbitmq.topology import EVERY_NODE, account_of, exchange_for, verdict_key
from sendswitch.broker.remote import OnSettings
from sendswitch.errors import Temporary, in_words
from sendswitch.mail.content import Content
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import PipelineResult
from sendswitch.routing import ALONE, is_own

# Seconds between two reports of the tasks in hand, and for a call to be answered.
REPORT, CALL = 2.0, 30.0
# Seconds for RabbitMQ to take an answer.
TAKEN = 30.0
# Answers and tokens that are kept for tasks that come twice, and most bytes of such an answer.
KEPT, KEPT_SIZE = 1000, 64 * 1024
# Versions of a node's settings that are remembered, and seconds before a task goes back that cannot be run here.
VERSIONS, UNABLE = 20, 5.0
# Seconds for everything that goes back at the end.
PATIENCE = 5.0
REPLIES = "amq.rabbitmq.reply-to"


class _NodeGone(Temporary):
    """The node that offered the task is not there any more."""


async def _within_patience(*work: Coroutine[Any, Any, Any]) -> None:
    """Do all of this, as far as it can be done in PATIENCE seconds."""
    if work:
        tasks = [asyncio.ensure_future(one) for one in work]
        _, late = await asyncio.wait(tasks, timeout=PATIENCE)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class RabbitConsumer:
    """A worker's side of RabbitMQ (`base.TaskConsumer`), for `places` tasks at once."""

    def __init__(
        self, urls: Sequence[str], *, name: str, places: int, queues: tuple[str, ...], on_settings: OnSettings
    ) -> None:
        self._name, self._places, self._queues, self._on_settings = name, places, queues, on_settings
        self._keeper = Keeper(urls, self._begin, self._ended, name=f"sendswitch worker {name}")
        self.gone, self.refused = asyncio.Event(), ""  # never set: RabbitMQ comes back
        self._ready: asyncio.Queue[RabbitLease] = asyncio.Queue()
        self.leases: dict[str, RabbitLease] = {}
        self._answers: OrderedDict[str, bytes] = OrderedDict()
        self._calls: dict[int, asyncio.Future[frames.Frame]] = {}
        self._numbers = itertools.count(1)
        self._seen: OrderedDict[str, None] = OrderedDict()  # tokens that came, the last of them
        self._applied: dict[str, OrderedDict[str, None]] = {}  # versions of each node's settings that were taken
        self._applying: dict[str, asyncio.Lock] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._verdicts: dict[str, AbstractExchange] = {}
        self._user = ""
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
        tags, self._tags = self._tags, []
        waiting = [self._ready.get_nowait() for _ in range(self._ready.qsize())]
        await _within_patience(
            *(safely(queue.cancel(tag)) for queue, tag in tags), *(lease.give_back() for lease in waiting)
        )

    async def close(self) -> None:
        """Give back every task that has no answer, and disconnect."""
        await self.stop_taking()
        await _within_patience(*(lease.give_back() for lease in list(self.leases.values())))
        await self._keeper.stop()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self._folder.cleanup()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    # The connection

    async def _begin(self, connection: AbstractConnection) -> None:
        self._user = self._keeper.user
        speaking = await self._keeper.channel(connection, confirms=True)
        self._verdicts = {
            name: await safely(speaking.get_exchange(name, ensure=False)) for name in map(exchange_for, self._queues)
        }
        replies = await safely(speaking.get_queue(REPLIES, ensure=False))
        await safely(replies.consume(self._replied, no_ack=True))
        taking = await self._keeper.channel(connection, confirms=False)
        await safely(taking.set_qos(prefetch_count=self._places))
        self._tags = []
        for name in self._queues if not self._stopping else ():
            queue = await safely(taking.get_queue(name, ensure=False))
            self._tags.append((queue, await safely(queue.consume(self._came))))

    def _ended(self) -> None:
        """End all leases and calls: the connection is lost. RabbitMQ gives the tasks to other workers."""
        self._verdicts = {}
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
            await asyncio.sleep(UNABLE)  # or a worker of another version would empty the queue
            with suppress(BrokerAway):
                await safely(message.reject(requeue=False))
            return
        lease = RabbitLease(self, task, node, message)
        if task.token in self.leases:
            await lease.acknowledge()  # it came twice
        elif (answer := self._answers.get(task.token)) is not None:
            await self.say(lease, "answer", answer)
            await lease.acknowledge()
        elif message.redelivered:
            # If it was here, the connection was lost: the node offers it again. If not, the worker that had it is gone,
            # and the node decides what that means: the task may have broken it.
            await self.say(lease, "back" if task.token in self._seen else "lost")
            await lease.acknowledge()
        else:
            self._seen[task.token] = None
            if len(self._seen) > max(KEPT, 2 * self._places):  # all that are here, and the last that were
                self._seen.popitem(last=False)
            self.leases[task.token] = lease
            self._start(self._prepare(lease, str((message.headers or {}).get("settings", ""))))

    async def _prepare(self, lease: RabbitLease, version: str) -> None:
        """Know the settings of a task's node, then hand the task over."""
        try:
            if lease.task.queue == ALONE or is_own(lease.task.queue):
                await self._tell()  # the node must know who had it, even if it ends this worker at once
            await self._know(lease, version)
        except _NodeGone:
            await lease.discard()
        except Exception as error:
            if isinstance(error, Temporary):
                logs.node_away(error=str(error), retry_in=UNABLE)
            else:
                logs.failed(f"taking the settings of {lease.node}", error=error)
            await asyncio.sleep(UNABLE)
            await lease.give_back()
        else:
            if self._stopping:
                await lease.give_back()
            else:
                self._ready.put_nowait(lease)

    async def _know(self, lease: RabbitLease, version: str) -> None:
        """Take the settings of a task's node, once for each version. Raises _NodeGone, and errors of taking them."""
        node = lease.node
        async with self._applying.setdefault(node, asyncio.Lock()):
            known = self._applied.setdefault(node, OrderedDict())
            if version in known:
                return
            told = (await self._ask(lease.task.queue, node, "settings", {})).fields["result"]
            await self._on_settings(node, told["settings"])
            known[version] = known[told["version"]] = None
            while len(known) > VERSIONS:
                known.popitem(last=False)

    async def say(self, lease: RabbitLease, kind: str, data: bytes = b"") -> None:
        """Tell the node of a task something about it. If it cannot be told, it offers the task again by itself."""
        body = frames.encode(kind, data, token=lease.task.token)
        with suppress(BrokerAway, _NodeGone):
            await self._publish(lease.task.queue, lease.node, body)

    async def _publish(self, queue: str, node: str, body: bytes, *, reply_to: str | None = None) -> None:
        """Publish to a node. Raises _NodeGone, BrokerAway."""
        if (exchange := self._verdicts.get(exchange_for(queue))) is None:
            raise BrokerAway
        message, key = Message(body, reply_to=reply_to, user_id=self._user), verdict_key(node, queue)
        try:
            await safely(exchange.publish(message, key, mandatory=node != EVERY_NODE, timeout=TAKEN))
        except PublishError:
            if self._applied.pop(node, None) is not None:
                await self._on_settings(node, None)
            raise _NodeGone(f"the node {node} is gone") from None

    def answered(self, lease: RabbitLease, data: bytes) -> None:
        """Keep an answer for a task that comes twice."""
        self.done += 1
        if len(data) <= KEPT_SIZE:
            self._answers[lease.task.token] = data
            if len(self._answers) > KEPT:
                self._answers.popitem(last=False)

    async def _report(self) -> None:
        """Tell every node once in a while which tasks are here."""
        while True:
            with suppress(BrokerAway):
                await self._tell()
            await asyncio.sleep(REPORT)

    async def _tell(self) -> None:
        """Tell every node which tasks are here. Raises BrokerAway."""
        for account, queue in {account_of(queue): queue for queue in self._queues}.items():
            tokens = [token for token, lease in self.leases.items() if account_of(lease.task.queue) == account]
            body = frames.encode("working", name=self._name, places=self._places, done=self.done, tokens=tokens)
            await self._publish(queue, EVERY_NODE, body)

    # Calls

    async def call(self, node: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return the result of a call to a node. Raises Temporary without a connection, and the call's errors."""
        return (await self._ask(self._queues[0], node, name, arguments)).fields.get("result")

    async def _ask(self, queue: str, node: str, name: str, arguments: Mapping[str, Any]) -> frames.Frame:
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        body = frames.encode("call", id=number, name=name, arguments=dict(arguments))
        try:
            await self._publish(queue, node, body, reply_to=REPLIES)
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
        task = self.task
        data = encode_answer(Answer(task.message, task.n, task.token, result), MOST)
        if self._end():
            self._consumer.answered(self, data)
            await self._consumer.say(self, "answer", data)
            await self.acknowledge()

    async def give_back(self) -> None:
        """Ask the node to offer the task again."""
        if self._end():
            await self._consumer.say(self, "back")
            await self.acknowledge()

    async def discard(self) -> None:
        """End the lease without an answer."""
        if self._end():
            await self._consumer.say(self, "discard")
            await self.acknowledge()

    async def acknowledge(self) -> None:
        """Have RabbitMQ forget the task. Without a connection another worker gets it."""
        with suppress(BrokerAway):
            await safely(self._message.ack())

    def _end(self) -> bool:
        if self.ended:
            return False
        self.ended = True
        self._consumer.leases.pop(self.task.token, None)
        return True
