"""The broker's contract: tasks go from nodes to workers, and answers come back.

An offer or an answer may be lost or come twice. The node keeps every undecided task, offers it again, and counts one
answer for each token. Nothing here is durable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from sendswitch.mail.content import Content
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import PipelineResult

# Noted instead of a digest for a delivery that a worker of a user's own has: it breaks nothing of ours.
OWN_HAD = b"own"

OnAnswer = Callable[[Answer], None]
"""Called with each answer, on the event loop; must not block."""

OnReconnect = Callable[[], None]
"""Called when the connection to the broker stands again, on the event loop. Offers made before may be lost."""

ReadContent = Callable[[Reference], Awaitable[Content]]
"""Returns the content of a reference. Raises Temporary when it cannot be read."""


class Hands(Protocol):
    """Remembers which deliveries workers have, beyond the death of this process."""

    def begin(self, message: int, n: int, digest: bytes) -> None:
        """Note that a worker gets a delivery. A kill does not lose the note."""
        ...

    def end(self, message: int, n: int) -> None:
        """Note that a worker has the delivery no more."""
        ...


class TaskPublisher(Protocol):
    """A node's side of a broker. Tasks are known by their tokens."""

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        """Connect, and pass on every answer from now on. Call it once. Raises Temporary."""
        ...

    async def offer(self, task: Task) -> None:
        """Put a task into its queue; never waits for a worker. Raises Temporary when the broker does not accept it."""
        ...

    async def withdraw(self, task: Task) -> None:
        """Withdraw a task that needs no answer any more; best effort, a worker may still have it."""
        ...

    def has(self, task: Task) -> bool:
        """Return whether the offer is on its way, as far as this side knows: in a queue, or in a living worker's
        hands."""
        ...

    def absent(self, queue: str) -> float:
        """Return for how many seconds a queue has had no worker: 0.0 while it has one, or while nobody can know."""
        ...

    def begun(self, task: Task) -> bool:
        """Return whether a worker was seen to have the task."""
        ...

    async def close(self) -> None:
        """Disconnect. No answer arrives after this."""
        ...


class Lease(Protocol):
    """One task that a worker has.

    It ends once: with `answer`, `give_back`, `discard`, or the death of its worker, of which the node is told. These
    methods do nothing on a lease that has ended. `node` is the name of the node that offered the task, '' where there
    is only one.
    """

    task: Task
    node: str

    async def content(self) -> Content:
        """Return the task's content. Raises Temporary when it cannot be read."""
        ...

    async def answer(self, result: PipelineResult) -> None:
        """Send the answer to the node that offered the task. A lost answer makes the node offer the task again."""
        ...

    async def give_back(self) -> None:
        """Return a task that was not done, so that another worker may have it."""
        ...

    async def discard(self) -> None:
        """End the lease of a task that failed without an answer. No other worker gets it before the node offers it
        again."""
        ...


class TaskConsumer(Protocol):
    """A worker's side of a broker."""

    async def open(self) -> None:
        """Connect. Raises Temporary."""
        ...

    async def lease(self, queues: tuple[str, ...]) -> Lease:
        """Wait for a task from any of these queues. Raises asyncio.CancelledError only."""
        ...

    async def stop_taking(self) -> None:
        """Want no more tasks. What `lease` has not returned yet goes back."""
        ...

    async def close(self) -> None:
        """Give back every task that has no answer, and disconnect."""
        ...
