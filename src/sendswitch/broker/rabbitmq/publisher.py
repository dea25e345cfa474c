"""A node's side of RabbitMQ: offers tasks, and hears what workers say.

A task is known from its offer to its answer. Two things show meanwhile where it is: workers tell once in a while which
tasks they have, and a queue gives tasks out in order, so that one which was overtaken is no longer in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, PublishError
from aiormq.abc import FieldTable

from sendswitch import logs, metrics
from sendswitch.broker import frames, worker_server
from sendswitch.broker.base import OWN_HAD, Hands, OnAnswer, OnReconnect, ReadContent
from sendswitch.broker.calls import CallsOf, SettingsOf
from sendswitch.broker.codec import MAX_OUTSIDE, decode_answer, encode_task
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.rabbitmq import Hosts
from sendswitch.broker.rabbitmq.connection import BrokerAway, Keeper, NotTaken, open_channel, safely
from sendswitch.broker.rabbitmq.sender import Sender
from sendswitch.broker.rabbitmq.served_calls import MOST, ServedCalls
from sendswitch.broker.rabbitmq.topology import (
    EVERY_NODE,
    OWN_VERDICTS,
    SITE,
    VERDICTS,
    account_in,
    account_of,
    declare,
    declare_exchanges,
    owner_of,
)
from sendswitch.broker.streams import OWN_MOST
from sendswitch.errors import Temporary
from sendswitch.mail.content import Content, InMemory
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import BROKE, LOST, Deferral, PipelineResult
from sendswitch.routing import ALONE, POOL, TASKS, is_own

# Bytes of content that go with a task, and with one for workers of a user's own, in whose queue many may wait; a worker
# asks for more.
INLINE, OWN_INLINE = 1024 * 1024, 64 * 1024
# Seconds for RabbitMQ to take the result of a call, between two looks at the queues, and after which a silent worker is
# gone.
REPLIED, LOOK, SILENT = 30.0, 2.0, 10.0
# Seconds behind a task's deadline after which the node answers for a worker that lives, as for one on this machine.
BEHIND = worker_server.BEHIND
# Seconds that a task stays in a queue: the node offers it again for as long as it needs an answer.
EXPIRES = 600
# Contents in memory on their way to RabbitMQ; workers that are listed.
OFFERS, WORKERS = 16, 10_000
# Bytes of what all users' workers say that wait for the node: RabbitMQ refuses more.
OWN_WAITING = 64 * 1024 * 1024
# Most bytes of what a worker of a user's own says.
MOST_OUTSIDE = MAX_OUTSIDE + 64 * 1024
# Characters of the reason why something that a worker said is ignored.
REASON = 200


@dataclass(slots=True)
class _Offered:
    """A task without an answer, and where it was last seen.

    `number` counts offers to its queue, `first` is that of its first copy, `at` is when it was offered, and `doubted`
    when the connection was made again, since which only what is seen counts, 0.0 for never. `had` is
    when a worker last said that it has the task, `since` when it first did, 0.0 for never; all in monotonic seconds.
    `beside` is how many tasks that worker had. `begun` is whether any worker ever had it, and `noted` whether `Hands`
    know that.
    """

    task: Task
    number: int
    first: int
    at: float
    had: float = 0.0
    since: float = 0.0
    beside: int = 0
    late: bool = False
    begun: bool = False
    noted: bool = False
    doubted: float = 0.0


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
        return owner_of(self.account)


class RabbitPublisher:
    """A node's side of RabbitMQ (`base.TaskPublisher`). `node` names the node, without a dot.

    `calls` returns what workers may ask of it, and `settings` what they must know.
    """

    def __init__(
        self,
        hosts: Hosts,
        node: str,
        read: ReadContent,
        calls: CallsOf,
        settings: SettingsOf,
        hands: Hands | None = None,
    ) -> None:
        self._node, self._read, self._settings, self._hands = node, read, settings, hands
        self._keeper = Keeper(hosts.urls, self._begin, self._ended, name=f"sendswitch {node}")
        # Users' workers are heard over a connection of their own, which one of them may break.
        self._own_keeper = Keeper(hosts.urls, self._begin_own, lambda: None, name=f"sendswitch {node}, users' workers")
        self._served = ServedCalls(
            calls, settings, lambda token, account: self._mine(token, account).task, self._content, self._reply
        )
        self._known: dict[str, _Offered] = {}
        self._queues: dict[str, _Queue] = {}
        self._workers: dict[tuple[str, str], DistantWorker] = {}
        self._told: set[str] = set()  # whose mistakes were logged since the last look
        self._work: set[asyncio.Task[None]] = set()
        self._on_answer: OnAnswer | None = None
        self._on_reconnect: OnReconnect | None = None
        self._queue_type = hosts.queue_type
        self._sender = Sender(self._keeper, hosts.queue_type)
        self._offering = asyncio.Semaphore(OFFERS)
        self._connected_before = False
        self._look_now = asyncio.Event()

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        """Begin to connect. Never raises: offers wait until RabbitMQ is there."""
        self._on_answer, self._on_reconnect = on_answer, on_reconnect
        self._keeper.start()
        self._start(self._look())

    async def offer(self, task: Task) -> None:
        """Put a task into its queue, once RabbitMQ is there. Raises Temporary when it does not take the task."""
        await self._keeper.up.wait()
        if is_own(task.queue):
            self.hear_own()
            await self._own_keeper.up.wait()
        pauses = iter(self._sender.pauses(task.queue))
        while not await self._taken(task):
            if (pause := next(pauses, None)) is None:
                self._sender.give_up(task.queue)
                if task.token in self._known:
                    self._forget_task(task.token)
                    raise Temporary(f"RabbitMQ does not take tasks for {task.queue}")
            else:
                await asyncio.sleep(pause)
            if task.token not in self._known:
                return  # it has its answer: a copy of it was taken
            with suppress(BrokerAway):
                await self._sender.reopen(task.queue)
            await self._keeper.up.wait()

    async def _taken(self, task: Task) -> bool:
        """Put a task into its queue. Return False when RabbitMQ refuses it. Raises Temporary."""
        async with self._offering:  # so that few contents are in memory
            content = await self._content(task)
            body = _encoded(task, content)
            queue = self._queues.setdefault(task.queue, _Queue())
            queue.offers += 1
            known, now = self._known.get(task.token), time.monotonic()
            if known is None:
                self._known[task.token] = _Offered(task, queue.offers, queue.offers, now)
            else:
                self._known[task.token] = replace(
                    known, number=queue.offers, at=now, had=0.0, since=0.0, beside=0, late=False, doubted=0.0
                )
            message = Message(
                body,
                message_id=task.token,
                reply_to=self._node,
                headers={"settings": self._version(task.queue)},
                expiration=EXPIRES,
            )
            try:
                await self._sender.put(message, task.queue)
            except (PublishError, NotTaken):
                return False
            except BrokerAway:
                pass  # it may be in the queue or not: if not, it is offered again after reconnecting, or when overdue
            except Temporary:
                self._known.pop(task.token, None)
                raise
            return True

    def hear_own(self) -> None:
        """Hear the workers of users' own from now on."""
        self._own_keeper.start()

    async def _content(self, task: Task) -> Content:
        return task.content if not isinstance(task.content, Reference) else await self._read(task.content)

    async def withdraw(self, task: Task) -> None:
        """Forget a task; a worker may still get it, and its answer has no effect."""
        self._known.pop(task.token, None)

    def has(self, task: Task) -> bool:
        """Return whether a worker has the task, or it may still be in its queue."""
        offered = self._known.get(task.token)
        if offered is None:
            return False
        now, queue = time.monotonic(), self._queues[task.queue]
        if now - max(offered.had, 0.0 if offered.doubted else offered.at) < SILENT:
            return True
        if offered.had or offered.number < queue.taken or now - offered.at > EXPIRES:
            return False
        return queue.depth > 0 or queue.looked < max(offered.at, offered.doubted)

    def absent(self, queue: str) -> float:
        """Return for how many seconds no look has found a worker at a queue; 0.0 while nobody looks there, or RabbitMQ
        cannot be reached.
        """
        known, now = self._queues.setdefault(queue, _Queue()), time.monotonic()
        known.asked = now
        if not self._keeper.up.is_set() or (is_own(queue) and not self._own_keeper.up.is_set()):
            return 0.0
        return now - known.left if known.left and now - known.looked < SILENT else 0.0

    def begun(self, task: Task) -> bool:
        """Return whether a worker said that it has the task."""
        return (offered := self._known.get(task.token)) is not None and offered.begun

    async def close(self) -> None:
        """Disconnect. No answer arrives after this."""
        self._on_answer = None
        await self._keeper.stop()
        await self._own_keeper.stop()
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
        return frames.digest(self._settings(owner_of(account_of(queue))))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    # The connection

    async def _begin(self, connection: AbstractConnection) -> None:
        channel = await self._keeper.channel(connection, confirms=True)
        await declare(connection, self._queue_type)
        await self._hear(self._keeper, connection, VERDICTS, {})
        self._doubt(lambda task: True)
        for queue in self._queues.values():
            queue.left = 0.0  # workers have time to connect again, too
        await self._look_at(connection, {POOL, ALONE} & self._queues.keys())  # before anything new comes there
        if self._connected_before:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._reconnected)
            self._look_now.set()
            loop.call_later(SILENT + LOOK, self._reconnected)
        self._connected_before = True
        self._connection = connection
        self._sender.connected(connection, channel)

    async def _begin_own(self, connection: AbstractConnection) -> None:
        limits: FieldTable = {"x-max-length-bytes": OWN_WAITING, "x-overflow": "reject-publish"}
        await declare_exchanges(connection)
        await self._hear(self._own_keeper, connection, OWN_VERDICTS, limits)
        self._doubt(lambda task: is_own(task.queue))

    async def _hear(self, keeper: Keeper, connection: AbstractConnection, exchange: str, arguments: FieldTable) -> None:
        """Hear what workers say, from a queue that goes with the connection."""
        channel = await keeper.channel(connection, confirms=False)
        queue = await safely(channel.declare_queue("", exclusive=True, arguments=arguments))
        for node in (self._node, EVERY_NODE):
            await safely(queue.bind(exchange, f"{node}.#"))
        await safely(queue.consume(self._heard, no_ack=True))

    def _doubt(self, of: Callable[[Task], bool]) -> None:
        """Note that tasks may have been lost meanwhile: from now on only what is seen counts."""
        now = time.monotonic()
        for offered in self._known.values():
            if of(offered.task):
                offered.doubted = now
                if offered.had:
                    offered.had = now  # its worker has time to say so again

    def _ended(self) -> None:
        self._sender.ended()

    def _reconnected(self) -> None:
        if self._on_reconnect is not None:
            self._on_reconnect()

    async def _look(self) -> None:
        """Look at the queues once in a while, and end what workers do not answer."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._look_now.wait()
            again = self._look_now.is_set()
            self._look_now.clear()
            try:
                if self._keeper.up.is_set():
                    await self._look_at(self._connection, self._asked())
                    if again:
                        self._reconnected()
            except BrokerAway:
                pass
            except Exception as error:  # without looks, mail would wait for workers that are gone
                logs.failed("looking at the queues in RabbitMQ", error=error)
            self._told.clear()
            self._served.next_period()
            self._forget()

    def _asked(self) -> set[str]:
        """Return the queues that have tasks of ours, or that were asked about lately."""
        lately = time.monotonic() - SILENT
        asked = {name for name, queue in self._queues.items() if queue.asked > lately}
        return asked | {offered.task.queue for offered in self._known.values()}

    async def _look_at(self, connection: AbstractConnection, names: Iterable[str]) -> None:
        """Learn what is in these queues. Raises BrokerAway."""
        for name in names:
            # A missing queue closes the channel, so that each look has one of its own.
            channel = await open_channel(connection, confirms=False)
            queue, depth, workers = self._queues[name], 0, 0
            try:
                found: AbstractQueue = await safely(channel.declare_queue(name, passive=True))
                depth = found.declaration_result.message_count or 0
                workers = found.declaration_result.consumer_count or 0
            except ChannelNotFoundEntity:
                pass  # nothing is in a queue that is not there
            finally:
                await safely(channel.close())
            now = queue.looked = time.monotonic()
            queue.depth, queue.workers, queue.left = depth, workers, 0.0 if workers else queue.left or now

    def _forget(self) -> None:
        """Forget workers that are silent, and answer for those that have a task for too long."""
        now = time.monotonic()
        self._workers = {key: one for key, one in self._workers.items() if now - one.seen < SILENT}
        for token, offered in list(self._known.items()):
            if is_own(offered.task.queue) and not self._own_keeper.up.is_set():
                continue  # they may say something that nobody hears
            if offered.had and now - offered.had > SILENT and not self._queues[offered.task.queue].workers:
                # Nobody is there who could say so.
                self._answer(token, Deferral("the worker that had it is gone", why=LOST))
                continue
            if not offered.had and now - offered.at > 2 * EXPIRES:
                self._forget_task(token)  # nobody asks for it any more, or it would have been offered again
            if not offered.since or now - offered.since < offered.task.deadline + BEHIND:
                continue
            if offered.late:
                self._answer(token, Deferral("its worker did not answer in time"))
            offered.late = True  # perhaps it was this process that stood still: what was said meanwhile is read first

    # What workers say

    async def _heard(self, message: AbstractIncomingMessage) -> None:
        routing_key = message.routing_key or ""
        try:
            account = account_in(message.exchange or "", routing_key, message.user_id)
            if len(message.body) > (MOST if account == SITE else MOST_OUTSIDE):
                raise BadFrame(f"{len(message.body)} bytes")
            self._act(frames.decode(message.body), account, message.reply_to or "")
        except (BadFrame, ValueError) as error:
            metrics.ANSWERS_IGNORED.inc()
            if (said_by := message.user_id or "") not in self._told:  # one line a look for each of them
                self._told.add(said_by)
                logs.answer_ignored(account=said_by, key=routing_key[:REASON], why=storable(str(error), REASON))

    def _act(self, frame: Frame, account: str, reply_to: str) -> None:
        """Act on a frame. Raises BadFrame."""
        match frame.kind:
            case "working":
                self._working(frame, account)
            case "call":
                self._start(self._served.call(frame, account, reply_to))
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
            self._answer(token, _result(offered.task, frame.data, outside=account != SITE))
        elif kind == "lost":
            # Only one that was known to be alone with its worker has broken it.
            why = BROKE if offered.task.queue == ALONE and offered.beside == 1 else LOST
            self._answer(token, Deferral("the worker that had it ended", why=why))
        elif account != SITE:  # what it had and did not answer waits, whatever it says about it
            self._answer(token, Deferral("its worker could not answer", why=LOST))
        else:
            self._forget_task(token)
            if kind == "back":
                self._start(self._again(offered.task))

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
        places, done = frame.get("places", int), frame.get("done", int)
        for token in tokens:
            offered = self._known.get(token) if isinstance(token, str) else None
            if offered is not None and account_of(offered.task.queue) == account:
                if not offered.noted:
                    self._note(offered)
                offered.had, offered.since, offered.beside = now, offered.since or now, len(tokens)
                offered.begun = True
                queue = self._queues[offered.task.queue]
                queue.taken = max(queue.taken, offered.first)
        if (worker := self._workers.get((account, name))) is None:
            most = WORKERS if account == SITE else OWN_MOST
            if sum(one.account == account for one in self._workers.values()) >= most:
                raise BadFrame(f"more than {most} workers of {account}")
            worker = self._workers[account, name] = DistantWorker(name, account, places, time.time(), now)
        worker.seen, worker.leased, worker.done = now, len(tokens), done

    # For calls

    async def _reply(self, body: bytes, reply_to: str) -> None:
        """Send the result of a call. A worker that does not get it asks again."""
        if (channel := self._sender.channel) is not None:
            exchange = channel.default_exchange
            with suppress(BrokerAway):
                await safely(exchange.publish(Message(body), routing_key=reply_to, mandatory=False, timeout=REPLIED))


def _result(task: Task, data: bytes, *, outside: bool) -> PipelineResult:
    """Return what an answer to a task says. One that cannot be used puts the mail off."""
    try:
        answer = decode_answer(data, outside=outside)
        if (answer.message, answer.n, answer.token) == (task.message, task.n, task.token):
            return answer.result
        why = "it is for another task"
    except ValueError as error:
        why = storable(str(error), REASON)
    return Deferral(f"the answer of its worker cannot be used: {why}")


def _encoded(task: Task, content: Content) -> bytes:
    """Return a task with its content, or with a reference to content that the worker has to ask for."""
    if content.size <= (OWN_INLINE if is_own(task.queue) else INLINE) and (whole := content.whole()) is not None:
        return encode_task(replace(task, content=InMemory(whole)))
    return encode_task(replace(task, content=Reference(task.message, content.size, task.digest)))
