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
        """Send the answer to whoever offered the task. It may be lost, then the task is offered again."""
        ...

    async def give_back(self) -> None:
        """Give back a task that was not done: another worker may have it."""
        ...

    def drop(self) -> None:
        """Drop a task whose worker failed and answers nothing; whoever offered it offers it again."""
        ...


class Broker(Protocol):
    """Brings tasks to workers and answers back.

    Contract: an offer or an answer may be lost or come twice, so whoever offers keeps what is undecided and offers
    again, and counts one answer per token. Nothing here is durable. A lease whose worker dies comes back to
    another. Offering never waits for a worker.
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
