"""The broker's contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sendswitch.mail.task import Task
from sendswitch.mail.verdict import PipelineResult

Listener = Callable[[int, int, str, PipelineResult], None]
"""Called with message, delivery number, token and answer, on the event loop."""


class Lease(Protocol):
    """One task in one worker's hands. It ends with `answer`, `give_back`, or the worker's death."""

    task: Task

    async def answer(self, answer: PipelineResult) -> None:
        """Send the answer to the node that offered the task. A lost answer makes the node offer the task again."""
        ...

    async def give_back(self) -> None:
        """Return a task that was not done, so that another worker may have it."""
        ...

    def drop(self) -> None:
        """Drop a task whose worker failed without an answer. The node offers it again."""
        ...


class Broker(Protocol):
    """The transport of tasks to workers and of answers back.

    Contract: an offer or an answer may be lost or come twice. The node keeps every undecided task, offers it again, and
    counts one answer for each token. Nothing here is durable. A lease whose worker dies comes back to another worker.
    Offering never waits for a worker.
    """

    async def offer(self, task: Task) -> None:
        """Put a task into its queue. Raises Temporary when the broker takes none."""
        ...

    async def withdraw(self, task: Task) -> None:
        """Withdraw a task that needs no answer any more; best effort, a worker may still have it."""
        ...

    def has(self, task: Task) -> bool:
        """Return whether the offer is still on its way: in a queue, or in a living worker's hands."""
        ...

    async def lease(self, queues: tuple[str, ...]) -> Lease:
        """Wait for a task from any of these queues. Raises asyncio.CancelledError only."""
        ...

    def listen(self, listener: Listener) -> None:
        """Hear every answer from now on. One listener a broker object."""
        ...
