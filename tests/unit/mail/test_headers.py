"""Header fields: read, found and edited."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.delivery.compose import Composer
from sendswitch.mail.address import in_header
from sendswitch.mail.content import InMemory, head_of
from sendswitch.mail.edits import AddHeader, HeaderEdit, MarkSubject, RemoveHeader, SetHeader
from sendswitch.mail.envelope import Client
from sendswitch.mail.headers import dispositions, edit, field_bytes, fields, glance, hops, unfinished
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.words import decoded
from sendswitch.mail.verdict import (
    Verdict,
)
from tests.timing import took

# headers and content


def test_fields_keep_their_bytes() -> None:
    head = b"From x Fri\r\nA: 1\r\nB:  two\r\n\tfolded\r\nC : 3\r\nD: \xff\r\n\r\n"
    assert [field.name for field in fields(head)] == ["", "A", "B", "C", "D"]
    assert b"".join(field.raw for field in fields(head)) == head[:-2]
    assert fields(head)[2].value == "two\tfolded"
    assert fields(head)[4].value == "ÿ"


def test_a_header_that_goes_on_behind_the_cut_is_noticed() -> None:
    assert unfinished(b"A: 1\r\nB: 2\r\nC: 3")
    assert unfinished(b"A: 1\r\nB: 2\r\n")
    assert not unfinished(b"A: 1\r\nthis is text\r\nso is this")
    assert not unfinished(b"A: 1\r\n\r\nbody\r\n")


def test_a_line_that_is_no_field_ends_the_header() -> None:
    assert [field.name for field in fields(b"A: 1\r\nnot a field\r\nB: 2\r\n\r\n")] == ["A"]


def test_edits_change_what_they_name_and_nothing_else() -> None:
    head = b"A:  odd   spacing\r\nSubject: x\r\n y\r\nB: 1\r\nb: 2\r\n\r\n"
    assert edit(head, (AddHeader("N", "1"),)) == b"N: 1\r\n" + head
    assert edit(head, (RemoveHeader("B"),)) == b"A:  odd   spacing\r\nSubject: x\r\n y\r\n\r\n"
    assert edit(head, (SetHeader("b", "3"),)) == b"A:  odd   spacing\r\nSubject: x\r\n y\r\nb: 3\r\n\r\n"
    marked = b"A:  odd   spacing\r\nSubject: *S* x\r\n y\r\nB: 1\r\nb: 2\r\n\r\n"
    assert edit(head, (MarkSubject("*S* "),)) == marked
    assert edit(marked, (MarkSubject("*S* "),)) == marked
    assert edit(b"\r\n", (MarkSubject("*S* "),)) == b"Subject: *S*\r\n\r\n"


@given(st.text(max_size=50))
def test_a_value_cannot_start_another_field(value: str) -> None:
    raw = field_bytes("X", value.encode("utf-8", "ignore").decode())
    assert raw.count(b"\n") == 1
    assert raw.count(b"\r") == 1


def test_a_bad_field_name_is_refused() -> None:
    with pytest.raises(ValueError, match="field name"):
        field_bytes("X: evil\r\nY", "1")


def test_a_glance_at_a_message() -> None:
    head = b"X-Subject: no\r\nsubject : first\r\n line\r\nSubject: second\r\nMESSAGE-ID:<a@b>\r\n\r\nSubject: body"
    assert glance(head_of(head)) == {"subject": b"first line", "message-id": b"<a@b>"}
    assert glance(b"\r\n") == glance(b"Topic: to whom\r\n\r\n") == {}
    named = b"To: a@b,\r\n c@d\r\nTopic: x\r\nCC: e@f\r\nReply-To: g@h\r\n\r\n"
    assert glance(named) == {"to": b"a@b, c@d", "cc": b"e@f", "reply-to": b"g@h"}


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        (b"Subject: x\r\n\r\nContent-Disposition: attachment\r\n", []),
        (b"Content-Type: Multipart/Mixed\r\n\r\n--a\r\nContent-Disposition: attachment\r\n", ["attachment"]),
        (b"Content-Type: multipart/x\r\n\r\n--a\r\nCONTENT-DISPOSITION:INLINE; a=b\r\n", ["inline"]),
        (b"Content-Type: a/b\r\nContent-Disposition: attachment\r\n\r\nx", ["attachment"]),
        (b"Content-Type: multipart/x\r\n\r\n--a\r\nContent-Disposition: form-data\r\n", []),
        (
            b"Content-Type: multipart/x\r\n\r\nContent-Disposition: inline\r\nContent-Disposition: attachment\r\n",
            ["attachment", "inline"],
        ),
    ],
)
def test_what_parts_say_they_are(message: bytes, parts: list[str]) -> None:
    assert dispositions(head_of(message), message) == parts


def test_many_parts_are_not_all_looked_at() -> None:
    many = b"Content-Type: multipart/x\r\n" + b"\nContent-Disposition: x" * 5000 + b"\nContent-Disposition: inline"
    assert dispositions(many, many) == []


@given(st.text("subjectrivdmag- :\r\n\tSR", max_size=60).map(str.encode))
def test_looking_finds_what_a_regular_expression_finds(head: bytes) -> None:
    assert hops(head) == len(re.findall(rb"^received[ \t]*:", head, re.I | re.M))
    value = re.compile(rb"^subject[ \t]*:((?:[^\r\n]|\r\n[ \t])*)", re.I | re.M).search(head)
    assert glance(head).get("subject") == (value[1].replace(b"\r\n", b"").strip() if value else None)


@pytest.mark.parametrize(
    ("change", "name", "shown"),
    [
        (AddHeader("X-Why", "too Näh Näh for us"), "X-Why", "too Näh Näh for us"),
        (AddHeader("X-Why", f"Ä{'ö' * 400}"), "X-Why", f"Ä{'ö' * 400}"),
        (AddHeader("X-Why", "\ud800 half"), "X-Why", "? half"),
        (SetHeader("From", "Jürgen <j@x.example>"), "From", "Jürgen <j@x.example>"),
        (MarkSubject("[NÄH] "), "Subject", "[NÄH] a"),
    ],
)
def test_what_we_write_beyond_ascii_is_encoded(change: HeaderEdit, name: str, shown: str) -> None:
    head = b"From: x@y\r\nSubject: a\r\n\r\n"
    out = edit(head, (change,))
    assert out.isascii()
    assert max(map(len, out.split(b"\r\n"))) < 998
    (value,) = (field.value for field in fields(out) if field.name == name)
    assert decoded(value) == shown
    assert edit(out, (change,)) == out or isinstance(change, AddHeader)
    assert shown.encode() in edit(head, (change,), utf8=True)


def test_a_mark_before_an_encoded_subject_keeps_its_space() -> None:
    out = edit(b"Subject: =?utf-8?q?=C3=BC?=\r\n\r\n", (MarkSubject("[NÄH] "),))
    assert decoded(fields(out)[0].value) == "[NÄH] ü"


@pytest.mark.parametrize(
    "head",
    [
        b"From: " + b"a" * 200_000 + b"\r\n\r\n",
        b"From: <" + b"a@" * 100_000 + b"\r\n\r\n",
        b"".join(b"x-sendswitch-%d:\r\n" % n for n in range(12_000)) + b"\r\n",
        b"X-SendSwitch-a:\r\n" + b" \r\n" * 80_000 + b"\r\n",
    ],
)
def test_no_header_takes_long(head: bytes) -> None:
    """Time must grow with the length only: these took seconds to minutes when it grew with its square."""
    began = time.process_time()
    mail = Mail(InMemory(head))
    in_header(mail.raw_headers("from"))
    verdict = Verdict(tags=("SPAM",))
    Composer("us", {}).compose(InMemory(head), message="i", client=Client(), received=0, verdict=verdict).whole()
    assert took(began) < 2


# corners


def test_setting_a_field_that_is_not_there_adds_it() -> None:
    assert edit(b"A: 1\r\n\r\n", (SetHeader("B", "2"),)) == b"B: 2\r\nA: 1\r\n\r\n"
