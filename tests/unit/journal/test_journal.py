"""Events folded into rows, search words, and stories told; the databases are in tests/integration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.errors import InvalidSearch
from sendswitch.journal.events import Event, fold
from sendswitch.journal.search import ACTIONS, NAMES, OF_MOVING, OF_SPOOLED, STATES, SearchFacts, Term, matches, parse
from sendswitch.journal.story import explain, recipients, timeline
from sendswitch.mail.ids import first_at, to_text
from sendswitch.mail.verdict import Action
from sendswitch.spool.states import State

NOW = 1_700_000_000.0
CAME = {"from": "a@b", "to": ["ann@x", "bob@x"], "size": 9, "via": "filter", "subject": "hi", "client": {"helo": "h"}}
STEP = {"processor": "lists", "version": "1", "seconds": 0.0012, "outcome": "deny", "saw": "<a@b>"}
DENY = {"action": "deny", "tags": ["T"], "reason": "no", "reply": "550 5.7.1 no", "trace": [STEP]}


def story(*told: tuple[int | None, str, dict[str, Any]]) -> list[Event]:
    return [Event(seq, 1, n, NOW + seq, event, data) for seq, (n, event, data) in enumerate(told, 1)]


def test_rows_hold_what_is_true_at_the_end() -> None:
    events = story(
        (None, "accepted", CAME),
        (None, "something new", {}),
        (0, "verdict", DENY),
        (0, "bounced", {"reply": "550 5.7.1 no"}),
        (1, "deferred", {"why": "451 busy", "attempt": 3}),
    )
    batch = fold(events)
    assert batch.messages[1]["helo"] == "h"
    assert batch.deliveries[1, 0]["state"] == "bounced"
    assert batch.deliveries[1, 0]["tags"] == " T "
    assert batch.deliveries[1, 1]["attempts"] == 3
    assert batch.changes == {}
    later = fold(events[2:])
    assert later.changes[1, 0]["state"] == "bounced"
    assert later.changes[1, 0]["action"] == "deny"
    assert "state" not in later.changes[1, 1]
    assert "reply" not in fold(story((0, "verdict", DENY))).changes[1, 0]
    forwarded = story((None, "accepted", CAME), (0, "forwarded", {"to": ["d@x"], "children": [[2, "d@x", "accepted"]]}))
    assert fold(forwarded).deliveries[1, 2]["recipient"] == "d@x"
    assert fold(story((None, "accepted", CAME | {"delivered": "250 ok"}))).deliveries[1, 1]["state"] == "delivered"
    assert fold(story((0, "verdict", {"action": "pass"}))).changes[1, 0]["processor"] == ""


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("  plain  words ", [Term("text", "plain"), Term("text", "words")]),
        ('"one phrase" -from:x', [Term("text", "one phrase"), Term("from", "x", True)]),
        ('subject:"two words" !tag:SPAM', [Term("subject", "two words"), Term("tag", "SPAM", True)]),
        ("larger:1MB SMALLER:2k", None),
        ("larger:1MB", [Term("larger", 1e6)]),
        ("after:1h", [Term("after", NOW - 3600)]),
        ("user:ANN@X state:Held", [Term("user", "ann@x"), Term("state", "held")]),
        ("after:2023-13-01", None),
        ("colour:red", None),
    ],
)
def test_search_words(text: str, terms: list[Term] | None) -> None:
    if terms is None:
        with pytest.raises(InvalidSearch):
            parse(text, NOW)
    else:
        assert parse(text, NOW) == terms


def test_days() -> None:
    (today,), (yesterday,) = parse("after:today", NOW), parse("before:yesterday", NOW)
    assert float(today.value) - float(yesterday.value) in (82800, 86400, 90000)  # summer time may begin or end
    assert NOW - 90000 < float(today.value) <= NOW
    (day,) = parse("after:2023-11-01", NOW)
    assert abs(float(day.value) - 1_698_800_000) < 2 * 86400


@given(st.text(max_size=60))
def test_no_search_does_worse_than_say_what_is_wrong(text: str) -> None:
    try:
        terms = parse(text, NOW)
    except InvalidSearch:
        return
    assert all(term.name in NAMES for term in terms)


def test_a_story_from_beginning_to_end() -> None:
    events = story(
        (None, "accepted", CAME),
        (0, "deferred", {"why": "no answer", "attempt": 1, "trace": [STEP]}),
        (0, "verdict", {"action": "forward", "trace": []}),
        (
            0,
            "forwarded",
            {"to": ["dave@x"], "copy": True, "children": [[2, "dave@x", "accepted"], [3, "ann@x", "decided"]]},
        ),
        (1, "verdict", DENY),
        (1, "held", {"reason": ""}),
        (1, "hold expired", {"then": {"action": "pass"}}),
        (1, "answered", {"by": "root", "answer": "quarantine", "reason": "odd"}),
        (1, "quarantined", {"reason": "odd"}),
        (1, "released", {"by": "root"}),
        (2, "deferred", {"why": "lost", "attempt": 1, "may_have_been_delivered": True}),
        (2, "failed", {"reply": "550 no", "reason": "refused"}),
        (3, "delivered", {"reply": "250 ok", "seconds": 0.25}),
        (3, "discarded", {"reason": "told so"}),
    )
    assert recipients(events) == {0: "ann@x", 1: "bob@x", 2: "dave@x", 3: "ann@x"}
    lines = timeline(reversed_(events))
    assert [line.recipient for line in lines[:2]] == ["", "ann@x"]
    assert lines[0].text == 'Accepted after the queue (content filter) from h: from <a@b>, 9 bytes, "hi".'
    assert lines[1].text == "No answer from the pipeline at attempt 1: no answer; tried again later."
    ann = explain(events, 0, "forwarded")
    assert ann.steps[0].processor == "lists"
    assert ann.sentences[1] == "Step 1: lists (version 1) took 1.2 ms and said deny: <a@b>."
    assert ann.sentences[-2:] == ("Forwarded to dave@x, with a copy here.", "It was forwarded.")
    bob = " ".join(explain(events, 1, "decided").sentences)
    for words in (
        "The verdict was DENY with the tags T, because no; a sender is told 550 5.7.1 no.",
        "Held: the pipeline asked for it.",
        "The time of its hold was over; then: The verdict was PASS.",
        "Answered QUARANTINE by root, because odd.",
        "Quarantined: odd.",
        "Released by root.",
        "It is decided",
    ):
        assert words in bob
    dave = explain(events, 2, "failed")
    assert dave.recipient == "dave@x"
    assert dave.sentences[0] == "It came here by a forward from delivery 0."
    assert "it may have arrived all the same" in dave.sentences[1]
    assert "Given up, nobody could be told: 550 no (refused)." in dave.sentences
    copy = explain(events, 3, "somewhere else").sentences
    assert copy[1:] == (
        "The next hop took it in 250 ms and said: 250 ok.",
        "Discarded: told so.",
        "It is somewhere else.",
    )


def reversed_(events: list[Event]) -> list[Event]:
    return events[::-1]


def test_what_was_decided_before_the_queue_is_told_at_once() -> None:
    facts = CAME | {"via": "proxy", "rejected": "550 5.7.1 no", "verdicts": {"0": DENY}}
    told = explain(story((None, "accepted", facts)), 0, "rejected")
    assert told.sentences[0].endswith("The sender was told: 550 5.7.1 no.")
    assert told.sentences[1].startswith("Step 1: lists")
    assert told.sentences[2].startswith("The verdict was DENY")
    assert explain(story((None, "rejected", CAME | {"client": {}})), 0, "rejected").sentences[0].startswith("Refused")
    bounce = story((None, "accepted", CAME), (0, "bounced", {"reply": "550 no", "reason": "x"}))
    assert "the sender was sent a report" in " ".join(explain(bounce, 0, "bounced").sentences)
    rewritten = explain(story((0, "forwarded", {"to": ["d@x"], "srs": "srs.us"})), 0, "forwarded")
    assert rewritten.sentences[0] == "Forwarded to d@x, with a sender of srs.us."
    back = explain(story((None, "accepted", CAME | {"returned": {"SRS0=y@us": "a@x"}})), 0, "delivered")
    assert back.sentences[0].endswith(" It came for <SRS0=y@us>, which stands for <a@x>.")
    nobody = explain(story((0, "forwarded", {"to": []})), 0, "forwarded")
    assert nobody.sentences[0] == "Forwarded to nobody new."


def test_a_candidate_is_compared_and_changes_nothing() -> None:
    data = {
        **{"pipeline": "Ann@x", "version": 7, "live": 3, "was": "pass [T]", "was_action": "pass", "now": "deny"},
        **{"now_action": "deny", "differing": ["action"], "reason": "no", "trace": []},
    }
    told = ((None, "accepted", CAME), (0, "delivered", {"reply": "250 ok"}), (0, "candidate", data))
    events = story(*told, (1, "candidate", data | {"differing": [], "now": "pass"}))
    batch = fold(events)
    assert batch.deliveries[1, 0]["state"] == "delivered"
    assert batch.comparisons[1, 0, 7]["owner_key"] == "ann@x"
    assert (batch.comparisons[1, 0, 7]["differs"], batch.comparisons[1, 1, 7]["differs"]) == (True, False)
    assert "The candidate, version 7, would have been deny, because no." in explain(events, 0, "delivered").sentences
    assert "The candidate, version 7, agreed." in explain(events, 1, "accepted").sentences


FACTS = SearchFacts(
    message=first_at(NOW),
    sender="Alice@example.org",
    recipient="ann@Example.test",
    size=5000,
    state="accepted",
    subject="Your Invoice",
    message_id="<1@x>",
    address="192.0.2.1",
    helo="mx.example.org",
    queue_id="4XYZ",
    action="pass",
    tags=("SPAM",),
    reason="deny list (example.org)",
    header_to="ANN@example.test",
    header_cc="Carol <carol@example.org>",
    reply_to="desk@example.org",
    parts=("inline",),
    score=7.5,
)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", True),
        ("from:alice to:EXAMPLE.test invoice", True),
        ("alice", True),
        ("addressed:ann helo:mx message-id:<1", True),
        ("user:ANN@example.test state:accepted verdict:pass queue-id:4XYZ ip:192.0.2.1", True),
        ("tag:spam larger:4kB smaller:6kB before:1h -after:1h", False),
        ("tag:spam larger:4kB smaller:6kB after:1h -before:1h", True),
        ("user:ann@example", False),
        ("-from:alice", False),
        ("-from:bob", True),
        ("larger:5kB", False),
        ("state:held", False),
        ("subject:other", False),
        ("cc:carol reply-to:desk rule:deny has:inline is:tagged", True),
        ("has:attachment", False),
        ("bcc:ann", False),
        ("-bcc:ann", True),
        ("cc:bob", False),
        ("score:>5 score:<=7.5", True),
        ("score:>7.5", False),
        ("-score:>7.5", True),
    ],
)
def test_a_search_in_what_a_spool_knows(words: str, found: bool) -> None:
    assert matches(parse(words, NOW), FACTS) is found


def test_an_id_is_looked_for_as_a_number() -> None:
    assert matches(parse(f"id:{to_text(FACTS.message)}.3", NOW), FACTS)
    assert matches([Term("id", FACTS.message)], FACTS)
    assert not matches([Term("id", FACTS.message + 1)], FACTS)


def test_who_is_named_nowhere_got_a_blind_copy() -> None:
    assert matches(parse("bcc:ann", NOW), replace(FACTS, header_to="list@example.org"))
    assert not matches(parse("is:tagged", NOW), replace(FACTS, tags=()))


def test_mail_without_a_score_is_neither_above_nor_below() -> None:
    unknown = replace(FACTS, score=None)
    assert not matches(parse("score:>0", NOW), unknown)
    assert not matches(parse("score:<=0", NOW), unknown)
    assert matches(parse("-score:>0", NOW), unknown)


def test_what_there_is_to_ask_for_is_told() -> None:
    with pytest.raises(InvalidSearch, match="score:5: '5' is no comparison with a number like '>5'"):
        parse("score:5", NOW)
    with pytest.raises(InvalidSearch, match="known are attachment, inline"):
        parse("has:wings", NOW)
    with pytest.raises(InvalidSearch, match="known are tagged"):
        parse("is:read", NOW)
    with pytest.raises(InvalidSearch, match="state:quarantene: known are accepted, decided, held, quarantined,"):
        parse("state:quarantene", NOW)
    with pytest.raises(InvalidSearch, match="known are pass, deny, forward, quarantine, pending"):
        parse("verdict:passed", NOW)
    assert set(STATES) == {state.value for state in State}
    assert set(ACTIONS) == {action.value for action in Action}


def test_words_that_nobody_can_know_yet() -> None:
    with pytest.raises(InvalidSearch, match="known are from"):
        parse("subject:x", NOW, OF_MOVING)
    with pytest.raises(InvalidSearch):
        parse("processor:x", NOW, OF_SPOOLED)


@pytest.mark.parametrize(
    ("event", "data", "words"),
    [
        ("suspended", {"rule": 3, "reason": "quota"}, "Suspended by root with rule 3, because quota."),
        ("dropped", {"order": 3, "reason": ""}, "Dropped by root with rule 3."),
        ("requeued", {"children": [[1, "a@x", "accepted"]]}, "Put into the queue again by root."),
        ("requeued", {"unfiltered": True}, "Put into the queue again without its pipeline by root."),
        ("sent on", {"children": [[1, "a@x", "accepted"], [2, "b@x", "accepted"]]}, "Sent on to a@x, b@x by root."),
        ("answered", {"answer": "pass", "reason": "fine"}, "Answered PASS by root, because fine."),
        ("released", {}, "Released by root."),
    ],
)
def test_what_people_did_is_told(event: str, data: dict[str, Any], words: str) -> None:
    (_, line) = timeline(story((None, "accepted", CAME), (0, event, {"by": "root"} | data)))
    assert line.text == words


def test_the_end_of_a_delay_is_told() -> None:
    events = story((None, "accepted", CAME), (0, "delay over", {}))
    assert timeline(events)[-1].text == "The delay was over; the pipeline is asked again."
    assert fold(events).deliveries[1, 0]["state"] == "accepted"


def test_where_a_second_delivery_came_from() -> None:
    children = {"by": "root", "children": [[2, "ann@x", "accepted"]]}
    for event, words in (("requeued", "into the queue again"), ("sent on", "by hand")):
        events = story((None, "accepted", CAME), (0, event, children), (2, "delivered", {"reply": "250 ok"}))
        assert f"It came here {words} from delivery 0." in explain(events, 2, "delivered").sentences
        assert fold(events).deliveries[1, 2]["state"] == "delivered"
        assert fold(events).deliveries[1, 0]["state"] == "accepted"


def test_a_story_names_the_worker_of_the_user_s_own() -> None:
    def told(**more: object) -> str:
        verdict = {"action": "pass", "pipeline": "joe@a.test"} | more
        return " ".join(explain([Event(1, 1, 0, 0.0, "verdict", verdict)], 0, "delivered").sentences)

    assert "The pipeline of joe@a.test, version 3, was asked." in told(version=3)
    assert "was asked" not in told()
    assert "The worker laptop of joe@a.test ran version 3 of the pipeline." in told(version=3, worker="laptop")
    assert "laptop of joe@a.test ran a pipeline from a file, digest 3f2a." in told(
        version=3, worker="laptop", file="3f2a"
    )
