"""Tasks and answers as bytes: the same again, and nothing else is accepted."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.broker.codec import MAX_ANSWER, decode_answer, decode_task, encode_answer, encode_task
from sendswitch.mail.content import InFile, InMemory
from sendswitch.mail.edits import AddHeader, Cut, MarkSubject
from sendswitch.mail.envelope import Client, Recipient
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import LATE, Action, Deferral, StepRecord, Verdict
from sendswitch.reply import Reply

TASK = Task(
    message=2**62,
    n=3,
    token="aa" * 16,
    recipient=Recipient("jürgen@example.test", "SUCCESS", "rfc822;x"),
    sender="",
    client=Client(address="192.0.2.1", helo="there.example", login="ann"),
    content=InMemory(b"Subject: x\r\n\r\n\nline\n\0\xff"),
    pipeline="ann@example.test",
    version=7,
    queue="tasks.pool",
    deadline=30.0,
    attempt=2,
    rehearsal=True,
    digest=b"\1" * 32,
)
TRACE = (StepRecord("lists", "1", 0.25, "pass", "on the allow list", {"score": 1.5}),)
VERDICT = Verdict(
    action=Action.DENY, tags=("SPAM",), edits=(AddHeader("X-A", "ü"), MarkSubject("[SPAM]")),
    reply=Reply(550, "5.7.1", "no"), reason="spam", score=7.5, trace=TRACE, pipeline="ann@example.test", version=7,
)  # fmt: skip


def fields(task: Task) -> dict[str, Any]:
    return {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}


@pytest.mark.parametrize("content", [TASK.content, InMemory(b""), Reference(2**62, 10**9, b"\1" * 32)])
def test_a_task_comes_out_as_it_went_in(content: Any) -> None:
    task = replace(TASK, content=content)
    assert fields(decode_task(encode_task(task))) == fields(task)


def test_content_in_a_file_goes_by_reference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="by reference"):
        encode_task(replace(TASK, content=InFile(tmp_path / "x", 10)))


@pytest.mark.parametrize(
    "result",
    [VERDICT, Deferral("later", TRACE, "ann@example.test", 7, LATE), Deferral("")],
    ids=["verdict", "deferral", "empty deferral"],
)
def test_an_answer_comes_out_as_it_went_in(result: Verdict | Deferral) -> None:
    answer = Answer(2**62, 3, "aa" * 16, result)
    assert decode_answer(encode_answer(answer)) == answer


def test_a_cut_is_for_the_site_s_own_workers() -> None:
    answer = Answer(1, 0, "a", Verdict(Action.PASS, edits=(Cut(10, 20, "removed"),)))
    assert decode_answer(encode_answer(answer), outside=False) == answer
    with pytest.raises(ValueError, match="cut"):
        decode_answer(encode_answer(answer))


def test_a_pipeline_may_make_more_edits_than_a_step() -> None:
    answer = Answer(1, 0, "a", Verdict(Action.PASS, edits=(AddHeader("X-A", "1"),) * 5000))
    assert decode_answer(encode_answer(answer)) == answer
    with pytest.raises(ValueError, match="header edits"):
        decode_answer(
            encode_answer(replace(answer, result=Verdict(Action.PASS, edits=(AddHeader("X-A", "1"),) * 10_001)))
        )


def altered(data: bytes, **fields: Any) -> bytes:
    line, newline, rest = data.partition(b"\n")
    told = orjson.loads(line) | fields
    return orjson.dumps({name: value for name, value in told.items() if value is not ...}) + newline + rest


@pytest.mark.parametrize("field", [name for name in orjson.loads(encode_task(TASK).partition(b"\n")[0])])
def test_a_task_with_a_wrong_field_is_refused(field: str) -> None:
    values: list[Any] = [None, []]
    if field in ("message", "n", "size", "digest", "deadline"):
        values.append("x")
    for value in values:
        with pytest.raises(ValueError, match=r"."):
            decode_task(altered(encode_task(TASK), **{field: value}))


def test_a_task_with_cut_content_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes of content"):
        decode_task(encode_task(TASK)[:-1])


@pytest.mark.parametrize(
    "changed",
    [
        {"message": "1"},
        {"message": True},
        {"n": None},
        {"token": 5},
        {"verdict": ...},
        {"verdict": []},
        {"verdict": {"action": "destroy"}},
        {"verdict": {"action": "forward", "forward": ["no address"]}},
        {"verdict": {"unknown": 1}},
        {"verdict": {"rewrite": True}},
        {"verdict": {}},
        {"verdict": {"action": "pass", "trace": [{"seconds": "NaN"}]}},
        {"verdict": {"action": "pass", "trace": [{"answer": 5}]}},
        {"verdict": {"action": "pass", "trace": [{}] * 101}},
        {"verdict": {"trace": 5}},
        {"verdict": {"trace": [5]}},
        {"verdict": {"version": "x"}},
        {"verdict": {"edits": [{"add": "X: y\r\nEvil", "value": "1"}]}},
        {"deferral": {"why": "passed"}},
        {"deferral": {"trace": ["x"]}},
        {"deferral": None},
    ],
    ids=str,
)
def test_an_answer_that_cannot_be_carried_out_is_refused(changed: dict[str, Any]) -> None:
    data = encode_answer(Answer(1, 0, "a", Verdict.passed()))
    with pytest.raises(ValueError, match=r"."):
        decode_answer(altered(data, **changed))


def test_a_trace_is_made_fit_to_be_kept() -> None:
    answer = Answer(1, 0, "a", replace(Verdict.passed(), trace=(StepRecord("p\0", saw="x" * 5000),)))
    result = decode_answer(encode_answer(answer)).result
    assert (result.trace[0].processor, len(result.trace[0].saw)) == ("p", 1000)


def test_an_answer_of_any_size_is_not_read() -> None:
    with pytest.raises(ValueError, match="at most"):
        decode_answer(b" " * (MAX_ANSWER + 1))


@given(st.binary(max_size=200))
def test_rubbish_is_refused_with_one_kind_of_error(data: bytes) -> None:
    for decode in (decode_task, decode_answer):
        with contextlib.suppress(ValueError):
            decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(VERDICT.to_json())), JSON)
def test_any_json_in_a_field_is_refused_with_one_kind_of_error(field: str, value: Any) -> None:
    told = {"message": 1, "n": 0, "token": "a", "verdict": {field: value}}
    with contextlib.suppress(ValueError, TypeError):
        data = orjson.dumps(told)
        with contextlib.suppress(ValueError):
            decode_answer(data)


def test_an_answer_that_is_too_large_goes_without_what_services_said() -> None:
    step = StepRecord("webhook", "1", 0.1, "pass", "", {"text": "x" * 1000})
    answer = Answer(1, 0, "a", replace(Verdict.passed("yes"), trace=(step,) * 10))
    assert decode_answer(encode_answer(answer)) == answer
    brief = decode_answer(encode_answer(answer, 5_000)).result
    assert isinstance(brief, Verdict)
    assert (brief.reason, [one.answer for one in brief.trace]) == ("yes", [None] * 10)
    none = decode_answer(encode_answer(answer, 300)).result
    assert isinstance(none, Deferral)
    assert "at most 300 can be sent" in none.reason


def test_a_stranger_s_answer_is_read_up_to_a_smaller_size() -> None:
    answer = Answer(1, 0, "a", Verdict(Action.PASS, edits=(AddHeader("X-A", "x" * 9_000),) * 600))
    data = encode_answer(answer)
    assert decode_answer(data, outside=False) == answer
    with pytest.raises(ValueError, match="at most"):
        decode_answer(data)
