"""Conditions: what they mean, and where they are wrong."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.conditions.condition import DEEPEST, LONGEST, Condition, ConditionFacts
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Client
from sendswitch.mail.message import Mail
from sendswitch.testing import message

MAIL = message(
    "x" * 2000,
    Subject="=?utf-8?q?Gr=C3=BC=C3=9Fe_from_M=C3=BCnchen?=",
    X_Spam_Flag="YES, twice",
    Message_ID="<1@shop.example>",
    Content_Type='application/pdf; name="bill.pdf"',
    Content_Disposition="attachment",
)
FACTS = ConditionFacts(
    Mail(InMemory(MAIL)),
    "Shop@Partner.example",
    "joe+x@example.test",
    Client(address="192.0.2.7", name="dns.partner.example", helo="mail.partner.example", ident="4XyZ"),
    ("SPAM", "NEWS"),
    7.5,
)


@pytest.mark.parametrize(
    "text",
    [
        "tag:SPAM",
        "tag:spam",
        "not tag:VIRUS",
        "-tag:VIRUS",
        "!tag:VIRUS",
        "not not tag:SPAM",
        "from:partner",
        "from:*@partner.example",
        "from:sh?p@partner.example",
        "not from:*@partner",
        "not from:*[p]artner*",
        "not from:partner.*",
        'subject:"grüße from mün"',
        "to:joe",
        "user:JOE+x@example.test",
        "not user:joe@example.test",
        "addressed:example.test addressed:partner",
        "helo:mail.*",
        "helo:dns.partner",
        "not helo:partner.exampl?x",
        "message-id:shop.example",
        "queue-id:4XyZ",
        "not queue-id:4xyz",
        "ip:192.0.2.7",
        "ip:192.0.2.0/24",
        "not ip:192.0.3.0/24",
        "not ip:2001:db8::/32",
        "size > 1kB and size < 1MB",
        "size>=1kB size<=1MB",
        "not size = 5",
        "larger:1kB smaller:1MB",
        "score > 5 and score <= 7.5",
        "score:>5 score:<=7.5",
        "not score:<0",
        "header:X-Spam-Flag",
        "header:x-spam-flag=yes",
        "header:x-spam-flag=yes*",
        'header:X-Spam-Flag="YES" and not header:x-spam-flag="no way"',
        "not header:X-Other",
        "has:attachment",
        "not has:inline",
        "tag:A or tag:SPAM",
        "tag:SPAM or tag:A and tag:B",
        "not (tag:A or tag:B) and (tag:SPAM)",
        "(tag:A or tag:SPAM) (tag:B or tag:NEWS)",
        "NOT tag:a AND tag:news OR tag:b",
        "tag:SPAM and size > 1kB and not from:*@elsewhere.example",
    ],
)
def test_what_holds(text: str) -> None:
    assert Condition(text).holds(FACTS)
    assert not Condition(f"not ({text})").holds(FACTS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "at its end: a word is missing"),
        ("tag:SPAM and", "at its end: a word is missing"),
        ("or tag:SPAM", "at 'or tag:SPAM': a word is missing"),
        ("(tag:SPAM", "a ) is missing"),
        ("tag:SPAM)", "there is no ( for this"),
        ("spam", "'spam': this is nothing to ask about"),
        ("from: ann", "no space stands behind from:"),
        ("colour:red", "colour: is no word"),
        ('from:""', "from: says nothing"),
        ("size > much", "'much' is not a size"),
        ("score > much", "'>much' is no comparison"),
        ("score:5", "'5' is no comparison"),
        ("size ~ 5", "this is nothing to ask about"),
        ("ip:nowhere", "does not appear to be"),
        ("header:a:b", "is no name of a header field"),
        ("has:wings", "has:attachment and has:inline are"),
        ("not " * (DEEPEST + 1) + "tag:A", "more than"),
        ("tag:A " * LONGEST, "at most"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        Condition(text)


def test_what_has_no_score_is_neither_above_nor_below() -> None:
    unknown = replace(FACTS, score=None)
    assert not Condition("score > -1000").holds(unknown)
    assert not Condition("score <= 1000").holds(unknown)


def test_who_the_client_is_may_not_be_known() -> None:
    nobody = ConditionFacts(FACTS.mail, "", "joe@example.test", Client())
    assert not Condition("ip:192.0.2.0/24").holds(nobody)


@given(st.text(max_size=60), st.binary(max_size=300))
def test_nothing_but_a_value_error_and_never_for_a_message(text: str, raw: bytes) -> None:
    try:
        condition = Condition(text)
    except ValueError:
        condition = Condition("subject:x or header:from=y or has:attachment or message-id:z")
    condition.holds(ConditionFacts(Mail(InMemory(raw)), "a@b", "c@d", Client()))
