"""Offers tasks and waits for their answers: each question has a token, and one answer counts.

The deadline counts while a worker has the task, so the worker keeps it. An offer that a broker has lost is offered
again, however often that happens.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from sendswitch import logs, metrics
from sendswitch.broker.base import Broker
from sendswitch.clock import Clock
from sendswitch.errors import classify
from sendswitch.mail.content import Content
from sendswitch.mail.ids import to_text
from sendswitch.mail.task import Task
from sendswitch.mail.verdict import LATE, Answer, Deferral
from sendswitch.queue.poison import Suspects
from sendswitch.queue.policy import Policy, completed, on_timeout
from sendswitch.routing import Route
from sendswitch.spool.records import Delivery

# Seconds behind the deadline after which the broker is asked whether it has the task still.
OVERDUE = 5.0
# Random bytes in a token.
TOKEN = 16

Beside = Callable[[Delivery, Route, Answer], None]
"""Told of each answer that counted where there is a candidate; must not block."""


class Dispatcher:
    """Gets answers for deliveries. Nothing it holds needs to survive: the spool knows what is undecided."""

    def __init__(self, broker: Broker, *, policy: Policy, clock: Clock, suspects: Suspects | None = None) -> None:
        self._broker, self._clock = broker, clock
        self.policy = policy
        self.suspects = suspects or Suspects()
        self.beside: Beside | None = None
        self._random = b""
        self._waiting: dict[str, tuple[Task, asyncio.Future[Answer | None]]] = {}
        broker.listen(self._answered)

    @property
    def waiting(self) -> int:
        """Return how many questions have no answer."""
        return len(self._waiting)

    async def ask(self, delivery: Delivery, route: Route) -> Answer:
        """Return the answer that counts: the pipeline's, or what the deadline says. Never raises but when cancelled.

        Deliveries that were in hand when the node was killed are offered one at a time.
        """
        began = time.perf_counter()
        task = self._task(delivery, route)
        async with self.suspects.in_turn(delivery.key, task.digest):
            answer = await self._answer(task, route)
        _tell(delivery, answer, time.perf_counter() - began)
        if route.candidate and self.beside is not None:
            self.beside(delivery, route, answer)
        return answer

    async def rehearse(self, delivery: Delivery, route: Route, load: Callable[[], Awaitable[Content]]) -> Answer:
        """Return the answer that would count; told to nobody, and counted nowhere."""
        task = replace(self._task(delivery, route), load=load, rehearsal=True)
        return await self._answer(task, route)

    def _task(self, delivery: Delivery, route: Route) -> Task:
        message = delivery.message
        return Task(
            message=message.id,
            n=delivery.n,
            token=self._token(),
            recipient=delivery.recipient,
            envelope=message.envelope,
            load=message.load,
            pipeline=route.owner,
            version=route.version,
            queue=route.queue,
            deadline=route.deadline,
            attempt=delivery.attempts + 1,
            digest=message.digest,
        )

    def _token(self) -> str:
        """Return a random token of TOKEN bytes. The system gives many at once, because each call costs time."""
        if not self._random:
            self._random = secrets.token_bytes(TOKEN * 256)
        token, self._random = self._random[:TOKEN], self._random[TOKEN:]
        return token.hex()

    async def _answer(self, task: Task, route: Route) -> Answer:
        try:
            answer = await self._offered(task, route.deadline + OVERDUE)
        except Exception as error:
            logs.failed("offering a task", error=error, msg_id=to_text(task.message))
            answer = Deferral(f"the task could not be offered: {classify(error)}")
        except BaseException:
            await self._broker.withdraw(task)
            raise
        finally:
            self._waiting.pop(task.token, None)
        if isinstance(answer, Deferral) and answer.why == LATE:
            if not task.rehearsal:
                metrics.DEADLINES.inc()
            late = on_timeout(route)
            answer = replace(late, trace=answer.trace) if answer.trace else late
        return completed(answer, route, self.policy)

    async def _offered(self, task: Task, overdue: float) -> Answer:
        """Offer a task until it is answered. Every `overdue` seconds, offer it again if the broker does not have it."""
        loop = asyncio.get_running_loop()
        while True:
            future: asyncio.Future[Answer | None] = loop.create_future()
            self._waiting[task.token] = (task, future)
            await self._broker.offer(task)
            timer = loop.call_later(overdue, self._check, task.token, overdue)
            try:
                answer = await future
            finally:
                timer.cancel()
            if answer is not None:
                return answer
            metrics.REOFFERED.inc()

    def _check(self, token: str, overdue: float) -> None:
        """End the wait for an answer if the broker does not have the task any more; look again later if it has."""
        if (known := self._waiting.get(token)) is None or known[1].done():
            return
        task, future = known
        if self._broker.has(task):
            asyncio.get_running_loop().call_later(overdue, self._check, token, overdue)
        else:
            future.set_result(None)

    def _answered(self, message: int, n: int, token: str, answer: Answer) -> None:
        # An unknown token is an answer that came twice, too late, or from somebody who was never asked.
        known = self._waiting.get(token)
        if known is None:
            return
        task, future = known
        if (task.message, task.n) == (message, n) and not future.done():
            future.set_result(answer)


def _tell(delivery: Delivery, answer: Answer, seconds: float) -> None:
    deferral = isinstance(answer, Deferral)
    action = "defer" if isinstance(answer, Deferral) or answer.action is None else answer.action.value
    if not deferral:
        metrics.VERDICTS.labels(action).inc()
    logs.verdict(
        delivery.message.text_id,
        rcpt=delivery.recipient.address,
        action=action,
        tags=() if isinstance(answer, Deferral) else answer.tags,
        reason=answer.reason,
        dur_ms=seconds * 1000,
    )
