"""Verdicts: read, written and checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.edits import AddHeader, MarkSubject, RemoveHeader, SetHeader
from sendswitch.mail.verdict import Action, AfterHold, Denial, StepRecord, Verdict
from sendswitch.mail.verdict_checks import checked
from sendswitch.mail.verdict_json import step_from_json, verdict_from_json
from sendswitch.reply import Reply

EDITS = st.one_of(
    st.builds(AddHeader, st.just("X"), st.text(max_size=5)),
    st.builds(SetHeader, st.just("X"), st.text(max_size=5)),
    st.builds(RemoveHeader, st.just("X")),
    st.builds(MarkSubject, st.text(max_size=5)),
)


VERDICTS = st.builds(
    Verdict,
    action=st.one_of(st.none(), st.sampled_from(Action)),
    tags=st.lists(st.sampled_from(["SPAM", "VIRUS", "x-1"]), unique=True).map(tuple),
    edits=st.lists(EDITS, max_size=3).map(tuple),
    forward=st.lists(st.just("a@b"), max_size=1).map(tuple),
    keep_copy=st.booleans(),
    reply=st.one_of(st.none(), st.just(Reply(550, "5.7.1", "no"))),
    reason=st.text(max_size=20),
    hold=st.one_of(st.none(), st.floats(1, 1e6)),
    then=st.sampled_from(AfterHold),
    denial=st.sampled_from(Denial),
    score=st.one_of(st.none(), st.floats(-1e3, 1e3)),
    trace=st.lists(st.builds(StepRecord, st.just("p"), st.just("1"), st.just(0.5), st.just("x")), max_size=2).map(
        tuple
    ),
)


def test_only_what_is_built_in_can_cut() -> None:
    data = {"edits": [{"add": "X-A", "value": "1"}, {"cut": [10, 20], "text": ""}]}
    assert len(verdict_from_json(data).edits) == 2
    with pytest.raises(ValueError, match="only what is built in can cut"):
        verdict_from_json(data, outside=True)


def test_a_score_of_nothing_is_a_score() -> None:
    assert verdict_from_json(Verdict(score=0.0).to_json()).score == 0.0


@given(VERDICTS)
def test_a_verdict_comes_back_from_json(verdict: Verdict) -> None:
    denied = verdict.action is Action.DENY  # then `then` has no meaning, else `denial`
    kept = replace(verdict, then=AfterHold.UNSET) if denied else replace(verdict, denial=Denial.UNSET)
    assert verdict_from_json(verdict.to_json()) == kept


@pytest.mark.parametrize(
    "data",
    [
        {"forward": "bob@x"},
        {"forward": ["a@x>\r\nRSET"]},
        {"action": "forward"},
        {"reply": "250 ok"},
        {"reply": "421 4.3.2 bye"},
        {"edits": [{"add": "X Bad", "value": "1"}]},
        {"edits": [{"mark_subject": 5}]},
        {"then": "explode"},
        {"hold": "nan"},
        {"hold": float("inf")},
        {"hold": -1},
        {"then": "ask"},
        {"then": "ask", "hold": 0},
        {"score": float("nan")},
        {"score": float("inf")},
        {"score": "high"},
        {"acton": "pass"},
        {"action": "nope"},
        {"tags": "SPAM"},
        {"tags": ["a b"]},
        {"reply": "no"},
        {"edits": [{"x": 1}]},
    ],
)
def test_a_bad_verdict_says_what_is_wrong(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        checked(verdict_from_json(data))


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict(Action.FORWARD, forward="a@b"), "list of at most"),  # type: ignore[arg-type]
        (Verdict(Action.FORWARD), "needs an address"),
        (Verdict(Action.PENDING, then="explode"), "none of"),  # type: ignore[arg-type]
        (Verdict(Action.DENY, denial="explode"), "none of"),  # type: ignore[arg-type]
        (Verdict(edits=(AddHeader("X: y", "1"),)), "no header field name"),
        (Verdict(edits=(AddHeader("X", "\ud800"),)), "text of at most"),
        (Verdict(Action.FORWARD, forward=("\ud800@b",)), "no mail address"),
        (Verdict(edits=(MarkSubject("x"),) * 1000), "header edits; at most"),
        (Verdict(rewrite=True), "only the switch"),
        (Verdict(tags="SPAM"), "list of words"),  # type: ignore[arg-type]
        (Verdict(tags=tuple(f"T{n}" for n in range(1000))), "are kept"),
    ],
)
def test_what_cannot_be_carried_out_is_no_verdict(verdict: Verdict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked(verdict)


def test_the_value_of_a_header_field_is_text() -> None:
    """Compiled, the edit itself refuses another value."""
    with pytest.raises((ValueError, TypeError), match=r"text of at most|str object expected"):
        checked(Verdict(edits=(AddHeader("X", 5),)))  # type: ignore[arg-type]


def test_from_outside_then_must_fit_the_action() -> None:
    for data in ({"action": "pending", "hold": 60, "then": "discard"}, {"action": "deny", "then": "ask"}):
        with pytest.raises(ValueError, match="then: "):
            verdict_from_json(data, outside=True)


def test_words_given_as_text_become_what_they_mean() -> None:
    verdict = checked(Verdict(Action.PENDING, hold=60, then="ask"))  # type: ignore[arg-type]
    assert verdict.then is AfterHold.ASK
    assert verdict.to_json()["then"] == "ask"


@pytest.mark.parametrize(
    ("data", "then", "denial"),
    [
        ({"action": "pass", "then": "bounce"}, AfterHold.UNSET, Denial.UNSET),  # a DENY that was released
        ({"action": "deny", "then": "pass"}, AfterHold.UNSET, Denial.UNSET),
        ({"action": "deny", "then": "quarantine"}, AfterHold.UNSET, Denial.QUARANTINE),
        ({"action": "pending", "then": "quarantine"}, AfterHold.QUARANTINE, Denial.UNSET),
    ],
)
def test_then_is_read_by_the_action(data: dict[str, str], then: AfterHold, denial: Denial) -> None:
    verdict = verdict_from_json(data)
    assert (verdict.then, verdict.denial) == (then, denial)


def test_what_comes_from_outside_throws_nothing_away() -> None:
    told = {"action": "deny", "then": "discard"}
    assert verdict_from_json(told).denial is Denial.DISCARD
    with pytest.raises(ValueError, match="then: what is denied is thrown away where the pipeline says"):
        verdict_from_json(told, outside=True)


def test_a_reason_is_made_fit_to_be_kept() -> None:
    assert checked(Verdict.passed("a\0b\ud800" + "x" * 5000)).reason == "ab?" + "x" * 996
    assert checked(Verdict.passed("fine")).reason == "fine"


def test_a_verdict_is_read_as_it_was_written() -> None:
    edits = (AddHeader("X", "1"), SetHeader("Y", "2"), RemoveHeader("Z"), MarkSubject("*S* "))
    step = StepRecord("lists", "1", 0.5, "deny", "saw it")
    verdict = Verdict(Action.DENY, ("T",), edits, reply=Reply(550, "5.7.1", "no"), reason="r", trace=(step,))
    assert verdict_from_json(checked(verdict).to_json()) == verdict
    empty = Verdict(hold=5.0, then=AfterHold.DENY, forward=("a@b",), keep_copy=True, trace=(StepRecord("x"),))
    assert verdict_from_json(empty.to_json()) == empty
    with pytest.raises(ValueError, match="not a header edit"):
        verdict_from_json({"edits": [{"explode": "X"}]})


def test_how_much_a_verdict_writes() -> None:
    edits = (AddHeader("A", "12345"), SetHeader("B", "678"), RemoveHeader("C"), MarkSubject("[X]"))
    assert Verdict(Action.PASS, edits=edits).written == 8


@pytest.mark.parametrize(
    ("outcome", "failed", "spoke"),
    [
        ("error", True, True),
        ("timeout, in the shadow", True, False),
        ("pass", False, True),
        ("deny, in the shadow", False, False),
        ("no opinion", False, False),
        ("", False, True),
    ],
)
def test_a_step_is_read_from_its_outcome(outcome: str, failed: bool, spoke: bool) -> None:
    step = step_from_json({"processor": "x", "outcome": outcome})
    assert (step.failed, step.spoke) == (failed, spoke)
    assert step.to_json().get("outcome", "") == outcome
