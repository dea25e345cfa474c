"""One pipeline, ready to be tried: asked like the live one, with nothing coming of the answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable

from sendswitch.conditions.pipeline import PipelineConfig
from sendswitch.deadline import within
from sendswitch.mail.ids import to_text
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import PipelineResult, StepRecord
from sendswitch.pipeline.chain import build
from sendswitch.pipeline.recording import Case
from sendswitch.processors.base import Context, Services
from sendswitch.queue.policy import Policy, completed, on_timeout
from sendswitch.routing import Route

# Cases asked at once, so that a step that waits does not stop the others.
AT_ONCE = 32


class Trial:
    """A pipeline with the configured defaults. `limit` is the limit in seconds of a step that sets none.

    Raises ValueError or InvalidConfiguration when a step cannot be made.
    """

    def __init__(
        self, pipeline: PipelineConfig, route: Route, policy: Policy, *, limit: float, services: Services
    ) -> None:
        self.pipeline, self.route, self.policy = pipeline, route, policy
        self._limit, self._services = limit, services
        self._chain = build(pipeline, limit, services)

    def other(self, pipeline: PipelineConfig) -> Trial:
        """Return another pipeline, tried in the same way."""
        return Trial(pipeline, self.route, self.policy, limit=self._limit, services=self._services)

    async def ask(self, case: Case, recorded: tuple[StepRecord, ...] | None = None) -> PipelineResult:
        """Return the answer that would have counted; with `recorded` services are not asked, their answers are taken
        there.
        """
        context = Context(
            message=to_text(case.message),
            recipient=case.recipient,
            sender=case.envelope.sender,
            client=case.envelope.client,
            now=case.at,
            attempt=case.attempt,
            rehearsal=True,
        )
        answer: PipelineResult
        try:
            if self._chain.waits:
                async with within(self.route.deadline):
                    answer = await self._chain.run(Mail(case.content), context, recorded)
            else:
                answer = await self._chain.run(Mail(case.content), context, recorded)
        except TimeoutError:
            answer = on_timeout(self.route)
        return completed(answer, self.route, self.policy)

    async def replay(self, case: Case) -> PipelineResult:
        """Return the answer with services as they answered then; one that was never asked then counts as failed."""
        return await self.ask(case, case.verdict.trace if case.verdict else ())

    async def close(self) -> None:
        """Close the steps."""
        await self._chain.close()


async def replay_each(pairs: Iterable[tuple[Case, Trial]]) -> AsyncIterator[tuple[Case, PipelineResult]]:
    """Yield each case with the answer of its trial, in their order, some at once."""
    waiting: deque[tuple[Case, asyncio.Task[PipelineResult]]] = deque()
    try:
        for case, trial in pairs:
            waiting.append((case, asyncio.create_task(trial.replay(case))))
            if len(waiting) >= AT_ONCE:
                first, task = waiting.popleft()
                yield first, await task
        while waiting:
            first, task = waiting.popleft()
            yield first, await task
    finally:
        for _, task in waiting:
            task.cancel()
