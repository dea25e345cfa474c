"""The broker that needs nothing: queues in the memory of this process, for one machine.

It is memory over the spool: what a crash loses here, the node offers again. Workers in this process take tasks from it
directly, those in other processes through `broker.worker_server`.

No user fills a queue for the others. Users take turns, and within a pipeline its recipients do. Each has a limit that
grows with the free places of the workers: one user alone gets most of them, and the next one still finds a free place.
Buffers of network switches are shared in this way (Choudhury and Hahne, "Dynamic queue length thresholds", 1998).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque

from sendswitch.broker.base import OWN_HAD, Hands, OnAnswer, OnReconnect, ReadContent
from sendswitch.mail.address import key
from sendswitch.mail.content import Content
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import BROKE, LOST, Deferral, PipelineResult
from sendswitch.routing import HERE, is_own

# Most places of one pipeline, and of one recipient, for each place that is free.
PIPELINE_SHARE, RECIPIENT_SHARE = 4, 2

_Tasks = OrderedDict[str, Task]  # by token


class FairQueue:
    """The waiting tasks of one queue, and how many of each user the workers have.

    `places` is how many tasks the workers can have at once, 0 for any number. `left` is when the last of them went
    (monotonic seconds), or when the queue was first heard of.
    """

    def __init__(self) -> None:
        self.places = 0
        self.left = time.monotonic()
        # By the pipeline's owner and then by recipient, each in the order of their turns.
        self._waiting: OrderedDict[str, OrderedDict[str, _Tasks]] = OrderedDict()
        self._leased = 0
        self._leased_by: Counter[tuple[str, ...]] = Counter()

    def put(self, task: Task) -> None:
        """Add a task behind those of the same recipient."""
        owner, recipient = _whose(task)
        self._waiting.setdefault(owner, OrderedDict()).setdefault(recipient, OrderedDict())[task.token] = task

    def put_first(self, task: Task) -> None:
        """Add a task before all others."""
        self.put(task)
        owner, recipient = _whose(task)
        recipients = self._waiting[owner]
        recipients[recipient].move_to_end(task.token, last=False)
        recipients.move_to_end(recipient, last=False)
        self._waiting.move_to_end(owner, last=False)

    def take(self) -> Task | None:
        """Return the task whose turn it is, which a worker has from now on; None when no task may have a place."""
        free = self.places - self._leased
        for owner, recipients in self._waiting.items():
            if not self._may(free, PIPELINE_SHARE, owner):
                continue
            for recipient, tasks in recipients.items():
                if self._may(free, RECIPIENT_SHARE, owner, recipient):
                    return self._taken(owner, recipient, tasks)
        return None

    def _may(self, free: int, share: int, *whose: str) -> bool:
        """Return whether a user may have one more place."""
        return not self.places or self._leased_by[whose] < max(1, share * free)

    def _taken(self, owner: str, recipient: str, tasks: _Tasks) -> Task:
        task = tasks.popitem(last=False)[1]
        recipients = self._waiting[owner]
        recipients.move_to_end(recipient)
        self._waiting.move_to_end(owner)
        self._forget_empty(owner, recipient)
        self._leased += 1
        self._leased_by[owner,] += 1
        self._leased_by[owner, recipient] += 1
        return task

    def ended(self, task: Task) -> None:
        """Free the place of a task that a worker had."""
        owner, recipient = _whose(task)
        self._leased -= 1
        for whose in ((owner,), (owner, recipient)):
            self._leased_by[whose] -= 1
            if not self._leased_by[whose]:
                del self._leased_by[whose]

    def remove(self, task: Task) -> None:
        """Remove a task that still waits."""
        owner, recipient = _whose(task)
        recipients = self._waiting.get(owner)
        if recipients is not None and (tasks := recipients.get(recipient)) is not None:
            tasks.pop(task.token, None)
            self._forget_empty(owner, recipient)

    def _forget_empty(self, owner: str, recipient: str) -> None:
        recipients = self._waiting[owner]
        if not recipients[recipient]:
            del recipients[recipient]
            if not recipients:
                del self._waiting[owner]


def _whose(task: Task) -> tuple[str, str]:
    """Return whose turn and share a task takes. All candidates are as one user, so that they delay no live mail."""
    return "" if task.rehearsal else task.pipeline, key(task.recipient.address)


class EmbeddedBroker:
    """Queues by name; each task goes to one waiting worker."""

    def __init__(self, hands: Hands | None = None) -> None:
        self._hands = hands
        self._queues: dict[str, FairQueue] = {}
        self._waiting: dict[str, deque[asyncio.Future[Task]]] = {}
        # The listener of each task that is queued or leased, by token.
        self._known: dict[str, OnAnswer] = {}
        self._leased: set[str] = set()  # the tokens of those that a worker has

    def publisher(self) -> EmbeddedPublisher:
        """Return a node's side."""
        return EmbeddedPublisher(self)

    def consumer(self, read: ReadContent) -> EmbeddedConsumer:
        """Return a worker's side, which reads the content of references with `read`."""
        return EmbeddedConsumer(self, read)

    # For the node's side

    def put(self, task: Task, on_answer: OnAnswer) -> None:
        """Hand the task to a worker that waits, or queue it."""
        self._known[task.token] = on_answer
        self._queue(task.queue).put(task)
        self._hand_over(task.queue)

    def remove(self, task: Task) -> None:
        """Forget a task, and drop it from its queue if no worker has it yet."""
        if self._known.pop(task.token, None) is not None:
            self._queue(task.queue).remove(task)
            self._leased.discard(task.token)

    def has(self, task: Task) -> bool:
        """Return whether a task is queued or leased."""
        return task.token in self._known

    def leased(self, task: Task) -> bool:
        """Return whether a worker has a task."""
        return task.token in self._leased

    def absent(self, queue: str) -> float:
        """Return for how many seconds no worker with places has taken tasks from a queue, or had some."""
        known = self._queue(queue)
        return 0.0 if known.places > 0 else time.monotonic() - known.left

    # For workers

    def add_places(self, queue: str, places: int) -> None:
        """Count places of a worker for the shares of users; a number below zero when it leaves."""
        known = self._queue(queue)
        known.places += places
        if known.places <= 0:
            known.left = time.monotonic()
        self._hand_over(queue)

    async def take(self, queues: tuple[str, ...]) -> Task:
        """Return the next task of the first of these queues that has one; wait if none has."""
        for name in queues:
            if (task := self._queue(name).take()) is not None:
                return self._begun(task)
        future: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
        for name in queues:
            self._waiting.setdefault(name, deque()).append(future)
        try:
            return self._begun(await future)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._free(task := future.result())
                self._again(task)
            raise
        finally:
            for name in queues:
                if future in (waiting := self._waiting[name]):
                    waiting.remove(future)

    def put_back(self, task: Task) -> None:
        """Put a task that was not done at the front of its queue, unless it was withdrawn meanwhile."""
        self._ended(task)
        self._again(task)

    def end(self, task: Task, result: PipelineResult | None = None) -> None:
        """Forget a task whose lease ended, and pass on its answer if there is one."""
        self._ended(task)
        if result is not None:
            self.answer(task, result)
        self._known.pop(task.token, None)

    def answer(self, task: Task, result: PipelineResult) -> None:
        """Pass on an answer for a worker that still has the task. What it says itself comes too late."""
        if (on_answer := self._known.pop(task.token, None)) is not None:
            on_answer(Answer(task.message, task.n, task.token, result))

    def lose(self, task: Task, why: str, *, alone: bool) -> None:
        """Forget a task whose worker died with it, and tell the node. Alone there, it broke the worker.

        That a user's own worker had it stays noted: when the node ends before it can remember that, the mail must not
        pass without a filter after the next start.
        """
        if is_own(task.queue):
            self._free(task)
            self.answer(task, Deferral(why, why=LOST))
        else:
            self.end(task, Deferral(why, why=BROKE if alone else LOST))

    def _queue(self, name: str) -> FairQueue:
        if (queue := self._queues.get(name)) is None:
            queue = self._queues[name] = FairQueue()
        return queue

    def _begun(self, task: Task) -> Task:
        if task.token in self._known:  # else it was withdrawn meanwhile
            self._leased.add(task.token)
        if self._hands is not None and not task.rehearsal:
            self._hands.begin(task.message, task.n, OWN_HAD if is_own(task.queue) else task.digest)
        return task

    def _ended(self, task: Task) -> None:
        if self._hands is not None and not task.rehearsal:
            self._hands.end(task.message, task.n)
        self._free(task)

    def _free(self, task: Task) -> None:
        """Free the place of a task: another user's may have it."""
        self._leased.discard(task.token)
        self._queue(task.queue).ended(task)
        self._hand_over(task.queue)

    def _again(self, task: Task) -> None:
        if task.token in self._known:
            self._queue(task.queue).put_first(task)
            self._hand_over(task.queue)

    def _hand_over(self, name: str) -> None:
        """Give tasks of a queue to the workers that wait for one."""
        waiting = self._waiting.get(name)
        while waiting:
            if waiting[0].done():
                waiting.popleft()
            elif (task := self._queue(name).take()) is None:
                return
            else:
                waiting.popleft().set_result(task)


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

    def absent(self, queue: str) -> float:
        """Return for how many seconds a queue has had no worker. The node itself always is one."""
        return 0.0 if queue == HERE else self._broker.absent(queue)

    def begun(self, task: Task) -> bool:
        """Return whether a worker has the task. When the worker goes, the task is lost at once."""
        return self._broker.leased(task)

    async def close(self) -> None:
        """Pass on no more answers."""
        self._on_answer = None

    def _answered(self, answer: Answer) -> None:
        if self._on_answer is not None:
            self._on_answer(answer)


class EmbeddedLease:
    """A task that a worker in this process has."""

    __slots__ = ("_broker", "_consumer", "_read", "node", "task")

    def __init__(self, broker: EmbeddedBroker, consumer: EmbeddedConsumer, read: ReadContent, task: Task) -> None:
        self._broker, self._consumer, self._read, self.task, self.node = broker, consumer, read, task, ""

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

    async def stop_taking(self) -> None:
        """Do nothing: only `lease` takes tasks."""

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
