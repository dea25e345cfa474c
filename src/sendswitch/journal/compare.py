"""The differences between the verdict that counted and another answer, and their number. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sendswitch.mail.verdict import Action, Deferral, PipelineResult, Verdict

# What of a verdict the recipient or the sender would notice. Its reason is words, and the trace is how it came about.
NOTICED = ("action", "tags", "edits", "forward", "keep_copy", "reply", "hold", "then", "denial")

NO_PIPELINE = Verdict.passed("no pipeline")


@dataclass(frozen=True, slots=True)
class Difference:
    """One recipient's mail that would have been treated differently. `was` and `now` are actions with their tags,
    `step` is the processor that decided now."""

    id: str
    to: str
    sender: str
    subject: str
    was: str
    now: str
    fields: tuple[str, ...]
    why: str
    step: str


@dataclass(slots=True)
class Tally:
    """The result of a comparison so far: numbers by pair of actions, and the first `most` differences."""

    most: int = 1000
    total: int = 0
    differing: int = 0
    actions: Counter[tuple[str, str]] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def add(self, difference: Difference | None, was: str, now: str) -> None:
        """Count one comparison."""
        self.total += 1
        self.actions[was, now] += 1
        if difference is not None:
            self.differing += 1
            if len(self.differences) < self.most:
                self.differences.append(difference)

    def to_json(self) -> dict[str, Any]:
        """Return the tally as plain JSON values."""
        return {
            "total": self.total,
            "differing": self.differing,
            "actions": [{"was": was, "now": now, "messages": n} for (was, now), n in sorted(self.actions.items())],
            "differences": [asdict(difference) for difference in self.differences],
        }


def tally_from_json(data: Mapping[str, Any], most: int) -> Tally:
    """Return the inverse of `Tally.to_json`."""
    tally = Tally(most, int(data["total"]), int(data["differing"]))
    tally.actions.update({(row["was"], row["now"]): int(row["messages"]) for row in data["actions"]})
    tally.differences += [Difference(**row | {"fields": tuple(row["fields"])}) for row in data["differences"]]
    return tally


def action(answer: PipelineResult | None) -> str:
    """Return the action in one word; `defer` for none."""
    if isinstance(answer, Deferral):
        return "defer"
    return ((answer or NO_PIPELINE).action or Action.PASS).value


def differing(was: Verdict | None, now: PipelineResult) -> tuple[str, ...]:
    """Return which parts of both would be noticed to differ; () when the mail would have been treated the same."""
    if isinstance(now, Deferral):
        return ("action",)
    before = was or NO_PIPELINE
    return tuple(name for name in NOTICED if _part(before, name) != _part(now, name))


def _part(verdict: Verdict, name: str) -> Any:
    return action(verdict) if name == "action" else getattr(verdict, name)


def told(answer: PipelineResult | None) -> str:
    """Return an answer in a few words: its action, its tags, where it forwards to."""
    if answer is None or isinstance(answer, Deferral):
        return action(answer)
    tags = f" [{' '.join(answer.tags)}]" if answer.tags else ""
    to = f" to {', '.join(answer.forward)}" if answer.forward else ""
    return f"{action(answer)}{to}{tags}"
