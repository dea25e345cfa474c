"""Traces made from events: the same for the same, a tree in time, and nothing of the mail in them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sendswitch.journal.events import Event
from sendswitch.journal.spans import Span, sampled, spans, trace_of, traceparent
from sendswitch.mail import ids

NOW = 1_700_000_000.0
ID = ids.first_at(NOW)
STEPS = [
    {"processor": "lists", "version": "1", "seconds": 0.25, "outcome": "no opinion", "saw": "secret@example.org"},
    {"processor": "tag", "version": "1", "seconds": 0.5, "outcome": "tags X"},
]


def event(what: str, n: int | None = 0, *, at: float = NOW + 2, seq: int = 1, **data: Any) -> Event:
    return Event(seq, ID, n, at, what, data)


def accepted(**data: Any) -> Event:
    facts: dict[str, Any] = {
        "from": "secret@example.org",
        "to": ["joe@example.test"],
        "size": 9,
        "via": "filter",
        "subject": "secret",
    }
    return event("accepted", None, at=NOW + 1, **(facts | data))


def test_a_message_is_one_tree_in_time() -> None:
    verdict = event("verdict", seq=2, action="pass", tags=["A", "B"], version=3, trace=STEPS, reason="secret")
    told = event("delivered", seq=3, at=NOW + 3, reply="250 2.0.0 Ok secret", seconds=0.5)
    root, process, first, second, deliver = spans([accepted(), verdict, told])
    assert (root.name, root.kind, root.parent, root.begin, root.end) == ("receive", "server", 0, NOW, NOW + 1)
    assert root.attributes["mail.message.id"] == ids.to_text(ID)
    assert (process.parent, process.begin, process.end) == (root.id, NOW + 1.25, NOW + 2)
    assert process.attributes["mail.tags"] == "A B"
    assert [(s.name, s.parent, s.begin, s.end) for s in (first, second)] == [
        ("step lists", process.id, NOW + 1.25, NOW + 1.5),
        ("step tag", process.id, NOW + 1.5, NOW + 2),
    ]
    assert (deliver.name, deliver.kind, deliver.begin, deliver.end) == ("deliver", "client", NOW + 2.5, NOW + 3)
    assert (deliver.parent, deliver.attributes["smtp.reply.code"]) == (root.id, 250)
    made = [root, process, first, second, deliver]
    assert {span.trace for span in made} == {trace_of(ID)}
    assert len({span.id for span in made}) == 5
    assert "secret" not in repr(made)
    assert list(spans([accepted(), verdict, told])) == made


@pytest.mark.parametrize(
    ("happened", "name", "error"),
    [
        (event("deferred", attempt=2, why="451 4.3.0 later"), "deliver", "deferred"),
        (event("deferred", attempt=1, why="no answer", trace=STEPS), "process", "defer"),
        (event("bounced", reply="550 no", reason="x"), "bounced", "bounced"),
        (event("held", reason="wait"), "held", ""),
        (event("released", by="root"), "released", ""),
    ],
)
def test_what_went_wrong_is_marked(happened: Event, name: str, error: str) -> None:
    span = next(spans([happened]))
    assert (span.name, span.error) == (name, error)
    assert span.begin <= span.end == NOW + 2


def test_mail_refused_before_the_queue_has_its_verdicts_in_one_event() -> None:
    made = list(spans([accepted(rejected="550 5.7.1 no", verdicts={"0": {"action": "deny", "trace": STEPS}})]))
    assert [span.name for span in made] == ["receive", "process", "step lists", "step tag"]
    assert made[0].error == "550"


def test_a_share_of_messages_is_the_same_everywhere() -> None:
    many = [ids.first_at(NOW) + n for n in range(2000)]
    share = [message for message in many if sampled(message, 0.25)]
    assert 400 < len(share) < 600
    assert not any(sampled(message, 0.0) for message in many)
    assert all(sampled(message, 1.0) for message in many)
    assert set(share) <= {message for message in many if sampled(message, 0.5)}
    assert list(spans([accepted()], 0.0)) == list(spans([event("candidate")])) == []


def test_who_knows_the_message_can_name_its_trace() -> None:
    root: Span = next(spans([accepted()]))
    version, trace, parent, flags = traceparent(ID).split("-")
    assert re.fullmatch("[0-9a-f]{32}", trace)
    assert (version, int(trace, 16), int(parent, 16), flags) == ("00", root.trace, root.id, "01")


def test_a_clock_set_back_makes_no_span_that_ends_before_it_begins() -> None:
    root = next(spans([Event(1, ID, None, NOW - 60, "accepted", {})]))
    assert root.begin == root.end == NOW - 60
