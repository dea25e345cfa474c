"""What tests say about answers."""

from __future__ import annotations

from sendswitch.mail.verdict import PipelineResult, Verdict


def verdict_of(answer: PipelineResult | None) -> Verdict:
    """Return an answer that is a verdict."""
    assert isinstance(answer, Verdict), answer
    return answer
