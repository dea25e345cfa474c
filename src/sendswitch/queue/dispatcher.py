"""Offers tasks and waits for their answers: each question has a token, and one answer counts.

The deadline counts while a worker has the task, so the worker keeps it. An offer that the broker has lost is made
again, when it is overdue and when the broker is connected again, however often that happens.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from sendswitch import logs, metrics
from sendswitch.broker.base import TaskPublisher
from sendswitch.clock import Clock
from sendswitch.errors import Temporary, classify
from sendswitch.mail.content import Content
from sendswitch.mail.ids import to_text
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import (
    BROKE,
    BUSY,
    LATE,
    LOST,
    OFFLINE,
    UNANSWERED,
    UNOFFERED,
    Deferral,
    PipelineResult,
    StepOutcome,
)
from sendswitch.queue.poison import Key, Suspects
from sendswitch.queue.policy import completed, on_timeout, when_offline
from sendswitch.queue.presence import LOOK, Presence
from sendswitch.queue.settings import Current
from sendswitch.routing import ALONE, POOL, Route, is_own
from sendswitch.spool.records import Delivery, Message

# Seconds behind the deadline after which the broker is asked whether it has the task still.
OVERDUE = 5.0
# How often a task may be lost with a worker that had others too, before it is said to have broken it.
LOST_AGAIN = 3
# Seconds behind the deadline after which mail waits no longer for the workers of a user's own that are there.
OWN_PATIENCE = 600.0
# Random bytes in a token.
TOKEN = 16

# Seconds behind the deadline after which an answer that nobody came for is forgotten.
FORGOTTEN = 60.0

Observer = Callable[[Delivery, Route, PipelineResult], None]
"""Gets each answer that counted where there is a candidate; must not block."""


@dataclass(slots=True)
class _Question:
    """A task that waits for its answer; None as the answer means that it must be offered again."""

    task: Task
    answer: asyncio.Future[PipelineResult | None]
    timer: asyncio.TimerHandle | None = None
    began: float = field(default_factory=time.monotonic)


class Dispatcher:
    """The source of answers for deliveries. Nothing in it needs to survive a crash: the spool knows what is
    undecided.
    """

    def __init__(
        self,
        publisher: TaskPublisher,
        current: Current,
        *,
        clock: Clock,
        suspects: Suspects | None = None,
        on_suspect: Callable[[], None] = lambda: None,
        offline_after: float = 60.0,
    ) -> None:
        """Prepare. `on_suspect` is called before each task that is asked alone. `offline_after` is in seconds."""
        self._presence = Presence(publisher.absent, offline_after)
        self._publisher, self._current, self._clock, self._on_suspect = publisher, current, clock, on_suspect
        self.suspects = suspects or Suspects()
        self._observers: list[Observer] = []
        self._random = b""
        self._waiting: dict[str, _Question] = {}
        self._messages: dict[int, tuple[Message, int]] = {}  # asked about, and for how many recipients
        self._begun: dict[Key, tuple[asyncio.Task[PipelineResult], asyncio.TimerHandle]] = {}

    async def open(self) -> None:
        """Connect to the broker; call it before anything is asked. Raises Temporary."""
        await self._publisher.open(self._answered, self._reconnected)

    async def close(self) -> None:
        """Disconnect from the broker. No question gets an answer after this."""
        await self._publisher.close()

    @property
    def waiting(self) -> int:
        """Return how many questions have no answer."""
        return len(self._waiting)

    def on_verdict(self, observer: Observer) -> None:
        """Call an observer with each answer that counts, where the route has a candidate."""
        self._observers.append(observer)

    def begin(self, delivery: Delivery, route: Route) -> asyncio.Task[PipelineResult]:
        """Ask about a delivery before it is in the spool. `ask` takes this answer, and `cancel` ends the question."""
        loop, key = asyncio.get_running_loop(), delivery.key
        task = loop.create_task(self._ask(delivery, route))
        self._begun[key] = task, loop.call_later(route.deadline + FORGOTTEN, self._take, key)
        return task

    def cancel(self, deliveries: Iterable[Delivery]) -> None:
        """End questions that were begun and whose answers were not taken."""
        if self._begun:
            for delivery in deliveries:
                if (task := self._take(delivery.key)) is not None:
                    task.cancel()

    def _take(self, key: Key) -> asyncio.Task[PipelineResult] | None:
        """Return the task of a question that was begun, which is forgotten here."""
        if (begun := self._begun.pop(key, None)) is None:
            return None
        task, timer = begun
        timer.cancel()
        return task

    async def ask(self, delivery: Delivery, route: Route) -> PipelineResult:
        """Return the answer that counts: the pipeline's, or the one for a passed deadline. Raises only when
        cancelled.
        """
        begun = self._take(delivery.key) if self._begun else None
        return await (begun if begun is not None else self._ask(delivery, route))

    async def _ask(self, delivery: Delivery, route: Route) -> PipelineResult:
        """Offer a task and wait for its answer. Suspects (`poison`) are offered one at a time."""
        began = time.perf_counter()
        task, message = self._task(delivery, route), delivery.message
        self._messages[message.id] = message, self._messages.get(message.id, (message, 0))[1] + 1
        try:
            answer = await self._asked(delivery.key, task, route)
        finally:
            self._let_go(message)
        _tell(delivery, answer, time.perf_counter() - began)
        if route.candidate:
            for observer in self._observers:
                observer(delivery, route, answer)
        return answer

    async def _asked(self, key: Key, task: Task, route: Route) -> PipelineResult:
        """Return the answer to a task, or what happens to mail while no worker is there."""
        answer = await (self._own(task, route) if route.own else self._site(key, task, route))
        if not _is(answer, OFFLINE):
            return answer
        if route.when_offline == "pool":
            metrics.OFFLINE.labels("pool").inc()
            pool = replace(task, token=self._token(), queue=POOL)
            return await self._asked(key, pool, replace(route, queue=POOL, when_offline="defer"))
        if key not in self.suspects.counts:
            answer = completed(when_offline(route, answer.reason), route, self._current.settings.policy)
        # What a worker had and did not answer waits for one: it may be what no filter survives.
        metrics.OFFLINE.labels("defer" if isinstance(answer, Deferral) else route.when_offline).inc()
        return answer

    def put_off(self, delivery: Delivery, route: Route) -> None:
        """Offer a deferred delivery again as soon as a worker can have it. The spool must have it as deferred."""
        self._presence.put_off(route.queue, delivery.key)
        if route.when_offline == "pool":
            self._presence.put_off(POOL, delivery.key)

    async def _own(self, task: Task, route: Route) -> PipelineResult:
        """Ask workers of the user's own. Whatever becomes of such a worker, its mail waits, and breaks nothing here."""
        if not self._presence.enter(task.queue):
            many = Deferral("too many messages wait for workers of users already", why=BUSY)
            return completed(many, route, self._current.settings.policy)
        try:
            answer = await self._answer(task, route)
        finally:
            self._presence.leave(task.queue)
        if not isinstance(answer, Deferral) or answer.why in (OFFLINE, UNOFFERED):
            return answer
        return replace(answer, why=UNANSWERED)

    async def _site(self, key: Key, task: Task, route: Route) -> PipelineResult:
        """Ask workers of the site. A task that was lost with its worker and other tasks is asked again alone, where
        its own fault shows.
        """
        suspects = self.suspects
        if key not in suspects.counts and task.digest not in suspects.digests:
            answer = await self._answer(task, route)
            if not _is(answer, LOST):
                return answer
            if task.digest:
                suspects.digests.add(task.digest)
        self._on_suspect()
        queue = ALONE if task.queue == POOL else task.queue
        async with suspects.turn:
            for _ in range(LOST_AGAIN):
                answer = await self._answer(replace(task, token=self._token(), queue=queue), route)
                if not _is(answer, LOST):
                    break
        suspects.digests.discard(task.digest)
        return replace(answer, why=BROKE) if _is(answer, LOST) else answer

    def _let_go(self, message: Message) -> None:
        _, asked = self._messages.pop(message.id)
        if asked > 1:
            self._messages[message.id] = message, asked - 1

    async def content(self, reference: Reference) -> Content:
        """Return the content of a message that is asked about: from memory as long as it is there, else from the spool.

        Raises Temporary when it cannot be read, or nobody asks about the message any more.
        """
        if (known := self._messages.get(reference.message)) is None:
            raise Temporary(f"nobody asks about {to_text(reference.message)} any more")
        return await known[0].load()

    async def rehearse(self, delivery: Delivery, route: Route, content: Content) -> PipelineResult:
        """Return the answer that would count. It is recorded and counted nowhere."""
        task = replace(self._task(delivery, route), content=content, rehearsal=True)
        return await self._answer(task, route)

    def _task(self, delivery: Delivery, route: Route) -> Task:
        message = delivery.message
        return Task(
            message=message.id,
            n=delivery.n,
            token=self._token(),
            recipient=delivery.recipient,
            sender=message.envelope.sender,
            client=message.envelope.client,
            content=Reference(message.id, message.size, message.digest),
            pipeline=route.owner,
            version=route.version,
            queue=route.queue,
            deadline=route.deadline,
            attempt=delivery.attempts + 1,
            digest=message.digest,
        )

    def _token(self) -> str:
        """Return a random token of TOKEN bytes. Many are read from the system at once, because each read costs time."""
        if not self._random:
            self._random = secrets.token_bytes(TOKEN * 256)
        token, self._random = self._random[:TOKEN], self._random[TOKEN:]
        return token.hex()

    async def _answer(self, task: Task, route: Route) -> PipelineResult:
        try:
            answer = await self._offered(task, route.deadline + OVERDUE)
        except Exception as error:
            await self._publisher.withdraw(task)
            logs.failed("offering a task", error=error, msg_id=to_text(task.message))
            answer = Deferral(f"the task could not be offered: {classify(error)}", why=UNOFFERED)
        except BaseException:
            await self._publisher.withdraw(task)
            raise
        finally:
            self._waiting.pop(task.token, None)
        if not is_own(task.queue):  # what others say becomes no metric of ours
            _measure(answer)
        if isinstance(answer, Deferral) and answer.why in (OFFLINE, UNANSWERED, UNOFFERED):  # the broker may have it
            await self._publisher.withdraw(task)
        if _is(answer, LATE):
            if not task.rehearsal:
                metrics.DEADLINES.inc()
            late = on_timeout(route)
            answer = replace(late, trace=answer.trace) if answer.trace else late
        return completed(answer, route, self._current.settings.policy)

    async def _offered(self, task: Task, overdue: float) -> PipelineResult:
        """Offer a task until it is answered. Every `overdue` seconds, offer it again if the broker does not have it."""
        loop = asyncio.get_running_loop()
        while True:
            question = self._waiting[task.token] = _Question(task, loop.create_future())
            await self._offer(question)
            question.timer = loop.call_later(overdue, self._check, question, overdue)
            try:
                answer = await question.answer
            finally:
                question.timer.cancel()  # the last one that was set
            if answer is not None:
                return answer
            metrics.REOFFERED.inc()

    async def _offer(self, question: _Question) -> None:
        """Offer a task. For workers of a user's own, end when it has its answer before: another route was set while
        the broker could not be reached. Raises what the broker raises.
        """
        if not is_own(question.task.queue):
            await self._publisher.offer(question.task)
            return
        offering = asyncio.ensure_future(self._publisher.offer(question.task))
        try:
            await asyncio.wait((offering, question.answer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not offering.done():
                offering.cancel()
            await asyncio.gather(offering, return_exceptions=True)
        if not question.answer.done():
            offering.result()

    def _check(self, question: _Question, overdue: float) -> None:
        """End the wait for an answer if the broker does not have the task any more; look again later if it has."""
        task = question.task
        if question.answer.done():
            return
        if is_own(task.queue) and time.monotonic() - question.began > task.deadline + OWN_PATIENCE:
            reason = f"no worker of {task.pipeline} took it in time"
            question.answer.set_result(Deferral(reason, why=UNANSWERED))
        elif self._publisher.has(question.task):
            question.timer = asyncio.get_running_loop().call_later(overdue, self._check, question, overdue)
        else:
            question.answer.set_result(None)

    def _reconnected(self) -> None:
        """Offer again what the broker lost with its connection."""
        for question in self._waiting.values():
            offered = question.timer is not None  # one that is not yet waits for the connection itself
            if offered and not question.answer.done() and not self._publisher.has(question.task):
                question.answer.set_result(None)

    async def watch(self, on_back: Callable[[Sequence[Key]], Awaitable[None]]) -> None:
        """Answer for workers that are away, until cancelled. `on_back` gets deliveries that were put off for workers
        that are there again.
        """
        while True:
            await asyncio.sleep(LOOK)
            offline, back = self._presence.look({question.task.queue for question in self._waiting.values()})
            for question in self._waiting.values():
                task, offered = question.task, question.timer is not None
                if question.answer.done():
                    continue
                if is_own(task.queue) and self._moved(task):
                    why = UNANSWERED if self._publisher.begun(task) else UNOFFERED
                    question.answer.set_result(Deferral("other workers run the pipeline now", why=why))
                elif offered and task.queue in offline and not self._publisher.begun(task):
                    question.answer.set_result(Deferral(f"no worker of {_whose(task)} is online", why=OFFLINE))
            if back:
                await on_back(back)

    def _moved(self, task: Task) -> bool:
        """Return whether the route of a task leads elsewhere by now."""
        route = self._current.settings.routes.find(task.recipient.address)
        return route is None or task.queue not in (route.queue, route.candidate and route.candidate_queue)

    def _answered(self, answer: Answer) -> None:
        # An unknown token is an answer that came twice, too late, or from a worker that was never asked.
        question = self._waiting.get(answer.token)
        if question is None or question.answer.done():
            return
        if (question.task.message, question.task.n) == (answer.message, answer.n):
            question.answer.set_result(answer.result)


def _is(answer: PipelineResult, why: str) -> TypeGuard[Deferral]:
    return isinstance(answer, Deferral) and answer.why == why


def _whose(task: Task) -> str:
    return task.pipeline if is_own(task.queue) else "the site"


def _measure(answer: PipelineResult) -> None:
    """Count the steps of an answer, wherever they ran."""
    for step in answer.trace:
        if step.outcome != StepOutcome.NOT_ASKED:
            metrics.processor_seconds(step.processor).observe(step.seconds)
        if step.failed:
            metrics.PROCESSOR_ERRORS.labels(step.processor).inc()


def _tell(delivery: Delivery, answer: PipelineResult, seconds: float) -> None:
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
