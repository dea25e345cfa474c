"""Small pure things: ids, xtext, units, routes, backoff, lists, headers, verdicts, reports, decisions."""

from __future__ import annotations

import email
import hashlib
import re
import time
from dataclasses import replace
from email import policy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.config.units import duration, size
from sendswitch.delivery.backoff import Backoff
from sendswitch.delivery.compose import Composer, loops
from sendswitch.delivery.maildir import folder_name
from sendswitch.mail import dsn, ids, xtext
from sendswitch.mail.address import in_header
from sendswitch.mail.content import Damaged, Edited, InFile, InMemory, digest_of, head_of, read_all, verify
from sendswitch.mail.envelope import Client, Envelope, Recipient, from_json
from sendswitch.mail.headers import (
    AddHeader,
    HeaderEdit,
    MarkSubject,
    RemoveHeader,
    SetHeader,
    dispositions,
    edit,
    field_bytes,
    fields,
    glance,
    hops,
    unfinished,
)
from sendswitch.mail.hops import FIELD, Marks
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.findings import Kind
from sendswitch.mail.mime.reader import MAX_PARTS
from sendswitch.mail.mime.words import decoded
from sendswitch.mail.verdict import (
    Action,
    AfterHold,
    Denial,
    StepRecord,
    Verdict,
    checked,
    step_from_json,
    verdict_from_json,
)
from sendswitch.queue.forward import targets_of
from sendswitch.reply import Reply
from sendswitch.routing import Route, Routes
from sendswitch.testing import FakeClock, message

# ids


@given(st.integers(0, 2**63 - 1))
def test_ids_are_read_as_they_are_written(number: int) -> None:
    assert ids.from_text(ids.to_text(number)) == number
    assert ids.from_text(ids.to_text(number).upper()) == number


@pytest.mark.parametrize("text", ["", "short", "x" * 14, "38fvqqgvckj0u", "38fvqqgvckj0!"])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="no message id"):
        ids.from_text(text)


def test_ids_rise_whatever_the_clock_does(clock: FakeClock) -> None:
    sequence = ids.Sequence(7, clock)
    taken = [sequence() for _ in range(5000)]
    clock.advance(-3600)
    taken += [sequence() for _ in range(10)]
    assert taken == sorted(set(taken))
    assert abs(ids.received(taken[0]) - 1_700_000_000) < 1
    again = ids.Sequence(7, clock, taken[-1])
    assert again() > taken[-1]


# xtext


@given(st.text(st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=("Cs", "Cc"))))
def test_xtext_and_back(text: str) -> None:
    encoded = xtext.encode(text)
    assert encoded.isascii()
    assert " " not in encoded
    assert xtext.decode(encoded) == text


@pytest.mark.parametrize(("given_", "expected"), [("a+2Bb", "a+b"), ("+0D+0A", "??"), ("+GG", "+GG"), ("+2", "+2")])
def test_xtext_oddities(given_: str, expected: str) -> None:
    assert xtext.decode(given_) == expected


# units


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1.5h", 5400), ("7d", 604800), ("250ms", 0.25), (5, 5)])
def test_durations(text: object, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(("text", "count"), [("25MB", 25_000_000), ("256KiB", 262_144), ("1", 1), (7, 7)])
def test_sizes(text: object, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "soon", "5x", "-5s", True, None, "1e9d"])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="a duration like"):
        duration(text)


# routes


def test_routes() -> None:
    def route(owner: str) -> Route:
        return Route(owner, 1, 60, "pass", "bounce")

    routes = Routes([route("joe@a.example"), route("joe+x@a.example"), route("@b.example")])

    def owner(address: str) -> str | None:
        found = routes.find(address)
        return found.owner if found else None

    assert owner("JOE@A.example") == "joe@a.example"
    assert owner("joe+x@a.example") == "joe+x@a.example"
    assert owner("joe+other@a.example") == "joe@a.example"
    assert owner("anybody@b.example") == "@b.example"
    assert owner("ann@a.example") is None
    assert owner("postmaster") is None
    assert Routes().find("joe@a.example") is None


def test_a_recipient_without_a_domain_is_of_the_origin_and_of_anybody_where_none_is_known() -> None:
    routes = [Route(owner, 1, 60, "pass", "bounce") for owner in ("joe@b.example", "joe@a.example", "@a.example")]
    with_origin = Routes(routes, origin="B.example").find("joe")
    assert with_origin is not None
    assert with_origin.owner == "joe@b.example"
    without = Routes(routes).find("JOE+lists")
    assert without is not None
    assert without.owner == "joe@a.example"
    assert Routes(routes, origin="c.example").find("joe") is None


def test_content_that_was_changed_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"Subject: a\r\n\r\nbody\r\n")
    stored = InFile(path, path.stat().st_size)
    digest = hashlib.sha256(path.read_bytes()).digest()
    assert digest_of(stored) == digest_of(InMemory(path.read_bytes())) == digest
    assert digest_of(replace(stored, digest=b"known")) == b"known"
    assert verify(stored, stored.size, digest) is stored
    assert verify(stored, stored.size, None) is stored
    with pytest.raises(Damaged, match="its bytes are others"):
        verify(InMemory(b"x" * stored.size), stored.size, digest)
    with pytest.raises(Damaged, match="it has 1 bytes"):
        verify(InMemory(b"x"), stored.size, digest)


def test_what_another_process_found_is_not_looked_for_again() -> None:
    mail = Mail(InMemory(b"From: a@b.example\r\nSubject: x\r\n\r\n"))
    assert not mail.examined
    mail.prepare()
    mail.know(())
    assert mail.examined
    assert mail.findings == ()


# backoff


def test_backoff_doubles_to_a_limit_and_is_spread() -> None:
    backoff = Backoff(10, 100, 0.2)
    assert [backoff.next(n, 0, 0.5) for n in (1, 2, 3, 4, 5, 6, 1000)] == [10, 20, 40, 80, 100, 100, 100]
    assert backoff.next(1, 1000, 0.0) == 1008
    assert backoff.next(1, 1000, 0.999999) == pytest.approx(1012)


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


@given(st.binary(max_size=50), st.binary(max_size=50), st.integers(0, 60), st.integers(0, 120))
def test_edited_content_reads_the_same_everywhere(data: bytes, front: bytes, cut: int, start: int) -> None:
    cut = min(cut, len(data))
    edited = Edited(InMemory(data), front, cut)
    whole = front + data[cut:]
    assert edited.whole() == whole == read_all(edited)
    assert edited.size == len(whole)
    assert b"".join(edited.chunks(start)) == whole[start:]


@pytest.mark.parametrize(
    "data", [b"A: 1\r\n\r\nbody\r\n", b"\r\nbody\r\n", b"no end", b"A: 1\r\n\r\n" + b"x" * 300_000]
)
def test_content_reads_the_same_from_memory_and_from_a_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(data)
    file = InFile(path, len(data))
    for content in (InMemory(data), file, Edited(file, b""), Edited(InMemory(data[2:]), data[:2])):
        assert content.head() == head_of(data)
        assert read_all(content) == data
        assert b"".join(content.chunks(1)) == data[1:]
        assert b"".join(content.chunks(3)) == data[3:]
        assert content.size == len(data)
    assert InFile(path, len(data)).whole() is None
    assert Edited(InMemory(data), b"B: 2\r\n").head() == head_of(b"B: 2\r\n" + data)


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


def test_the_first_id_of_a_moment() -> None:
    first = ids.first_at(1000.5)
    assert ids.received(first) == 1000.5
    assert ids.received(first - 1) < 1000.5
    assert ids.first_at(-5) == 0


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
    began = time.perf_counter()
    mail = Mail(InMemory(head))
    in_header(mail.raw_headers("from"))
    verdict = Verdict(tags=("SPAM",))
    Composer("us", {}).compose(InMemory(head), message="i", client=Client(), received=0, verdict=verdict).whole()
    assert time.perf_counter() - began < 1


def test_loops_are_seen() -> None:
    assert loops(b"Received: x\r\n" * 51 + b"\r\n", "us", 50)
    assert not loops(b"Received: x\r\n" * 50 + b"\r\n", "us", 50)
    assert loops(b"X-SendSwitch-Trace: us a\r\n" * 5 + b"\r\n", "us", 50)
    assert not loops(b"X-SendSwitch-Trace: other a\r\n" * 9 + b"\r\n", "us", 50)


def test_a_mark_of_forwarding_is_ours_alone_and_for_one_message() -> None:
    head = b"Message-ID: <1@x>\r\nFrom: a@b.example\r\nDelivered-To: joe@a.example\r\n"
    marks = Marks(b"k" * 32)
    mark = marks.make(head + b"\r\n", "Joe@a.example")
    marked = f"{FIELD}: {mark}\r\n".encode() + head + b"\r\n"
    assert marks.forwarded_by(marked, "joe@A.example")
    assert not marks.forwarded_by(marked, "ann@a.example")
    assert not marks.forwarded_by(head + b"\r\n", "joe@a.example")
    assert not Marks(b"o" * 32).forwarded_by(marked, "joe@a.example")
    assert not marks.forwarded_by(marked.replace(b"<1@x>", b"<2@x>"), "joe@a.example")


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("Joe@A.example", "joe@a.example"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("..", "%2E."),
        ('"a/b"@c', "a%2Fb@c"),
    ],
)
def test_no_address_leaves_the_maildir(address: str, folder: str) -> None:
    assert folder_name(address) == folder
    assert "/" not in folder_name(address)


# mail as processors read it


BROKEN = [
    b"",
    b"\r\n",
    b"no headers at all\r\n",
    b"\xff\xfe\xfd\r\n\r\n\xff",
    b"Subject: =?utf-8?q?=FF=FE?= =?nope?x?y?=\r\n\r\n",
    b"Subject: =?u\x97\xbe8?q?x?=\r\n\r\n",
    b"Subject: =?utf-7?q?+2AA-?=\r\n\r\n",
    b"Content-Type: text/plain; charset=no-such\r\n\r\n\xe4\xf6\r\n",
    b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n",
    b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n--x\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!\r\n',
    b"From: \xff <a@b>\r\nFrom: second\r\n\r\n",
    b"Content-Type: text/plain; name*=utf-8''%FF%\r\nContent-Disposition: attachment; filename*0*=x''%\r\n\r\nx",
]


@pytest.mark.parametrize("raw", BROKEN)
def test_broken_mail_never_raises(raw: bytes) -> None:
    mail = Mail(InMemory(raw))
    assert isinstance(mail.text + mail.html, str)
    assert mail.subject.encode() is not None  # fit for JSON and databases
    assert isinstance(mail.attachments, list)
    assert isinstance(mail.findings, tuple)
    assert mail.raw == raw


@given(st.binary(max_size=300))
def test_no_mail_raises(raw: bytes) -> None:
    mail = Mail(InMemory(raw))
    assert isinstance([mail.text, mail.html, mail.attachments, mail.findings, mail.headers("from")], list)


def test_deep_nesting_is_seen_and_not_followed() -> None:
    head = "".join(f'Content-Type: multipart/mixed; boundary="b{n}"\r\n\r\n--b{n}\r\n' for n in range(3000)).encode()
    mail = Mail(InMemory(head + b"Content-Type: text/plain\r\n\r\ndeep\r\n"))
    assert isinstance(mail.attachments, list)
    assert Kind.TOO_LARGE in {finding.kind for finding in mail.findings}


def test_reading_a_message() -> None:
    parsed = email.message.EmailMessage()
    parsed["Subject"] = "Grüße"
    parsed.set_content("hello\n")
    parsed.add_attachment(b"\x00\x01", maintype="application", subtype="zip", filename="ä.zip")
    mail = Mail(InMemory(parsed.as_bytes(policy=policy.SMTP)))
    assert mail.subject == "Grüße"
    assert mail.text.strip() == "hello"
    assert [(a.name, a.type, a.data) for a in mail.attachments] == [("ä.zip", "application/zip", b"\x00\x01")]
    assert mail.findings == ()


# envelopes and verdicts


def test_an_envelope_comes_back_from_json() -> None:
    envelope = Envelope("a@b", (), Client("1.2.3.4", "n", "25", "h", "ESMTP", "LOCAL"), "8BITMIME", True, "FULL", "id")
    assert from_json("a@b", (), envelope.to_json()) == envelope
    assert from_json("", (), {}) == Envelope("", ())


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


# decisions


@pytest.mark.parametrize(
    ("targets", "copy", "chain", "expected"),
    [
        (["b@x"], False, [], (["b@x"], False)),
        (["b@x", "B@X"], False, [], (["b@x"], False)),
        (["a@x", "b@x"], False, [], (["b@x"], True)),
        (["b@x"], False, ["b@x"], ([], True)),
        ([], False, [], ([], True)),
        (["b@x"], True, [], (["b@x"], True)),
    ],
)
def test_forwarding_never_loops_and_never_loses(
    targets: list[str], copy: bool, chain: list[str], expected: tuple[list[str], bool]
) -> None:
    assert targets_of("a@x", targets, copy, chain) == expected


# reports


@pytest.mark.parametrize(
    ("kind", "sender", "notify", "expected"),
    [
        (dsn.Kind.FAILED, "a@b", "", True),
        (dsn.Kind.FAILED, "", "", False),
        (dsn.Kind.FAILED, "a@b", "NEVER", False),
        (dsn.Kind.FAILED, "a@b", "success,failure", True),
        (dsn.Kind.RELAYED, "a@b", "", False),
        (dsn.Kind.RELAYED, "a@b", "SUCCESS", True),
        (dsn.Kind.RELAYED, "", "SUCCESS", False),
    ],
)
def test_who_wants_a_report(kind: dsn.Kind, sender: str, notify: str, expected: bool) -> None:
    assert dsn.wanted(kind, sender, Recipient("x", notify)) is expected


@pytest.mark.parametrize(("ret", "utf8"), [("", False), ("FULL", False), ("HDRS", True)])
def test_a_report_is_one_the_standard_parser_reads(ret: str, utf8: bool) -> None:
    to = "jö@example.test" if utf8 else "joe@example.test"
    raw = dsn.report(
        dsn.Kind.FAILED,
        [
            dsn.Outcome(
                Recipient(to, orcpt="rfc822;first+40example.test"), Reply(550, "5.1.1", "no such"), "unknown", said=True
            )
        ],
        envelope=Envelope("a@b", (), ret=ret, envid="x+2By"),
        content=InMemory(message("secret body\r\n")),
        message="id",
        host="us.example",
        received=-86400.0,
        now=0.0,
    )
    assert raw.count(b"\n") == raw.count(b"\r\n")
    parsed = email.message_from_bytes(raw)
    assert parsed.get_content_type() == "multipart/report"
    assert parsed.get_param("report-type") == "delivery-status"
    kinds = [part.get_content_type() for part in parsed.walk()]
    status = "message/global-delivery-status" if utf8 else "message/delivery-status"
    assert status in kinds
    text = raw.decode()
    assert ("secret body" in text) == (ret == "FULL")
    assert f"Final-Recipient: {'utf-8' if utf8 else 'rfc822'}; {to}" in text
    assert "Original-Recipient: rfc822; first@example.test" in text
    assert "Original-Envelope-Id: x+y" in text
    assert "Arrival-Date: Wed, 31 Dec 1969" in text
    assert "Date: Thu, 01 Jan 1970" in text
    assert "Diagnostic-Code: smtp; 550 5.1.1 no such" in text
    assert not parsed.defects
    encodings = [part["Content-Transfer-Encoding"] for part in parsed.walk() if part["Content-Transfer-Encoding"]]
    assert encodings == (["8bit", "8bit", "8bit", "7bit"] if utf8 else ["7bit"] * 4)


def test_a_report_names_8bit_where_a_part_has_it_and_its_status_is_7bit() -> None:
    raw = dsn.report(
        dsn.Kind.DELIVERED,
        [dsn.Outcome(Recipient("a@b", orcpt="rfc822;j+C3+B6"), Reply(250, "2.0.0", "ok"), "delivered")],
        envelope=Envelope("a@b", (), ret="FULL"),
        content=InMemory("Subject: x\r\n\r\nü\r\n".encode()),
        message="id",
        host="us.example",
        received=0.0,
        now=0.0,
    )
    whole, prose, status, returned = [
        part for part in email.message_from_bytes(raw).walk() if part["Content-Transfer-Encoding"]
    ]
    assert [part["Content-Transfer-Encoding"] for part in (whole, prose, status, returned)] == [
        "8bit",
        "7bit",
        "7bit",
        "8bit",
    ]
    assert b"Action: delivered" in raw
    assert b"Diagnostic-Code" not in raw  # nobody said anything but we


# corners


def test_setting_a_field_that_is_not_there_adds_it() -> None:
    assert edit(b"A: 1\r\n\r\n", (SetHeader("B", "2"),)) == b"B: 2\r\nA: 1\r\n\r\n"


def test_a_report_without_an_enhanced_code_or_an_original_recipient() -> None:
    raw = dsn.report(
        dsn.Kind.FAILED,
        [dsn.Outcome(Recipient("a@b"), Reply(452, "", "full"), "full")],
        envelope=Envelope("a@b", ()),
        content=InMemory(message()),
        message="id",
        host="us.example",
        received=0.0,
        now=0.0,
    ).decode()
    assert "Status: 4.0.0\r\n" in raw
    assert "Original-" not in raw


def test_xtext_of_another_encoding() -> None:
    assert xtext.decode("+E4") == "ä"


def test_no_pipelines_no_route() -> None:
    assert Routes().find("a@b") is None
    assert len(Routes()) == 0


def test_html_attachments_and_parts_that_cannot_be_decoded() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/html; charset=nonsense\r\n\r\n<p>\xe4</p>\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nx\r\n"
        b"--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--b--\r\n"
    )
    mail = Mail(InMemory(raw))
    assert mail.html.strip() == "<p>ä</p>"
    assert [(a.type, a.size) for a in mail.attachments] == [("message/rfc822", 19), ("image/png", 3)]
    assert mail.size == len(raw)
    assert mail.header("x-none") == ""


def test_many_parts_side_by_side_are_not_deep() -> None:
    inner = b"--a\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n"
    mail = Mail(InMemory(b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + inner * 200 + b"--a--\r\n"))
    assert mail.findings == ()
    assert mail.text.count("x") == 200


def test_more_parts_than_are_read() -> None:
    parts = b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n" * (MAX_PARTS + 10)
    mail = Mail(InMemory(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + parts + b"--b--\r\n"))
    assert [finding.kind for finding in mail.findings] == [Kind.TOO_LARGE]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict(Action.FORWARD, forward="a@b"), "list of at most"),  # type: ignore[arg-type]
        (Verdict(Action.FORWARD), "needs an address"),
        (Verdict(Action.PENDING, then="explode"), "none of"),  # type: ignore[arg-type]
        (Verdict(Action.DENY, denial="explode"), "none of"),  # type: ignore[arg-type]
        (Verdict(edits=(AddHeader("X", 5),)), "text of at most"),  # type: ignore[arg-type]
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


def test_an_envelope_is_read_as_it_was_written() -> None:
    client = Client("192.0.2.1", helo="h")
    for envelope in (Envelope("a@b", ()), Envelope("a@b", (), client, "8BITMIME", True, "FULL", "x")):
        assert from_json("a@b", (), envelope.to_json()) == envelope


def test_routes_can_be_gone_through() -> None:
    route = Route("a@b", 1, 60, "pass", "bounce")
    assert list(Routes([route])) == [route]


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
