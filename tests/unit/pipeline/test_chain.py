"""The fixed processors, and the chain that runs them: order, merging, limits, error policies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from sendswitch.conditions.condition import Condition
from sendswitch.conditions.pipeline import OnError
from sendswitch.errors import InvalidConfiguration
from sendswitch.journal.story import numbered, steps_of
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Deferral, Verdict
from sendswitch.mail.verdict_json import step_from_json, verdict_from_json
from sendswitch.pipeline.chain import BoundStep, Chain, build
from sendswitch.processors import registry
from sendswitch.processors.base import Context, Options
from sendswitch.testing import context, mail
from tests.verdicts import verdict_of


class Scripted:
    """A processor that does as told."""

    Options: ClassVar[type[Options]] = Options
    version = "7"

    def __init__(self, act: Callable[[Mail, Context], Any]) -> None:
        self.act, self.seen = act, 0
        self.tags: tuple[str, ...] = ()
        self.score: float | None = None

    async def process(self, mail: Mail, context: Context) -> Verdict | None:
        self.seen += 1
        self.tags, self.score = context.tags, context.score
        result = self.act(mail, context)
        if asyncio.iscoroutine(result):
            result = await result
        answer: Verdict | None = result
        return answer

    async def close(self) -> None:
        return


def link(act: Callable[[Mail, Context], Any], on_error: OnError = "defer", limit: float = 0.2) -> BoundStep:
    return BoundStep("scripted", Scripted(act), on_error, limit)


class Service(Scripted):
    """Asks somebody, who answers with a verdict as JSON."""

    async def query(self, mail: Mail, context: Context) -> dict[str, Any]:
        verdict = await self.process(mail, context)
        return verdict.to_json() if verdict else {}

    def evaluate(self, answer: Mapping[str, Any], mail: Mail, context: Context) -> Verdict | None:
        return verdict_from_json(answer) if answer else None


def service(act: Callable[[Mail, Context], Any]) -> BoundStep:
    asking = Service(act)
    return BoundStep("service", asking, "deny", 0.2, service=asking)


def seen(link: BoundStep) -> Scripted:
    assert isinstance(link.processor, Scripted)
    return link.processor


async def test_an_empty_pipeline_passes() -> None:
    verdict = verdict_of(await Chain([]).run(mail(), context()))
    assert verdict.action is Action.PASS


async def test_tags_add_up_and_the_first_action_ends_it() -> None:
    links = [
        link(lambda m, c: Verdict.tagged("A")),
        link(lambda m, c: None),
        link(lambda m, c: Verdict(score=4.5)),
        link(lambda m, c: Verdict.tagged("B", "A")),
        link(lambda m, c: Verdict(score=1.5)),
        link(lambda m, c: Verdict.quarantine("enough")),
        link(lambda m, c: Verdict.passed()),
    ]
    verdict = verdict_of(await Chain(links).run(mail(), context()))
    assert (verdict.action, verdict.tags, verdict.reason) == (Action.QUARANTINE, ("A", "B"), "enough")
    assert verdict.score == 4.5
    said = ["tags A", "no opinion", "no opinion", "tags B, A", "no opinion", "quarantine"]
    assert [step.outcome for step in verdict.trace] == said
    assert {step.version for step in verdict.trace} == {"7"}
    assert (seen(links[5]).tags, seen(links[5]).score) == (("A", "B"), 4.5)
    assert seen(links[6]).seen == 0


def boom(mail: Mail, context: Context) -> Verdict:
    raise KeyError("what the author did wrong")


async def hang() -> Verdict:
    await asyncio.sleep(60)
    return Verdict.passed()


@pytest.mark.parametrize("fault", [boom, lambda m, c: hang()])
async def test_error_policies(fault: Callable[[Mail, Context], Any]) -> None:
    answer = await Chain([link(fault, "defer")]).run(mail(), context())
    assert isinstance(answer, Deferral)
    assert "scripted" in answer.reason
    assert answer.trace[0].outcome in ("error", "timeout")
    assert verdict_of(await Chain([link(fault, "skip")]).run(mail(), context())).action is Action.PASS
    denied = verdict_of(await Chain([link(fault, "deny")]).run(mail(), context()))
    assert denied.action is Action.DENY
    assert denied.reply is not None
    assert denied.reply.code == 550
    assert verdict_of(await Chain([link(fault, "hold")]).run(mail(), context())).action is Action.PENDING


async def test_the_fixed_processors_come_in_through_the_same_door() -> None:
    assert {"pass", "deny", "tag", "forward", "hold", "quarantine", "lists", "python"} <= set(registry.names())
    text = '[[step]]\nuse = "tag"\ntags = ["NEWS"]\n[[step]]\nuse = "forward"\nto = ["dave@example.test"]\n'
    text += "keep_copy = true\n"
    verdict = verdict_of(await build(registry.check(text, "p"), 10).run(mail(), context()))
    assert (verdict.action, verdict.forward, verdict.keep_copy) == (Action.FORWARD, ("dave@example.test",), True)
    assert verdict.tags == ("NEWS",)
    hold = verdict_of(
        await build(registry.check('[[step]]\nuse = "hold"\ntime = "1h"\nthen = "deny"\n', "p"), 10).run(
            mail(), context()
        )
    )
    assert (hold.action, hold.hold, hold.then) == (Action.PENDING, 3600, "deny")


ANSWERS: list[Callable[[Mail, Context], Any]] = [
    lambda mail, context: Verdict.deny("no", reply="550 5.7.1 no"),
    lambda mail, context: Verdict.tagged("SPAM"),
    lambda mail, context: None,
    boom,
]


@pytest.mark.parametrize("act", ANSWERS)
async def test_a_service_is_not_asked_again_in_a_replay(act: Callable[[Mail, Context], Any]) -> None:
    earlier = service(act)
    first = verdict_of(await Chain([link(lambda mail, context: None), earlier]).run(mail(), context()))
    trace = tuple(step_from_json(step.to_json()) for step in first.trace)
    assert trace[0].answer is None
    assert trace[1].answer is not None
    never = service(lambda mail, context: pytest.fail("asked again"))
    again = verdict_of(await Chain([link(lambda mail, context: None), never]).run(mail(), context(), trace))
    assert again.with_trace(()) == first.with_trace(())
    assert [(step.outcome, step.saw) for step in again.trace] == [(step.outcome, step.saw) for step in first.trace]
    # Each answer counts once, and one that was never given is a failure of that step.
    twice = await Chain([never, never]).run(mail(), context(), ())
    assert twice.trace[0].saw == "no answer of this service is on record"


async def test_a_step_is_asked_only_when_its_condition_holds() -> None:
    links = [
        link(lambda m, c: Verdict.tagged("SPAM") if "buy" in m.subject else None),
        replace(
            link(lambda m, c: Verdict.quarantine("spam")), when=Condition("tag:SPAM and not from:*@friend.example")
        ),
    ]
    chain = Chain(links)
    passed = verdict_of(await chain.run(mail(Subject="hello"), context()))
    assert (passed.action, passed.trace[1].outcome) == (Action.PASS, "not asked")
    assert passed.trace[1].saw == "only when tag:SPAM and not from:*@friend.example"
    assert verdict_of(await chain.run(mail(Subject="buy"), context())).action is Action.QUARANTINE
    assert verdict_of(await chain.run(mail(Subject="buy"), context("joe@friend.example"))).action is Action.PASS
    assert seen(links[1]).seen == 1
    assert "was not asked: only when tag:SPAM" in numbered(steps_of(passed.to_json()))[1]


@pytest.mark.parametrize(
    "act", [boom, lambda m, c: Verdict.deny("no"), lambda m, c: Verdict.tagged("X"), lambda m, c: hang()]
)
async def test_of_a_step_in_the_shadow_comes_nothing(act: Callable[[Mail, Context], Any]) -> None:
    links = [replace(link(act, "deny"), shadow=True), link(lambda m, c: Verdict.tagged("Y"))]
    verdict = verdict_of(await Chain(links).run(mail(), context()))
    assert (verdict.action, verdict.tags) == (Action.PASS, ("Y",))
    shadow, other = verdict.trace
    assert (shadow.shadow, shadow.to_json()["outcome"].endswith(", in the shadow")) == (True, True)
    assert (shadow.spoke, other.spoke) == (False, True)


async def test_a_step_in_the_shadow_leaves_its_own_effects_out() -> None:
    seen: list[bool] = []
    watching = replace(link(lambda m, c: seen.append(c.rehearsal)), shadow=True)
    await Chain([watching, link(lambda m, c: seen.append(c.rehearsal))]).run(mail(), context())
    assert seen == [True, False]


def test_conditions_and_shadows_are_checked_when_a_pipeline_is_saved() -> None:
    step = "[[step]]\nuse = 'pass'\nwhen = 'tag:A and colour:red'\n"
    with pytest.raises(InvalidConfiguration) as caught:
        registry.check(step, "joe.toml")
    assert caught.value.problems[0].startswith("joe.toml:3: step.0.when: the condition is wrong at 'colour:red'")
    checked = registry.check("[[step]]\nuse = 'pass'\nwhen = 'tag:A'\nshadow = true\n", "joe.toml")
    (made,) = build(checked, 1.0).steps
    assert (made.when is not None, made.shadow) == (True, True)
