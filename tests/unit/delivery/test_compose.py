"""What leaves: the header that we put on top."""

from __future__ import annotations

import pytest

from sendswitch.delivery.compose import Composer, loops
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Client
from sendswitch.mail.verdict import (
    Action,
    Verdict,
)

# compose


def test_what_others_claim_under_our_names_is_removed() -> None:
    composer = Composer("us.example", {"SPAM": "*S* "})
    content = InMemory(
        b"X-SendSwitch-Tags: CLEAN\r\nx-sendswitch-evil: 1\r\nSubject: a\r\n\r\nX-SendSwitch-Tags: body\r\n"
    )
    out = composer.compose(
        content,
        message="id",
        client=Client("192.0.2.1", "n", helo="h (x)\r\n"),
        received=0,
        verdict=Verdict(Action.PASS, tags=("SPAM",)),
    ).whole()
    assert out is not None
    head, _, body = out.partition(b"\r\n\r\n")
    assert head.count(b"X-SendSwitch-Tags: SPAM") == 1
    assert b"CLEAN" not in head
    assert b"evil" not in head
    assert b"Subject: *S* a" in head
    assert b"Received: from hx (n [192.0.2.1])" in head
    assert body == b"X-SendSwitch-Tags: body\r\n"


def test_a_message_for_smtputf8_gets_its_text_as_it_is() -> None:
    composer, verdict = Composer("us", {"s": "[Ü] "}), Verdict(Action.PASS, tags=("s", "ß"))
    for utf8 in (True, False):
        content = composer.compose(
            InMemory(b"Subject: a\r\n\r\n"), message="i", client=Client(), received=0, verdict=verdict, utf8=utf8
        )
        assert content.head().isascii() is not utf8


def test_a_zone_in_an_address_forges_no_trace() -> None:
    client = Client("fe80::1%) by bank.example (x", helo="h")
    out = Composer("us", {}).compose(InMemory(b"\r\n"), message="i", client=client, received=0).whole()
    assert out is not None
    assert b"Received: from h (unknown [IPv6:fe80::1])\r\n\tby us (SendSwitch)" in out


def test_without_a_verdict_only_a_trace_is_put_on_top() -> None:
    data = b"Subject: a\r\n\r\nbody\r\n"
    out = Composer("us.example", {}).compose(InMemory(data), message="id", client=Client(), received=0).whole()
    assert out is not None
    assert out.endswith(data)
    assert out[: -len(data)].startswith(b"X-SendSwitch-Trace: us.example id\r\nReceived: by us.example")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b" x\r\nFrom: evil\r\n\r\nb\r\n", b"\r\n x\r\nFrom: evil\r\n\r\nb\r\n"),
        (b"no field\r\nFrom: evil\r\n\r\n", b"\r\nno field\r\nFrom: evil\r\n\r\n"),
        (b"A: 1\r\nno field\r\nFrom: evil\r\n\r\n", b"A: 1\r\n\r\nno field\r\nFrom: evil\r\n\r\n"),
        (b"A: 1\r\n folded\r\n\r\nbody", b"A: 1\r\n folded\r\n\r\nbody"),
        (b"\r\nbody", b"\r\nbody"),
        (b"From x Fri\r\nA: 1\r\n\r\n", b"From x Fri\r\nA: 1\r\n\r\n"),
    ],
)
def test_readers_behind_us_see_the_header_that_pipelines_saw(content: bytes, expected: bytes) -> None:
    out = Composer("us", {}).compose(InMemory(content), message="id", client=Client(), received=0).whole()
    assert out is not None
    assert out.endswith(b"+0000\r\n" + expected)


def test_loops_are_seen() -> None:
    assert loops(b"Received: x\r\n" * 51 + b"\r\n", "us", 50)
    assert not loops(b"Received: x\r\n" * 50 + b"\r\n", "us", 50)
    assert loops(b"X-SendSwitch-Trace: us a\r\n" * 5 + b"\r\n", "us", 50)
    assert not loops(b"X-SendSwitch-Trace: other a\r\n" * 9 + b"\r\n", "us", 50)
