"""Fixtures for tests of processors and pipelines, in every project where SendSwitch is installed.

    def test_it(judge):
        assert_verdict(judge(MyProcessor(MyProcessor.Options()), mail("buy now")), tags=("SPAM",))

Loaded by pytest itself, so it imports what it needs when it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sendswitch.mail.message import Mail
    from sendswitch.mail.verdict import PipelineResult, Verdict
    from sendswitch.processors.base import Context, Processor, ServiceStep
    from sendswitch.testing import FakeClock

# Seconds for one question; a test that needs longer has found something.
LIMIT = 30.0


async def _limited(work: Any) -> Any:
    async with asyncio.timeout(LIMIT):
        return await work


@pytest.fixture(name="clock")
def _clock() -> FakeClock:
    """Return a clock that stands still until it is told to advance."""
    from sendswitch.testing import FakeClock

    return FakeClock()


@pytest.fixture(name="judge")
def _judge() -> Callable[..., Verdict | None]:
    """Return `judge(processor, mail)`, which asks a processor, with a context if needed, for its checked verdict or
    None.
    """

    def judge(processor: Processor | ServiceStep, mail: Mail, context: Context | None = None) -> Verdict | None:
        from sendswitch.mail.verdict_checks import checked
        from sendswitch.processors.base import close
        from sendswitch.testing import context as any_context
        from sendswitch.testing import opinion

        async def ask() -> Verdict | None:
            try:
                return await opinion(processor, mail, context or any_context())
            finally:
                await close(processor)

        verdict: Verdict | None = asyncio.run(_limited(ask()))
        return None if verdict is None else checked(verdict)

    return judge


@pytest.fixture(name="pipeline")
def _pipeline() -> Callable[..., PipelineResult]:
    """Return `pipeline(toml, mail)`, which runs a pipeline and returns its answer with the trace. Raises
    InvalidConfiguration.
    """

    def pipeline(text: str, mail: Mail, context: Context | None = None, *, limit: float = 10.0) -> PipelineResult:
        from sendswitch.pipeline.chain import build
        from sendswitch.processors.registry import check
        from sendswitch.testing import context as any_context

        async def run() -> PipelineResult:
            chain = build(check(text, "pipeline"), limit)
            try:
                return await chain.run(mail, context or any_context())
            finally:
                await chain.close()

        answer: PipelineResult = asyncio.run(_limited(run()))
        return answer

    return pipeline
