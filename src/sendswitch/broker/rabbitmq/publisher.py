"""A node's side of RabbitMQ: offers tasks, and hears what workers say.

A task is known from its offer to its answer. Two things show meanwhile where it is: workers tell once in a while which
tasks they have, and a queue gives tasks out in order, so that one which was overtaken is no longer in it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, PublishError
from aiormq.abc import FieldTable

from sendswitch import logs, metrics
from sendswitch.broker import frames, worker_server
from sendswitch.broker.base import OWN_HAD, Hands, OnAnswer, OnReconnect, ReadContent
from sendswitch.broker.calls import CallsOf, SettingsOf, error_to_json
from sendswitch.broker.codec import MAX_OUTSIDE, decode_answer, encode_task
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.rabbitmq.connection import BrokerAway, Keeper, safely
from sendswitch.broker.rabbitmq.topology import (
    EVERY_NODE,
    OWN,
    SITE,
    VERDICTS,
    account_in,
    account_of,
    declare,
    declare_queue,
)
from sendswitch.errors import Refused, Temporary, in_words
from sendswitch.mail.content import Content, InMemory
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import BROKE, LOST, Deferral
from sendswitch.routing import ALONE, TASKS, is_own

# Bytes of content that go with a task, and with one for workers of a user's own, in whose queue many may wait; a worker
# asks for more, in pieces of PIECE bytes.
INLINE, OWN_INLINE, PIECE = 1024 * 1024, 64 * 1024, 512 * 1024
# Seconds for RabbitMQ to take a task, between two looks at the queues, and after which a silent worker is gone.
TAKEN, LOOK, SILENT = 30.0, 2.0, 10.0
# Seconds behind a task's deadline after which the node answers for a worker that lives, as for one on this machine.
BEHIND = worker_server.BEHIND
# Seconds that a task stays in a queue: the node offers it again for as long as it needs an answer.
EXPIRES = 600
# Contents in memory on their way to RabbitMQ; calls under way; workers that are known.
OFFERS, CALLS, WORKERS = 16, 1_000, 10_000
# The same for one user's own workers, and most bytes of what they say that waits for the node: RabbitMQ refuses more.
OWN_CALLS, OWN_WORKERS, OWN_WAITING = 20, 20, 64 * 1024 * 1024
# Most bytes of what a worker says, of the site's and of others; RabbitMQ 4 takes 16 MiB.
MOST, MOST_OUTSIDE = 12 * 1024 * 1024, MAX_OUTSIDE + 64 * 1024
# The beginning of the only address that a worker may name for the result of a call (direct reply-to).
REPLIES = "amq.rabbitmq.reply-to."


@dataclass(slots=True)
class _Offered:
    """A task without an answer, and where it was last seen.

    `number` counts offers to its queue, `first` is that of its first copy, and `at` is when it was offered. `had` is
    when a worker last said that it has the task, `since` when it first did, 0.0 for never; all in monotonic seconds.
    `beside` is how many tasks that worker had, `noted` whether `Hands` know that it has the task, and `content` what it
    has begun to fetch.
    """

    task: Task
    number: int
    first: int
    at: float
    had: float = 0.0
    since: float = 0.0
    beside: int = 0
    late: bool = False
    noted: bool = False
    content: Content | None = None


@dataclass(slots=True)
class _Queue:
    """The state of one queue as far as it is known: how many offers were made, the number of the last one that a worker
    has got, and how many tasks and workers were in it at the last look (monotonic seconds). `left` is the first
    look that found no worker, 0.0 while there is one, and `asked` when somebody last wanted to know that."""

    offers: int = 0
    taken: int = 0
    depth: int = 0
    looked: float = 0.0
    workers: int = 0
    left: float = 0.0
    asked: float = 0.0


@dataclass(slots=True)
class DistantWorker:
    """A worker that speaks over RabbitMQ; `seen` is monotonic seconds, `since` seconds since the epoch."""

    name: str
    account: str
    places: int
    since: float
    seen: float
    leased: int = 0
    done: int = 0

    @property
    def queue(self) -> str:
        """Return the queue that it consumes."""
        return TASKS + self.account

    @property
    def user(self) -> str:
        """Return whose own worker it is, '' for one of the site."""
        return _owner(self.account)


class RabbitPublisher:
    """A node's side of RabbitMQ (`base.TaskPublisher`). `node` names the node, without a dot.

    `calls` returns what workers may ask of it, and `settings` what they must know.
    """

    def __init__(
        self,
        urls: Sequence[str],
        node: str,
        read: ReadContent,
        calls: CallsOf,
        settings: SettingsOf,
        hands: Hands | None = None,
    ) -> None:
        self._node, self._read, self._calls, self._settings = node, read, calls, settings
        self._hands = hands
        self._keeper = Keeper(urls, self._begin, self._ended, name=f"sendswitch {node}")
        self._known: dict[str, _Offered] = {}
        self._queues: dict[str, _Queue] = {}
        self._workers: dict[tuple[str, str], DistantWorker] = {}
        self._calling: Counter[str] = Counter()
        self._work: set[asyncio.Task[None]] = set()
        self._on_answer: OnAnswer | None = None
        self._on_reconnect: OnReconnect | None = None
        self._channel: AbstractChannel | None = None
        self._offering = asyncio.Semaphore(OFFERS)
        self._connected_before = False
        self._looking: asyncio.Task[None] | None = None

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        """Begin to connect. Never raises: offers wait until RabbitMQ is there."""
        self._on_answer, self._on_reconnect = on_answer, on_reconnect
        self._keeper.start()
        self._looking = self._start(self._look())

    async def offer(self, task: Task) -> None:
        """Put a task into its queue, once RabbitMQ is there. Raises Temporary when it does not take the task."""
        await self._keeper.up.wait()
        async with self._offering:  # so that few contents are in memory
            content = await self._content(task)
            body = _encoded(task, content)
            queue = self._queues.setdefault(task.queue, _Queue())
            queue.offers += 1
            known, now = self._known.get(task.token), time.monotonic()
            first = known.first if known is not None else queue.offers
            self._known[task.token] = _Offered(task, queue.offers, first, now)
            message = Message(
                body,
                message_id=task.token,
                reply_to=self._node,
                headers={"settings": self._version(task.queue)},
                expiration=EXPIRES,
            )
            try:
                await self._publish(message, task.queue)
            except PublishError as error:
                self._known.pop(task.token, None)
                raise Temporary(f"RabbitMQ does not take tasks for {task.queue}") from error
            except BrokerAway:
                pass  # it may be in the queue or not: if not, it is offered again after reconnecting, or when overdue

    async def _content(self, task: Task) -> Content:
        return task.content if not isinstance(task.content, Reference) else await self._read(task.content)

    async def _publish(self, message: Message, queue: str) -> None:
        """Put a message into a queue, which is made where it is missing. Raises PublishError, BrokerAway."""
        if (channel := self._channel) is None:
            raise BrokerAway
        exchange = channel.default_exchange
        try:
            await safely(exchange.publish(message, routing_key=queue, mandatory=True, timeout=TAKEN))
        except PublishError:
            await declare(channel)
            await declare_queue(channel, queue)
            await safely(exchange.publish(message, routing_key=queue, mandatory=True, timeout=TAKEN))

    async def withdraw(self, task: Task) -> None:
        """Forget a task; a worker may still get it, and its answer has no effect."""
        self._known.pop(task.token, None)

    def has(self, task: Task) -> bool:
        """Return whether a worker has the task, or it may still be in its queue."""
        offered = self._known.get(task.token)
        if offered is None:
            return False
        now, queue = time.monotonic(), self._queues[task.queue]
        if now - max(offered.had, offered.at) < SILENT:
            return True
        if offered.had or offered.number < queue.taken or now - offered.at > EXPIRES:
            return False
        return queue.depth > 0 or queue.looked < offered.at

    def absent(self, queue: str) -> float:
        """Return for how many seconds no look has found a worker at a queue; 0.0 while RabbitMQ cannot be reached."""
        known, now = self._queues.setdefault(queue, _Queue()), time.monotonic()
        lately, known.asked = known.asked > now - SILENT, now
        return now - known.left if known.left and lately and self._keeper.up.is_set() else 0.0

    def begun(self, task: Task) -> bool:
        """Return whether a worker said that it has the task."""
        return (offered := self._known.get(task.token)) is not None and offered.had > 0

    async def close(self) -> None:
        """Disconnect. No answer arrives after this."""
        self._on_answer = None
        await self._keeper.stop()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    @property
    def trouble(self) -> str:
        """Return why RabbitMQ cannot be reached, '' while it can."""
        return "" if self._keeper.up.is_set() else self._keeper.trouble or "not connected yet"

    def workers(self) -> list[DistantWorker]:
        """Return the workers that were heard of lately."""
        return list(self._workers.values())

    def _version(self, queue: str) -> str:
        return frames.digest(self._settings(_owner(account_of(queue))))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    # The connection

    async def _begin(self, connection: AbstractConnection) -> None:
        channel = await self._keeper.channel(connection, confirms=True)
        await declare(channel)
        hearing = await self._keeper.channel(connection, confirms=False)
        limits: FieldTable = {"x-max-length-bytes": OWN_WAITING, "x-overflow": "reject-publish"}
        for who, arguments in ((SITE, {}), (f"{OWN}.#", limits)):  # so that no user's workers crowd out the site's
            queue = await safely(hearing.declare_queue("", exclusive=True, arguments=arguments))
            for node in (self._node, EVERY_NODE):
                await safely(queue.bind(VERDICTS, f"{node}.{who}"))
            await safely(queue.consume(self._heard, no_ack=True))
        await self._look_at(connection)
        self._channel, self._connection = channel, connection
        now = time.monotonic()
        for offered in self._known.values():
            offered.at = 0.0  # it may have been lost meanwhile: from now on only what is seen counts
            if offered.had:
                offered.had = now  # its worker has time to say so again
        if self._on_reconnect is not None and self._connected_before:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._on_reconnect)
            loop.call_later(SILENT + LOOK, self._on_reconnect)
        self._connected_before = True

    def _ended(self) -> None:
        self._channel = None

    async def _look(self) -> None:
        """Look at the queues once in a while, and end what workers do not answer."""
        while True:
            await asyncio.sleep(LOOK)
            with suppress(BrokerAway):
                if self._keeper.up.is_set():
                    await self._look_at(self._connection)
            self._forget()

    async def _look_at(self, connection: AbstractConnection) -> None:
        """Learn what is in each queue that has tasks of ours, or that was asked about lately. Raises BrokerAway."""
        lately = time.monotonic() - SILENT
        asked = {name for name, queue in self._queues.items() if queue.asked > lately}
        for name in asked | {offered.task.queue for offered in self._known.values()}:
            # A missing queue closes the channel, so that each look has one of its own.
            channel = connection.channel(publisher_confirms=False)
            await safely(channel.initialize())
            queue, depth, workers = self._queues[name], 0, 0
            try:
                found: AbstractQueue = await safely(channel.declare_queue(name, passive=True))
                depth = found.declaration_result.message_count or 0
                workers = found.declaration_result.consumer_count or 0
                await safely(channel.close())
            except ChannelNotFoundEntity:
                pass  # nothing is in a queue that is not there
            now = queue.looked = time.monotonic()
            queue.depth, queue.workers, queue.left = depth, workers, 0.0 if workers else queue.left or now

    def _forget(self) -> None:
        """Forget workers that are silent, and answer for those that have a task for too long."""
        now = time.monotonic()
        self._workers = {key: one for key, one in self._workers.items() if now - one.seen < SILENT}
        for token, offered in list(self._known.items()):
            if offered.had and now - offered.had > SILENT and not self._queues[offered.task.queue].workers:
                # Nobody is there who could say so.
                self._answer(token, Deferral("the worker that had it is gone", why=LOST))
                continue
            if not offered.since or now - offered.since < offered.task.deadline + BEHIND:
                continue
            if offered.late:
                self._answer(token, Deferral("its worker did not answer in time"))
            offered.late = True  # perhaps it was this process that stood still: what was said meanwhile is read first

    # What workers say

    async def _heard(self, message: AbstractIncomingMessage) -> None:
        routing_key = message.routing_key or ""
        try:
            account = account_in(routing_key, message.user_id)
            if len(message.body) > (MOST if account == SITE else MOST_OUTSIDE):
                raise BadFrame(f"{len(message.body)} bytes")
            self._act(frames.decode(message.body), account, message.reply_to or "")
        except (BadFrame, ValueError) as error:
            metrics.ANSWERS_IGNORED.inc()
            logs.answer_ignored(account=message.user_id or "", key=routing_key, why=str(error))

    def _act(self, frame: Frame, account: str, reply_to: str) -> None:
        """Act on a frame. Raises BadFrame."""
        match frame.kind:
            case "working":
                self._working(frame, account)
            case "call":
                most = CALLS if account == SITE else OWN_CALLS
                if not reply_to.startswith(REPLIES) or self._calling[account] >= most:
                    raise BadFrame(f"a call that wants its answer at {reply_to!r:.100}, or one of more than {most}")
                number, name = frame.get("id", int), frame.get("name", str)
                arguments = frame.get("arguments", dict)
                self._calling[account] += 1
                self._start(self._call(number, name, arguments, account, reply_to))
            case "answer" | "back" | "discard" | "lost" as kind:
                self._ending(kind, frame, account)
            case kind:
                raise BadFrame(f"a worker says no {kind!r:.100}")

    def _mine(self, token: str, account: str) -> _Offered:
        """Return a task that an account's worker may speak of. Raises BadFrame."""
        offered = self._known.get(token)
        if offered is None:
            raise BadFrame("a task that has its answer already, or never was")
        if account_of(offered.task.queue) != account:
            raise BadFrame(f"a task of {account_of(offered.task.queue)}")
        return offered

    def _ending(self, kind: str, frame: Frame, account: str) -> None:
        token = frame.get("token", str)
        offered = self._mine(token, account)
        queue = self._queues[offered.task.queue]
        queue.taken = max(queue.taken, offered.first)
        if kind == "answer":
            try:
                answer = decode_answer(frame.data, outside=account != SITE)
            except ValueError as error:
                raise BadFrame(str(error)) from error
            task = offered.task
            if (answer.message, answer.n, answer.token) != (task.message, task.n, task.token):
                raise BadFrame("an answer for another task than it names")
            self._answer(token, answer.result)
        elif kind == "back":
            self._forget_task(token)
            self._start(self._again(offered.task))
        elif kind == "lost":
            # Only one that was known to be alone with its worker has broken it.
            why = BROKE if offered.task.queue == ALONE and offered.beside == 1 else LOST
            self._answer(token, Deferral("the worker that had it ended", why=why))
        else:
            self._forget_task(token)

    async def _again(self, task: Task) -> None:
        try:
            await self.offer(task)
        except Temporary as error:
            self._answer_for(task, Deferral(str(error)))

    def _answer(self, token: str, result: Any) -> None:
        """Pass on an answer. That a user's own worker had the task stays noted where it was lost (`embedded.lose`)."""
        lost = isinstance(result, Deferral) and result.why == LOST
        offered = self._known.pop(token) if lost else self._forget_task(token)
        self._answer_for(offered.task, result)

    def _forget_task(self, token: str) -> _Offered:
        """Forget a task that no worker has any more, and return it."""
        offered = self._known.pop(token)
        if self._hands is not None and offered.noted:
            self._hands.end(offered.task.message, offered.task.n)
        return offered

    def _note(self, offered: _Offered) -> None:
        """Note that a worker of a user's own has a task (`base.Hands`)."""
        task = offered.task
        if self._hands is not None and is_own(task.queue) and not task.rehearsal:
            self._hands.begin(task.message, task.n, OWN_HAD)
            offered.noted = True

    def _answer_for(self, task: Task, result: Any) -> None:
        if self._on_answer is not None:
            self._on_answer(Answer(task.message, task.n, task.token, result))

    def _working(self, frame: Frame, account: str) -> None:
        """Note that a worker lives, and what it has."""
        now, tokens = time.monotonic(), frame.get("tokens", list)
        name = frame.get("name", str)[:100]
        worker = self._workers.get((account, name))
        if worker is None:
            most = WORKERS if account == SITE else OWN_WORKERS
            if sum(one.account == account for one in self._workers.values()) >= most:
                raise BadFrame(f"more than {most} workers of {account}")
            worker = DistantWorker(name, account, frame.get("places", int), time.time(), now)
            self._workers[account, name] = worker
        worker.seen, worker.leased, worker.done = now, len(tokens), frame.get("done", int)
        for token in tokens:
            offered = self._known.get(token) if isinstance(token, str) else None
            if offered is not None and account_of(offered.task.queue) == account:
                if not offered.noted:
                    self._note(offered)
                offered.had, offered.since, offered.beside = now, offered.since or now, len(tokens)
                queue = self._queues[offered.task.queue]
                queue.taken = max(queue.taken, offered.first)

    # Calls

    async def _call(self, number: int, name: str, arguments: Mapping[str, Any], account: str, reply_to: str) -> None:
        try:
            body = await self._result_frame(number, name, arguments, account)
        finally:
            self._calling -= Counter((account,))
        if self._channel is not None:
            with suppress(BrokerAway):  # the worker asks again, or has gone
                exchange = self._channel.default_exchange
                await safely(exchange.publish(Message(body), routing_key=reply_to, mandatory=False, timeout=TAKEN))

    async def _result_frame(self, number: int, name: str, arguments: Mapping[str, Any], account: str) -> bytes:
        """Return the frame with the result of a call, or with its error."""
        try:
            result, data = await self._result(name, arguments, account)
            body = frames.encode("result", data, id=number, result=result)
        except (KeyError, TypeError, ValueError) as error:
            body = frames.encode("result", id=number, **error_to_json(Refused(f"{name}: {error!r:.200}")))
        except Exception as error:
            body = frames.encode("result", id=number, **error_to_json(error))
        if len(body) > MOST:
            large = Temporary(f"the result of {name} has {len(body)} bytes; RabbitMQ takes {MOST} at most")
            body = frames.encode("result", id=number, **error_to_json(large))
        return body

    async def _result(self, name: str, arguments: Mapping[str, Any], account: str) -> tuple[Any, bytes]:
        """Return the result of a call. Raises its errors."""
        if name == "settings":
            settings = dict(self._settings(_owner(account)))
            return {"settings": settings, "version": frames.digest(settings)}, b""
        if name == "content":
            return None, await self._piece(str(arguments["token"]), int(arguments["start"]), account)
        calls = self._calls(_owner(account))
        if name not in calls:
            raise Refused(f"{name} is not for workers of {account}")
        return await calls[name](arguments), b""

    async def _piece(self, token: str, start: int, account: str) -> bytes:
        """Return a piece of the content of a task that a worker has. Raises Temporary, Refused."""
        try:
            offered = self._mine(token, account)
        except BadFrame as error:
            raise Refused(str(error)) from error
        if offered.content is None:
            offered.content = await self._content(offered.task)
        try:
            return await asyncio.to_thread(_cut, offered.content, start)
        except OSError as error:
            raise Temporary(in_words(error)) from error


def _owner(account: str) -> str:
    """Return the user whose own workers an account stands for, '' for the site's."""
    return "" if account == SITE else account


def _cut(content: Content, start: int) -> bytes:
    out = b""
    for piece in content.chunks(start):
        out += piece
        if len(out) >= PIECE:
            return out[:PIECE]
    return out


def _encoded(task: Task, content: Content) -> bytes:
    """Return a task with its content, or with a reference to content that the worker has to ask for."""
    if content.size <= (OWN_INLINE if is_own(task.queue) else INLINE) and (whole := content.whole()) is not None:
        return encode_task(replace(task, content=InMemory(whole)))
    return encode_task(replace(task, content=Reference(task.message, content.size, task.digest)))
