"""What a verdict means for a delivery, and for a sender who waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sendswitch.mail.edits import AddHeader
from sendswitch.mail.envelope import Client, Recipient
from sendswitch.mail.verdict import OFFLINE, Action, Deferral, Denial, PipelineResult, Verdict
from sendswitch.queue import policy as decide
from sendswitch.reply import Reply
from sendswitch.routing import Route

POLICY = decide.Policy(hold=100.0, hold_then="pass", quarantine=1000.0)


LOCAL = Client(source="LOCAL")


REMOTE = Client(source="REMOTE", address="127.0.0.1")


def denied(then: str, reply: str = "550 5.7.1 no") -> Verdict:
    return replace(Verdict.deny("why", reply=reply), denial=Denial(then))


def effect(verdict: Verdict, *, sender: str = "s@x", client: Client = LOCAL, notify: str = "") -> decide.Effect:
    return decide.effect(
        verdict, sender=sender, recipient=Recipient("r@x", notify), client=client, policy=POLICY, now=10.0
    )


def test_effects() -> None:
    assert effect(Verdict.passed()) == decide.DeliverEffect()
    assert effect(Verdict.forwarded("a@b", keep_copy=True)) == decide.ForwardEffect(("a@b",), True)
    assert effect(Verdict.quarantine("q")) == decide.QuarantineEffect(1010.0, "q")
    assert effect(Verdict.pending("p", hold=5)) == decide.HoldEffect(15.0, "p")
    assert effect(denied("discard")) == decide.DiscardEffect("why")
    assert effect(denied("quarantine")) == decide.QuarantineEffect(1010.0, "why")
    assert effect(denied("bounce")) == decide.BounceEffect(
        Reply(550, "5.7.1", "no"), "refused by the recipient's filter"
    )
    assert decide.undecided(denied("bounce", "450 4.7.1 later")) == "denied for now: 450 4.7.1 later"
    assert decide.undecided(denied("bounce")) == ""
    assert decide.undecided(Deferral("x")) == "x"


def test_a_bounce_goes_only_where_it_is_safe() -> None:
    assert isinstance(effect(denied("bounce"), client=REMOTE), decide.QuarantineEffect)
    assert isinstance(effect(denied("bounce"), sender=""), decide.QuarantineEffect)
    assert isinstance(effect(denied("bounce"), notify="NEVER"), decide.QuarantineEffect)
    assert isinstance(effect(denied("bounce"), notify="SUCCESS"), decide.QuarantineEffect)
    assert isinstance(effect(denied("bounce"), notify="FAILURE"), decide.BounceEffect)


@pytest.mark.parametrize(
    ("client", "local"),
    [
        (Client(), True),
        (Client(address="127.0.0.1"), True),
        (Client(address="::1"), True),
        (Client(address="192.0.2.1"), False),
        (Client(address="nonsense"), False),
        (REMOTE, False),
    ],
)
def test_who_is_local(client: Client, local: bool) -> None:
    assert decide.is_local(client) is local


def test_a_route_completes_a_verdict() -> None:
    route = Route("o", 1, 60, "quarantine", "discard")
    done = decide.completed(Verdict.deny("x"), route, POLICY)
    assert isinstance(done, Verdict)
    assert (done.denial, done.reply) == ("discard", decide.REFUSED)
    silent = decide.completed(Verdict(Action.DENY, denial=Denial.DISCARD), replace(route, deny="bounce"), POLICY)
    assert isinstance(silent, Verdict)
    assert (silent.denial, silent.reply) == ("discard", None)
    held = decide.completed(Verdict.pending("x", hold=10**9), route, POLICY)
    assert isinstance(held, Verdict)
    assert (held.hold, held.then) == (100.0, "pass")
    assert decide.completed(Deferral("x"), route, POLICY) == Deferral("x", pipeline="o", version=1)


@pytest.mark.parametrize(
    ("policy", "action"),
    [("pass", Action.PASS), ("deny", Action.DENY), ("hold", Action.PENDING), ("quarantine", Action.QUARANTINE)],
)
def test_deadlines(policy: str, action: Action) -> None:
    verdict = decide.on_timeout(Route("o", 1, 60, policy, "bounce"))
    assert isinstance(verdict, Verdict)
    assert verdict.action is action
    assert "60 s" in verdict.reason


def test_a_deadline_defers_where_nobody_said_otherwise() -> None:
    answer = decide.on_timeout(Route("o", 1, 60, "defer", "bounce"))
    assert isinstance(answer, Deferral)
    assert "60 s" in decide.undecided(answer)


@pytest.mark.parametrize("then", ["", "pass", "deny", "quarantine"])
def test_after_a_delay_the_pipeline_is_asked_again(then: str) -> None:
    assert not decide.asked_again(Verdict.pending("x", then=then))
    assert decide.asked_again(Verdict.pending("x", then="ask"))


@pytest.mark.parametrize(
    ("then", "action"),
    [
        ("", Action.QUARANTINE),
        ("ask", Action.QUARANTINE),
        ("pass", Action.PASS),
        ("deny", Action.DENY),
        ("quarantine", Action.QUARANTINE),
    ],
)
def test_after_a_hold(then: str, action: Action) -> None:
    assert decide.after_hold(Verdict.pending("x", then=then)).action is action


@pytest.mark.parametrize(("on_timeout", "action"), [("deny", "deny"), ("hold", "pending"), ("quarantine",) * 2])
def test_what_counts_when_no_verdict_came(on_timeout: str, action: str) -> None:
    verdict = decide.on_timeout(Route("a@b", 1, 60, on_timeout, "bounce"))
    assert isinstance(verdict, Verdict)
    assert verdict.action == Action(action)


def test_what_a_deferral_and_a_hold_become() -> None:
    route = Route("a@b", 1, 60, "pass", "bounce")
    deferral = Deferral("later")
    assert decide.completed(deferral, route, POLICY) == Deferral("later", pipeline="a@b", version=1)
    assert decide.undecided(Verdict.passed()) == ""
    assert decide.completed(Verdict.passed(), route, POLICY) == Verdict(Action.PASS, pipeline="a@b", version=1)


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (decide.DeliverEffect(), "It would be delivered."),
        (decide.ForwardEffect(("a@x", "b@x"), True), "It would be forwarded to a@x, b@x, and delivered."),
        (decide.ForwardEffect(("a@x",), False), "It would be forwarded to a@x."),
        (
            decide.BounceEffect(decide.REFUSED, "x"),
            f"It would not be delivered, and the sender would be sent a report: {decide.REFUSED}.",
        ),
        (decide.QuarantineEffect(1.0, "odd"), "It would be put into quarantine: odd."),
        (decide.HoldEffect(1.0, "later"), "It would be held: later."),
        (decide.DiscardEffect("no"), "It would be thrown away: no."),
    ],
)
def test_an_effect_in_words(effect: decide.Effect, words: str) -> None:
    assert decide.in_words(effect) == words


NO, LATER = Reply(550, "5.7.1", "no"), Reply(450, "4.7.1", "later")
TAGGED = Verdict(Action.PASS, tags=("X",))


@pytest.mark.parametrize(
    ("answers", "reply"),
    [
        ([Verdict(Action.DENY, reply=NO)], NO),
        ([Verdict(Action.DENY, reply=NO), Verdict(Action.DENY, reply=LATER)], LATER),
        ([Verdict(Action.DENY, reply=NO), None], None),
        ([Verdict(Action.DENY, reply=NO), Verdict(Action.DENY, denial=Denial.DISCARD)], None),
        ([Verdict(Action.DENY, reply=NO), Deferral("down")], None),
        ([Verdict.passed()], None),
    ],
)
def test_a_waiting_sender_is_refused_when_all_refuse(answers: list[PipelineResult | None], reply: Reply | None) -> None:
    assert decide.refused_by_all(answers) == reply


@pytest.mark.parametrize(
    ("answers", "alike"),
    [
        ([None], True),
        ([None, Verdict.passed("for another reason"), Verdict()], True),
        ([TAGGED, replace(TAGGED, reason="for another reason")], True),
        ([TAGGED, None], False),
        ([replace(TAGGED, edits=(AddHeader("X", "y"),)), TAGGED], False),
        ([None, Deferral("down")], False),
        ([None, Verdict.deny()], False),
    ],
)
def test_one_transaction_carries_what_passes_alike(answers: list[PipelineResult | None], alike: bool) -> None:
    assert decide.pass_alike(answers) == alike


@pytest.mark.parametrize(("answer", "action"), [("pass", "pass"), ("hold", "pending"), ("quarantine",) * 2])
def test_what_counts_when_no_worker_is_there(answer: str, action: str) -> None:
    route = Route("a@b", 1, 60, "deny", "bounce", when_offline=answer)
    verdict = decide.when_offline(route, "nobody is there")
    assert isinstance(verdict, Verdict)
    assert (verdict.action, verdict.reason) == (action, f"nobody is there, and when_offline is {answer}")


def test_mail_waits_for_a_worker() -> None:
    deferral = decide.when_offline(Route("a@b", 1, 60, "pass", "bounce"), "nobody is there")
    assert deferral == Deferral("nobody is there, and when_offline is defer", why=OFFLINE)
