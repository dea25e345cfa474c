"""The broker that needs nothing: queues in the memory of this process, for one machine.

It is memory over the spool: what a crash loses here, the node offers again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from sendswitch.broker.base import OnAnswer, OnReconnect, ReadContent
from sendswitch.mail.content import Content
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import PipelineResult


class EmbeddedBroker:
    """Queues by name; each task goes to one waiting worker."""

    def __init__(self) -> None:
        self._queues: dict[str, OrderedDict[str, Task]] = {}  # by the name of the queue, and by token
        self._waiting: deque[tuple[tuple[str, ...], asyncio.Future[Task]]] = deque()
        # The listener of each task that is queued or leased, by token.
        self._known: dict[str, OnAnswer] = {}

    def publisher(self) -> EmbeddedPublisher:
        """Return a node's side."""
        return EmbeddedPublisher(self)

    def consumer(self, read: ReadContent) -> EmbeddedConsumer:
        """Return a worker's side, which reads the content of references with `read`."""
        return EmbeddedConsumer(self, read)

    # For the two sides

    def put(self, task: Task, on_answer: OnAnswer) -> None:
        """Hand the task to a worker that waits, or queue it."""
        self._known[task.token] = on_answer
        if not self._hand_over(task):
            self._queues.setdefault(task.queue, OrderedDict())[task.token] = task

    def put_back(self, task: Task) -> None:
        """Put a task that was not done at the front of its queue, unless it was withdrawn meanwhile."""
        if task.token in self._known and not self._hand_over(task):
            queue = self._queues.setdefault(task.queue, OrderedDict())
            queue[task.token] = task
            queue.move_to_end(task.token, last=False)

    def remove(self, task: Task) -> None:
        """Forget a task, and drop it from its queue if no worker has it yet."""
        self._known.pop(task.token, None)
        if (queue := self._queues.get(task.queue)) is not None:
            queue.pop(task.token, None)

    def has(self, task: Task) -> bool:
        """Return whether a task is queued or leased."""
        return task.token in self._known

    async def take(self, queues: tuple[str, ...]) -> Task:
        """Return the oldest task of the first of these queues that has one; wait if none has."""
        for name in queues:
            if queue := self._queues.get(name):
                return queue.popitem(last=False)[1]
        future: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
        self._waiting.append((queues, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.put_back(future.result())
            raise

    def end(self, task: Task, result: PipelineResult | None = None) -> None:
        """Forget a task whose lease ended, and pass on its answer if there is one."""
        on_answer = self._known.pop(task.token, None)
        if result is not None and on_answer is not None:
            on_answer(Answer(task.message, task.n, task.token, result))

    def _hand_over(self, task: Task) -> bool:
        for _ in range(len(self._waiting)):
            queues, future = self._waiting.popleft()
            if future.done():
                continue
            if task.queue in queues:
                future.set_result(task)
                return True
            self._waiting.append((queues, future))
        return False


class EmbeddedPublisher:
    """A node's side of the broker in its own process, which is always connected."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._on_answer: OnAnswer | None = None

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        """Pass on every answer from now on."""
        self._on_answer = on_answer

    async def offer(self, task: Task) -> None:
        """Hand the task to a worker that waits, or queue it."""
        self._broker.put(task, self._answered)

    async def withdraw(self, task: Task) -> None:
        """Drop the task from its queue if no worker has it yet."""
        self._broker.remove(task)

    def has(self, task: Task) -> bool:
        """Return whether the task is queued or leased."""
        return self._broker.has(task)

    async def close(self) -> None:
        """Pass on no more answers."""
        self._on_answer = None

    def _answered(self, answer: Answer) -> None:
        if self._on_answer is not None:
            self._on_answer(answer)


class EmbeddedLease:
    """A task that a worker in this process has."""

    __slots__ = ("_broker", "_consumer", "_read", "task")

    def __init__(self, broker: EmbeddedBroker, consumer: EmbeddedConsumer, read: ReadContent, task: Task) -> None:
        self._broker, self._consumer, self._read, self.task = broker, consumer, read, task

    async def content(self) -> Content:
        """Return the task's content. Raises Temporary when it cannot be read."""
        content = self.task.content
        return await self._read(content) if isinstance(content, Reference) else content

    async def answer(self, result: PipelineResult) -> None:
        """Pass the answer on at once."""
        if self._consumer.ended(self):
            self._broker.end(self.task, result)

    async def give_back(self) -> None:
        """Put the task at the front of its queue."""
        if self._consumer.ended(self):
            self._broker.put_back(self.task)

    async def discard(self) -> None:
        """Forget the task. No worker has it any more."""
        if self._consumer.ended(self):
            self._broker.end(self.task)


class EmbeddedConsumer:
    """A worker's side of the broker in its own process, which is always connected."""

    def __init__(self, broker: EmbeddedBroker, read: ReadContent) -> None:
        self._broker, self._read = broker, read
        self._leases: set[EmbeddedLease] = set()

    async def open(self) -> None:
        """Do nothing: there is no connection."""

    async def lease(self, queues: tuple[str, ...]) -> EmbeddedLease:
        """Wait for a task from any of these queues. Raises asyncio.CancelledError only."""
        lease = EmbeddedLease(self._broker, self, self._read, await self._broker.take(queues))
        self._leases.add(lease)
        return lease

    async def close(self) -> None:
        """Give back every task that has no answer."""
        for lease in list(self._leases):
            await lease.give_back()

    def ended(self, lease: EmbeddedLease) -> bool:
        """Note that a lease ends. Returns whether it had not ended before."""
        if lease not in self._leases:
            return False
        self._leases.discard(lease)
        return True
