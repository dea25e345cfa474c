"""A pipeline at work: its processors in order, each with its time limit and error policy, merged into one answer.

The rules of merging: tags and edits add up in order; the highest score counts; the first verdict with an action ends
the pipeline; a pipeline that ends without one passes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from sendswitch.conditions.condition import Condition, ConditionFacts
from sendswitch.conditions.pipeline import OnError, PipelineConfig, StepConfig
from sendswitch.deadline import within
from sendswitch.errors import Temporary
from sendswitch.mail.edits import Cut, Edit
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.findings import Finding, Kind
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import (
    BROKE,
    MAX_REASON,
    Action,
    Deferral,
    PipelineResult,
    StepOutcome,
    StepRecord,
    Verdict,
    merged,
)
from sendswitch.mail.verdict_checks import checked
from sendswitch.processors import registry
from sendswitch.processors.base import Context, Processor, Readers, Services, ServiceStep, close
from sendswitch.reply import Reply

# Seconds in which a condition about findings must be answered.
EXAMINED_IN = 10.0
PROCESSOR_FAILED = Reply(550, "5.7.1", "Message refused: the recipient's filter could not examine it")


@dataclass(frozen=True, slots=True)
class BoundStep:
    """One step, ready to run. `service` is the processor where it asks a service. `waits` is False for one that never
    waits, which needs no timer. Without `when` it is asked about all mail; of a `shadow` nothing comes but its line in
    the trace."""

    name: str
    processor: Processor | ServiceStep
    on_error: OnError
    limit: float
    waits: bool = True
    when: Condition | None = None
    shadow: bool = False
    service: ServiceStep | None = None


class Chain:
    """One version of one pipeline."""

    def __init__(self, steps: Sequence[BoundStep], readers: Readers | None = None) -> None:
        self.steps, self._readers = tuple(steps), readers or Services().readers
        # False when no step ever waits, so that nobody need keep a time for the whole.
        self.waits = any(bound.waits or bound.when is not None for bound in steps)

    async def run(self, mail: Mail, context: Context, recorded: Sequence[StepRecord] | None = None) -> PipelineResult:
        """Return one answer whatever the processors do. Only a cancel gets through.

        With `recorded`, an earlier trace, services are not asked again: their recorded answers count.
        """
        trace: list[StepRecord] = []
        so_far = Verdict()
        said = None if recorded is None else [step for step in recorded if step.answer is not None]
        for bound in self.steps:
            if _reads(bound) and not mail.examined:
                await self._examine(mail, context)
            if bound.when is not None and not await self._holds(bound.when, mail, context):
                why = f"only when {bound.when.text}"
                trace.append(StepRecord(bound.name, bound.processor.version, 0.0, StepOutcome.NOT_ASKED, why))
                continue
            began = time.perf_counter()
            # A step in the shadow leaves its own effects out, too.
            asked = replace(context, rehearsal=True) if bound.shadow else context
            opinion, answer = await self._ask(bound, mail, asked, said)
            seconds = time.perf_counter() - began
            trace.append(_step(bound, opinion, answer, seconds, context.notes))
            if context.notes:
                context = replace(context, notes=[])
            if bound.shadow:
                continue
            if isinstance(opinion, _Failure):
                if bound.on_error == "defer":
                    return Deferral(f"{bound.name}: {opinion.text}", tuple(trace), why=BROKE if asked.broke else "")
                opinion = _by_policy(bound, opinion)
            if opinion is None:
                continue
            so_far = merged(so_far, opinion)
            if so_far.action is not None:
                return so_far.with_trace(tuple(trace))
            context = replace(context, tags=so_far.tags, score=so_far.score)
        reason = so_far.reason or "the pipeline came to its end"
        return replace(so_far, action=Action.PASS, reason=reason, trace=tuple(trace))

    async def _holds(self, when: Condition, mail: Mail, context: Context) -> bool:
        facts = _facts(mail, context)
        return await asyncio.to_thread(when.holds, facts) if self.waits and mail.large_header else when.holds(facts)

    async def _examine(self, mail: Mail, context: Context) -> None:
        """Have the message know its findings; one that cannot be read in time is too large."""
        try:
            async with within(EXAMINED_IN):
                await self._readers.findings(mail, context)
        except (Temporary, TimeoutError) as error:
            mail.know((Finding(Kind.TOO_LARGE, f"it could not be read: {_words(error) or 'it takes too long'}"),))

    async def _ask(
        self, bound: BoundStep, mail: Mail, context: Context, said: list[StepRecord] | None
    ) -> tuple[Verdict | _Failure | None, Mapping[str, Any] | None]:
        """Return the step's opinion, and the answer of the service it asked."""
        service, answer = bound.service, None
        try:
            if service is None:
                working = cast(Processor, bound.processor).process(mail, context)
                opinion = await _in_time(bound, working) if bound.waits else await working
            else:
                answer = await _in_time(bound, service.query(mail, context)) if said is None else _recorded(bound, said)
                opinion = service.evaluate(answer, mail, context)
            return None if opinion is None else checked(opinion), answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure = _Failure(StepOutcome.ERROR, "the processor cancelled itself")
        except TimeoutError as error:
            failure = _Failure(StepOutcome.TIMEOUT, _words(error) or f"no answer within {bound.limit:g} s")
        except _FailedThen as error:
            failure = error.failure
        except Exception as error:
            failure = _Failure(StepOutcome.ERROR, _words(error) or type(error).__name__)
        if answer is None and service is not None:
            answer = {"failed": failure.kind, "text": failure.text}
        return failure, answer

    async def close(self) -> None:
        """Close every processor."""
        for bound in self.steps:
            await close(bound.processor)


def _reads(bound: BoundStep) -> bool:
    return bound.when is not None and bound.when.reads_content


@dataclass(frozen=True, slots=True)
class _Failure:
    kind: str
    text: str


T = TypeVar("T")


async def _in_time(bound: BoundStep, working: Awaitable[T]) -> T:
    async with within(bound.limit):
        return await working


def _words(error: Exception) -> str:
    """Return the text of an error, which a user's program can make anything."""
    return storable(str(error), MAX_REASON)


def build(config: PipelineConfig, limit: float, services: Services = Services()) -> Chain:  # noqa: B008 - nobody changes it
    """Return the chain of a checked pipeline. Raises ValueError or InvalidConfiguration when a step cannot be made."""
    steps = enumerate(config.step, 1)
    bound = [_bind(step, limit, replace(services, place=f"{services.place} {n}")) for n, step in steps]
    return Chain(bound, services.readers)


def _bind(step: StepConfig, limit: float, services: Services) -> BoundStep:
    processor = registry.make(step, services)
    if not isinstance(processor, Processor | ServiceStep):
        raise ValueError(f"{step.use} is no processor: it has neither `process` nor `query` and `evaluate`")
    service = processor if isinstance(processor, ServiceStep) else None
    when = Condition(step.when) if step.when else None
    waits = getattr(processor, "waits", True)
    return BoundStep(step.use, processor, step.on_error, step.limit or limit, waits, when, step.shadow, service)


def _facts(mail: Mail, context: Context) -> ConditionFacts:
    return ConditionFacts(mail, context.sender, context.recipient.address, context.client, context.tags, context.score)


def _by_policy(bound: BoundStep, failure: _Failure) -> Verdict | None:
    """Return the opinion that a step's `on_error` has for it; None for skip."""
    if bound.on_error == "skip":
        return None
    reason = f"{bound.name} failed ({failure.text}) and on_error is {bound.on_error}"
    if bound.on_error == "hold":
        return Verdict.pending(reason)
    return Verdict(Action.DENY, reason=reason, reply=PROCESSOR_FAILED)


def _step(
    bound: BoundStep,
    opinion: Verdict | _Failure | None,
    answer: Mapping[str, Any] | None,
    seconds: float,
    notes: Sequence[str],
) -> StepRecord:
    outcome, saw = _said(opinion)
    if notes:
        saw = storable("; ".join([saw, *notes] if saw else notes), MAX_REASON)
    return StepRecord(bound.name, bound.processor.version, seconds, outcome, saw, answer, bound.shadow)


def _said(opinion: Verdict | _Failure | None) -> tuple[str, str]:
    """Return the outcome of a step, and the facts it saw."""
    if opinion is None:
        return StepOutcome.NO_OPINION, ""
    if isinstance(opinion, _Failure):
        return opinion.kind, opinion.text
    outcome: str = StepOutcome.NO_OPINION
    if opinion.action:
        outcome = opinion.action.value
    elif opinion.tags or opinion.edits:
        outcome = f"tags {', '.join(opinion.tags)}" if opinion.tags else _edited(opinion.edits)
    return outcome, opinion.reason


def _edited(edits: Sequence[Edit]) -> str:
    return "a part taken out" if any(isinstance(edit, Cut) for edit in edits) else "header edits"


class _FailedThen(Exception):
    """Raised on replay when no answer of a service was recorded."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def _recorded(bound: BoundStep, said: list[StepRecord]) -> Mapping[str, Any]:
    """Return the recorded answer of a service. Each answer is used once, in order."""
    step = next((step for step in said if step.processor == bound.name), None)
    if step is None or step.answer is None:
        raise _FailedThen(_Failure(StepOutcome.ERROR, "no answer of this service is on record"))
    said.remove(step)
    if "failed" in step.answer:
        raise _FailedThen(_Failure(str(step.answer["failed"]), str(step.answer.get("text", ""))))
    return step.answer
