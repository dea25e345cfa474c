"""Answers compared, and the smallest change found by trying."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from sendswitch.journal.compare import Difference, Tally, action, differing, tally_from_json, told
from sendswitch.mail.content import InMemory
from sendswitch.mail.edits import AddHeader
from sendswitch.mail.verdict import Action, Deferral, Denial, Verdict
from sendswitch.pipeline.recording import Case
from sendswitch.pipeline.smallest_change import SmallestChange, smallest_change
from sendswitch.pipeline.trial import Trial
from sendswitch.processors import registry
from sendswitch.processors.base import Services
from sendswitch.queue.policy import Policy
from sendswitch.routing import Route
from sendswitch.testing import envelope, message

POLICY = Policy(1000.0, "pass", 1000.0)
DENY = Verdict.deny("no", reply="550 5.7.1 no")


@pytest.mark.parametrize(
    ("was", "now", "fields"),
    [
        (None, Verdict.passed("whatever"), ()),
        (None, Verdict(), ()),
        (Verdict.passed("a"), Verdict.passed("b"), ()),
        (None, Verdict.tagged("T"), ("tags",)),
        (DENY, replace(DENY, reason="other"), ()),
        (DENY, Verdict.deny("no", reply="554 5.7.1 never"), ("reply",)),
        (Verdict(edits=(AddHeader("A", "b"),)), Verdict(), ("edits",)),
        (Verdict.forwarded("a@x"), Verdict.forwarded("b@x", keep_copy=True), ("forward", "keep_copy")),
        (DENY, Verdict.passed(), ("action", "reply")),
        (DENY, Deferral("later"), ("action",)),
    ],
)
def test_what_would_be_noticed(was: Verdict | None, now: Verdict | Deferral, fields: tuple[str, ...]) -> None:
    assert differing(was, now) == fields


def test_answers_in_a_few_words() -> None:
    assert told(None) == "pass"
    assert told(Deferral("x")) == action(Deferral("x")) == "defer"
    assert told(replace(Verdict.forwarded("a@x"), tags=("T", "U"))) == "forward to a@x [T U]"


def test_a_tally_becomes_json_and_comes_back() -> None:
    tally = Tally(1)
    difference = Difference("1.0", "a@x", "b@y", "hi", "pass", "deny", ("action",), "no", "lists")
    tally.add(None, "pass", "pass")
    tally.add(difference, "pass", "deny")
    tally.add(difference, "pass", "deny")
    again = tally_from_json(orjson.loads(orjson.dumps(tally.to_json())), 1)
    assert again == tally
    assert (again.total, again.differing, len(again.differences)) == (3, 2, 1)


def case(verdict: Verdict | None = None, sender: str = "joe@spam.example") -> Case:
    sent = envelope(sender)
    return Case(1, 0, sent.recipients[0], sent, InMemory(message(From_=sender)), "hi", 1000.0, 1, verdict)


def trial(text: str, **options: Any) -> Trial:
    route = Route("ann@example.test", 3, options.get("deadline", 60.0), options.get("on_timeout", "pass"), "bounce")
    return Trial(registry.check(text, "test"), route, POLICY, limit=options.get("limit", 10.0), services=Services())


async def judged(text: str, **options: Any) -> Case:
    """A case as this pipeline judges it."""
    one = trial(text, **options)
    answer = await one.replay(case())
    await one.close()
    assert isinstance(answer, Verdict)
    return case(answer)


LISTS = '[[step]]\nuse = "lists"\nallow = ["friend.example"]\ndeny = ["a.example", "spam.example", "b.example"]\n'


@pytest.mark.parametrize(
    ("pipeline", "change", "then"),
    [
        (LISTS, "Without 'spam.example' in deny of step 1 (lists)", "PASS, because the pipeline came to its end"),
        (
            '[[step]]\nuse = "tag"\ntags = ["T"]\n' + LISTS + '[[step]]\nuse = "hold"\n',
            "Without 'spam.example' in deny of step 2 (lists)",
            "PENDING [T], because the step says hold",
        ),
        ('[[step]]\nuse = "quarantine"\nreason = "odd"\n', "Without step 1 (quarantine)", "PASS, because the pipe"),
        (
            '[[step]]\nuse = "forward"\nto = ["a@x", "b@x"]\n',
            "Without 'a@x' in to of step 1 (forward)",
            "FORWARD to b@x, because",
        ),
        ('[[step]]\nuse = "forward"\nto = ["a@x"]\n', "Without step 1 (forward)", "PASS"),
        # Two entries say the same: neither alone decided.
        (
            '[[step]]\nuse = "lists"\ndeny = ["spam.example", "joe@spam.example"]\n',
            "Without step 1 (lists)",
            "PASS, because the pipeline came to its end",
        ),
        (LISTS + LISTS, "", ""),
        ('[[step]]\nuse = "tag"\ntags = ["T"]\n', "", ""),
        ("", "", ""),
    ],
)
async def test_the_smallest_change(pipeline: str, change: str, then: str) -> None:
    async def inside() -> SmallestChange:
        return await smallest_change(await judged(pipeline), trial(pipeline))

    found = await inside()
    assert found.change == change
    assert found.then.startswith(then)
    assert found.sentence.startswith(change or "No step, left out alone")


async def test_a_verdict_that_came_too_late(tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text("import asyncio\nasync def process(mail, context):\n    await asyncio.sleep(30)\n")
    text = f'[[step]]\nuse = "python"\nfile = "{program}"\n'

    async def inside() -> SmallestChange:
        one = await judged(text, deadline=0.5, on_timeout="quarantine")
        assert one.verdict is not None
        assert one.verdict.action is Action.QUARANTINE
        # Mended since: what would it have said in time?
        program.write_text("async def process(mail, context):\n    return None\n")
        mended = trial(text)
        try:
            return await smallest_change(one, mended)
        finally:
            await mended.close()

    found = await inside()
    assert found.sentence == "With an answer in time it would have been PASS, because the pipeline came to its end."


async def test_a_step_knows_that_it_is_a_rehearsal(tmp_path: Path) -> None:
    program = tmp_path / "asks.py"
    program.write_text(
        "from sendswitch.mail.verdict import Verdict\n"
        "async def process(mail, context):\n"
        "    return Verdict.tagged('REHEARSAL' if context.rehearsal else 'EARNEST')\n"
    )
    one = await judged(f'[[step]]\nuse = "python"\nfile = "{program}"\n')
    assert one.verdict is not None
    assert one.verdict.tags == ("REHEARSAL",)
    assert (one.verdict.pipeline, one.verdict.version) == ("ann@example.test", 3)


def test_a_bounce_that_becomes_silence_is_a_difference() -> None:
    bounced = Verdict(Action.DENY, denial=Denial.BOUNCE)
    assert differing(bounced, replace(bounced, denial=Denial.DISCARD)) == ("denial",)
