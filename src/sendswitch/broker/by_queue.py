"""A node with two brokers: each task goes to the one that has its queue."""

from __future__ import annotations

from sendswitch.broker.base import OnAnswer, OnReconnect, TaskPublisher
from sendswitch.mail.task import Task
from sendswitch.routing import HERE


class ByQueue:
    """Tasks of light pipelines go to `here`, all others to `elsewhere` (`base.TaskPublisher`)."""

    def __init__(self, here: TaskPublisher, elsewhere: TaskPublisher) -> None:
        self._here, self._elsewhere = here, elsewhere

    def _of(self, task: Task) -> TaskPublisher:
        return self._here if task.queue == HERE else self._elsewhere

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        """Open both."""
        await self._here.open(on_answer, on_reconnect)
        await self._elsewhere.open(on_answer, on_reconnect)

    async def offer(self, task: Task) -> None:
        """Offer a task to its broker. Raises Temporary."""
        await self._of(task).offer(task)

    async def withdraw(self, task: Task) -> None:
        """Withdraw a task from its broker."""
        await self._of(task).withdraw(task)

    def has(self, task: Task) -> bool:
        """Return whether its broker has a task."""
        return self._of(task).has(task)

    async def close(self) -> None:
        """Close both."""
        await self._here.close()
        await self._elsewhere.close()
