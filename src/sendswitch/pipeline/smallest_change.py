"""The smallest single change of a pipeline that would have changed a verdict, found by trying.

An entry of a list of the step that decided is smaller than a whole step, and a step near the decision is looked at
before one far from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from sendswitch.conditions.pipeline import PipelineConfig, StepConfig
from sendswitch.errors import InvalidConfiguration
from sendswitch.journal.compare import action, told
from sendswitch.mail.verdict import PipelineResult, Verdict
from sendswitch.pipeline.recording import Case
from sendswitch.pipeline.trial import Trial

# Seconds for all tries; a person waits for the answer.
LIMIT = 5.0


@dataclass(frozen=True, slots=True)
class SmallestChange:
    """`change` names the entry or step to leave out; '' when no single one makes a difference, or `time` was over
    first. `then` is the verdict without it.
    """

    change: str
    then: str
    in_time: bool = True

    @property
    def sentence(self) -> str:
        """Return both in a sentence."""
        if not self.in_time:
            return f"What would have changed this was not found within {LIMIT:g} s."
        if not self.change:
            return "No step, left out alone, would have led to another action."
        return f"{self.change} it would have been {self.then}."


async def smallest_change(case: Case, trial: Trial) -> SmallestChange:
    """Try single changes until one leads to another action. Services and the record stand in as in a replay."""
    try:
        async with asyncio.timeout(LIMIT):
            return await _smallest_change(case, trial)
    except TimeoutError:
        return SmallestChange("", "", in_time=False)


async def _smallest_change(case: Case, trial: Trial) -> SmallestChange:
    assert case.verdict is not None
    if trial.pipeline.step and not case.verdict.trace:
        answer = await trial.replay(case)
        return SmallestChange("With an answer in time", _outcome(answer))
    for words, steps in _changes(trial.pipeline, case.verdict):
        try:
            other = trial.other(trial.pipeline.model_copy(update={"step": steps}))
        except (ValueError, InvalidConfiguration):
            continue  # a step that needs what would be left out
        try:
            answer = await other.replay(case)
        finally:
            await other.close()
        if action(answer) != action(case.verdict) or _forward(answer) != case.verdict.forward:
            return SmallestChange(words, _outcome(answer))
    return SmallestChange("", "")


def _forward(answer: PipelineResult) -> tuple[str, ...]:
    return answer.forward if isinstance(answer, Verdict) else ()


def _outcome(answer: PipelineResult) -> str:
    return f"{action(answer).upper()}{told(answer).removeprefix(action(answer))}, because {answer.reason}"


def _changes(pipeline: PipelineConfig, verdict: Verdict) -> Iterator[tuple[str, tuple[StepConfig, ...]]]:
    """Yield each change in words with the steps that are left, the smallest first.

    A step without an opinion changed nothing, and without it nothing would change.
    """
    asked = min(len(verdict.trace), len(pipeline.step))
    spoke = [step.spoke for step in verdict.trace]
    if asked and spoke[asked - 1]:
        decided = asked - 1
        for words, step in _entries(decided, pipeline.step[decided], verdict.reason):
            yield words, (*pipeline.step[:decided], step, *pipeline.step[asked:])
    for n in reversed([n for n in range(asked) if spoke[n]]):
        yield f"Without step {n + 1} ({pipeline.step[n].use})", pipeline.step[:n] + pipeline.step[n + 1 :]


def _entries(number: int, step: StepConfig, reason: str) -> Iterator[tuple[str, StepConfig]]:
    lists = {name: value for name, value in step.options.items() if isinstance(value, list)}
    found = [(name, entry) for name, values in lists.items() for entry in values if isinstance(entry, str)]
    # What the reason names is probably what matched.
    found.sort(key=lambda pair: pair[1] not in reason)
    for name, entry in found:
        left = [value for value in lists[name] if value != entry]
        words = f"Without {entry!r} in {name} of step {number + 1} ({step.use})"
        yield words, StepConfig(**{**_own(step), **step.options, name: left})


def _own(step: StepConfig) -> dict[str, object]:
    return {name: getattr(step, name) for name in StepConfig.model_fields}
