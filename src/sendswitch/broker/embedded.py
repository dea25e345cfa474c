"""The broker that needs nothing: queues in the memory of this process, for one machine.

It is memory over the spool: what a crash loses here, the switch offers again.
"""

from __future__ import annotations

import asyncio
from collections import deque

from sendswitch.broker.base import Listener
from sendswitch.mail.task import Task
from sendswitch.mail.verdict import PipelineResult


class EmbeddedLease:
    """A task in a worker's hands."""

    __slots__ = ("_broker", "_done", "task")

    def __init__(self, broker: EmbeddedBroker, task: Task) -> None:
        self._broker, self.task, self._done = broker, task, False

    async def answer(self, answer: PipelineResult) -> None:
        """Hand the answer to the listener at once."""
        self._done = True
        self._broker.ended(self.task)
        self._broker.answered(self.task, answer)

    async def give_back(self) -> None:
        """Put the task at the front of its queue."""
        if not self._done:
            self._done = True
            self._broker.put_back(self.task)

    def drop(self) -> None:
        """Drop a task whose worker failed. No worker has it any more."""
        self._done = True
        self._broker.ended(self.task)


class EmbeddedBroker:
    """Queues by name; each task goes to one waiting worker."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Task]] = {}
        self._waiting: deque[tuple[tuple[str, ...], asyncio.Future[Task]]] = deque()
        self._listener: Listener | None = None
        self._known: set[Task] = set()

    async def offer(self, task: Task) -> None:
        """Hand the task to a worker that waits, or queue it."""
        self._known.add(task)
        if not self._hand_over(task):
            self._queues.setdefault(task.queue, deque()).append(task)

    async def withdraw(self, task: Task) -> None:
        """Drop the task from its queue if no worker has it yet."""
        self._known.discard(task)
        queue = self._queues.get(task.queue)
        if queue is not None:
            try:
                queue.remove(task)
            except ValueError:
                return

    def has(self, task: Task) -> bool:
        """Return whether it is queued or leased."""
        return task in self._known

    async def lease(self, queues: tuple[str, ...]) -> EmbeddedLease:
        """Return the oldest task of these queues, waiting for one if there is none."""
        for name in queues:
            queue = self._queues.get(name)
            if queue:
                return EmbeddedLease(self, queue.popleft())
        future: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
        entry = (queues, future)
        self._waiting.append(entry)
        try:
            return EmbeddedLease(self, await future)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.put_back(future.result())
            raise

    def listen(self, listener: Listener) -> None:
        """Hear every answer from now on."""
        self._listener = listener

    # For the leases

    def answered(self, task: Task, answer: PipelineResult) -> None:
        """Pass an answer on."""
        if self._listener is not None:
            self._listener(task.message, task.n, task.token, answer)

    def ended(self, task: Task) -> None:
        """Note that a lease ended."""
        self._known.discard(task)

    def put_back(self, task: Task) -> None:
        """Put back a task that was not done."""
        if task not in self._known:
            return  # it was withdrawn meanwhile
        if not self._hand_over(task):
            self._queues.setdefault(task.queue, deque()).appendleft(task)

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
