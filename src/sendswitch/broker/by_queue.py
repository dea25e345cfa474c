"""A node with two brokers: each task goes to the one that has its queue."""

from __future__ import annotations

from sendswitch.broker.base import OnAnswer, OnReconnect, TaskPublisher
from sendswitch.mail.task import Task
from sendswitch.routing import in_rabbitmq


class ByQueue:
    """Tasks of queues in RabbitMQ go to `elsewhere`, all others to `here` (`base.TaskPublisher`): those of light
    pipelines, and those for workers of users' own that come over the web port.
    """

    def __init__(self, here: TaskPublisher, elsewhere: TaskPublisher) -> None:
        self._here, self._elsewhere = here, elsewhere

    def _of(self, queue: str) -> TaskPublisher:
        return self._elsewhere if in_rabbitmq(queue) else self._here

    async def open(self, on_answer: OnAnswer, on_reconnect: OnReconnect) -> None:
        """Open both."""
        await self._here.open(on_answer, on_reconnect)
        await self._elsewhere.open(on_answer, on_reconnect)

    async def offer(self, task: Task) -> None:
        """Offer a task to its broker. Raises Temporary."""
        await self._of(task.queue).offer(task)

    async def withdraw(self, task: Task) -> None:
        """Withdraw a task from its broker."""
        await self._of(task.queue).withdraw(task)

    def has(self, task: Task) -> bool:
        """Return whether its broker has a task."""
        return self._of(task.queue).has(task)

    def absent(self, queue: str) -> float:
        """Return for how many seconds a queue has had no worker."""
        return self._of(queue).absent(queue)

    def begun(self, task: Task) -> bool:
        """Return whether a worker was seen to have a task."""
        return self._of(task.queue).begun(task)

    async def close(self) -> None:
        """Close both."""
        await self._here.close()
        await self._elsewhere.close()
