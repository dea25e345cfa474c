"""The reader of MIME: parts and where they stand, every reading of a malformed message, findings, and the cost."""

from __future__ import annotations

import asyncio
import time
import uuid
from base64 import encodebytes
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.mime import cms, tnef, transfer
from sendswitch.mail.mime.charsets import decode
from sendswitch.mail.mime.findings import Kind
from sendswitch.mail.mime.names import spellings
from sendswitch.mail.mime.reader import MAX_DEPTH, MAX_PARTS, Part, Reading, read
from sendswitch.mail.mime.words import decoded
from sendswitch.mail.verdict import Verdict
from sendswitch.processors.attachment import Attachment, AttachmentOptions
from sendswitch.testing import context
from tests.evasions import EVASIONS, EVIL, EXE, IN_B, INNER, NAMED, attribute
from tests.mime_samples import HEAD, TEXT, multipart, part
from tests.timing import took


def leaves(raw: bytes) -> tuple[Part, ...]:
    return read(raw).parts


def kinds(reading: Reading) -> set[str]:
    return {finding.kind for finding in reading.findings}


def judged(raw: bytes, *names: str) -> Verdict | None:
    step = Attachment(AttachmentOptions(names=names or ("*.exe",)))
    return asyncio.run(step.process(Mail(InMemory(raw)), context()))


# Parts


def test_parts_are_where_they_say() -> None:
    inner = multipart(TEXT, part(b"MZ", "setup.exe"), boundary="b2")
    raw = HEAD + multipart(inner, part(b"gif", kind="image/gif"))
    found = leaves(raw)
    assert [(p.name, p.type, p.attached) for p in found] == [
        ("", "text/plain", False),
        ("setup.exe", "application/octet-stream", True),
        ("", "image/gif", True),
    ]
    assert [p.data for p in found] == [b"hello\r\n", b"MZ", b"gif"]
    for p in found:
        assert raw[p.start : p.end].startswith(b"Content-Type:")
        assert raw[p.end :].lstrip(b"\r\n").startswith(b"--b")
    assert read(raw).findings == ()


def test_a_message_in_a_message_is_looked_into_and_is_a_part_itself() -> None:
    forwarded = b"Content-Type: message/rfc822\r\n\r\n" + HEAD + multipart(TEXT, part(b"MZ", "a.exe"), boundary="x")
    assert [p.name for p in leaves(HEAD + multipart(forwarded))] == ["", "", "a.exe"]
    packed = part(HEAD + multipart(TEXT, part(b"MZ", "a.exe"), boundary="x"), kind="message/rfc822")
    assert [(p.type, p.name, p.inside) for p in leaves(HEAD + multipart(packed))] == [
        ("message/rfc822", "", False),
        ("text/plain", "", True),
        ("application/octet-stream", "a.exe", True),
    ]
    as_file = part(HEAD + multipart(TEXT, part(b"MZ", "a.exe"), boundary="x"), "mail.eml")
    assert [p.name for p in leaves(HEAD + multipart(as_file))] == ["mail.eml", "", "a.exe"]


@pytest.mark.parametrize(
    ("raw", "types"),
    [
        (b"", ["text/plain"]),
        (b"Subject: no mime\r\n\r\nhello\r\n", ["text/plain"]),
        (b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n", ["multipart/mixed"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\nnothing\r\n", ["multipart/mixed"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nnot closed\r\n", ["text/plain"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\n\nx\n--b--\n", ["text/plain"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\nX: \xff\r\n\r\n--b", ["text/plain"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b--", ["text/plain"]),
    ],
)
def test_what_is_no_tidy_message(raw: bytes, types: list[str]) -> None:
    found = leaves(raw)
    assert [p.type for p in found] == types
    for p in found:
        assert 0 <= p.start <= p.body <= p.end <= len(raw)
        assert isinstance(list(p.contents()), list)


def test_deep_and_many_are_findings() -> None:
    deep = TEXT
    for n in range(MAX_DEPTH + 5):
        deep = multipart(deep, boundary=f"d{n}x")
    reading = read(deep)
    assert [p.type for p in reading.parts] == ["multipart/mixed"]
    assert kinds(reading) == {Kind.TOO_LARGE}
    many = read(multipart(*[TEXT] * (MAX_PARTS + 10), part(b"MZ", "evil.exe")))
    assert len(many.parts) < MAX_PARTS
    assert [str(finding) for finding in many.findings] == [f"too large: there are more than {MAX_PARTS} parts"]
    headers = read(b"Content-Type: text/plain\r\n\r\n" + b"Content-Type: text/plain\r\n\r\n" * MAX_PARTS)
    assert headers.findings == many.findings


@given(
    st.lists(st.sampled_from([b"--b", b"--b--", b"\r\n", b"x", b"Content-Type: multipart/mixed; boundary=b", b"\n"]))
)
def test_parts_of_rubbish_lie_in_it(pieces: list[bytes]) -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"".join(pieces)
    for p in leaves(raw):
        assert 0 <= p.start <= p.body <= p.end <= len(raw)


@given(st.binary(max_size=400))
def test_nothing_raises(raw: bytes) -> None:
    for start in (b"", b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"):
        for p in leaves(start + raw):
            list(p.contents())


# Readings


READINGS = {f"{group}: {what}": raw for group, each in EVASIONS.items() for what, raw in each.items()}


@pytest.mark.parametrize("raw", READINGS.values(), ids=READINGS)
def test_nothing_is_slipped_past_by_a_malformed_message(raw: bytes) -> None:
    assert judged(raw) is not None


@pytest.mark.parametrize("character", "!#$%&'*+^_`{|}~.-")
def test_a_subtype_is_any_token(character: str) -> None:
    raw = f"Content-Type: multipart/x{character}mixed; boundary=b\r\n\r\n--b\r\n".encode() + NAMED
    reading = read(raw)
    assert [p.name for p in reading.parts] == ["evil.exe"]
    assert reading.findings == ()


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + multipart(TEXT, part(b"x", "Some long name.pdf")),
        b'Content-Type: multipart/mixed; boundary="simple\r\n boundary"\r\n\r\n--simple boundary\r\n\r\nhi\r\n'
        b"--simple boundary--\r\n",
        b"Content-Type: text/plain; charset=utf-8;\r\n\r\nx\r\n",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: 8-bit\r\n\r\nx\r\n",
        b'Content-Type: multipart/mixed; boundary="b" ; type="a/b"\r\n\r\n--b \t\r\n\r\nhi\r\n--b--\r\nfooter\r\n',
        b"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n--b--\r\n",
        IN_B + b"\r\nThis is a message in MIME format.\r\n--b\r\n\r\nx -- b -- b\r\n--\r\nsignature\r\n--b--\r\n",
        b"Subject: \xff\r\nX: 1\r\n\r\nContent-free words\r\n",
        # A nested boundary that begins like the outer one, as some programs write them.
        b'Content-Type: multipart/mixed; boundary="=_1"\r\n\r\n--=_1\r\n'
        b'Content-Type: multipart/alternative; boundary="=_1.A"\r\n\r\n--=_1.A\r\n\r\nx\r\n--=_1.A--\r\n--=_1--\r\n',
        b'Content-Type: multipart/mixed; boundary="--_P 1"\r\n\r\n----_P 1\r\n\r\nx\r\n----_P 1--\r\n',
        # A list of fields that is folded before one, and text about mail.
        b"DKIM-Signature: h=From:\r\n\t Content-Type:MIME-Version:\r\n\tContent-Transfer-Encoding; b=x\r\n\r\nx\r\n",
        multipart(TEXT, part(b"a log\r\nContent-Type: x\r\n", "a.log", "text/plain", encoded=False)),
        INNER + b"Content-Type: message/delivery-status\r\n\r\nContent-Type: text/plain\r\n\r\nA: 1\r\n--b--\r\n",
        # Files and texts with fields in them: a script, a log, source that is indented, a header of plain text.
        multipart(TEXT, part(b"#!/bin/sh\r\ncat <<E\r\nContent-Type: text/html\r\n\r\nE\r\n", "a.sh", encoded=False)),
        b"Content-Type: text/plain\r\n\r\n .x {}\r\n content-type: multipart/x\r\n",
        b"Content-Type: text/plain\r\n\r\nSubject: x\r\nContent-Type: text/plain\r\n\r\nwhat is this?\r\n",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: \r\n\r\nx\r\n",
        INNER + b"Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
        b"----- Message truncated -----\r\n--b--\r\n",
        # Reports: the header of what came back, and a message that was cut behind its header.
        INNER + b"Content-Type: text/rfc822-headers\r\n\r\nSubject: x\r\nContent-Type: text/plain\r\n\r\n--b--\r\n",
        INNER + b"Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--b--\r\n",
        INNER + b"Content-Type: text/rfc822-header\r\n\r\nSubject: x\r\nContent-Type: multipart/mixed\r\n\r\n--b--\r\n",
        INNER + b"Content-Description: =?utf-8?q?the_text?=\r\nContent-Location: cid:1\r\n\r\nx\r\n--b--\r\n",
        # A mailbox that is attached: its messages have delimiter lines and fields.
        INNER + b"Content-Type: application/mbox\r\n\r\nFrom x\r\n"
        b"words\r\n--c\r\nContent-Type: a/b\r\n\r\nx\r\n--b--\r\n",
    ],
)
def test_ordinary_mail_has_no_findings(raw: bytes) -> None:
    assert read(raw).findings == ()


def test_a_folded_name_is_read_as_it_was_before_folding() -> None:
    raw = INNER + b'Content-Disposition: attachment; filename="Some long\r\n name.pdf"' + EVIL
    assert leaves(raw)[0].name == "Some long name.pdf"


def encoded(how: bytes, data: bytes) -> bytes:
    return multipart(b"Content-Type: a/b\r\nContent-Disposition: attachment\r\n" + how + b"\r\n" + data)


@pytest.mark.parametrize(
    "how",
    [
        b"Content-Transfer-Encoding: base64 \r\n",
        b"Content-Transfer-Encoding: base64;\r\n",
        b'Content-Transfer-Encoding: "BASE64"\r\n',
        b"Content-Transfer-Encoding: (x) base64 (y)\r\n",
        b"Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64\r\n",
        b"Content-Transfer-Encoding: unknown\r\n",
    ],
)
@pytest.mark.parametrize(
    "change", [lambda b: b, lambda b: b + b"A", lambda b: b"AA==\r\n" + b, lambda b: b"!*\r\n" + b]
)
def test_an_encoding_is_read_as_a_mail_program_would(how: bytes, change: Callable[[bytes], bytes]) -> None:
    raw = encoded(how, change(encodebytes(EXE)))
    assert judged(raw) is not None
    (one,) = leaves(raw)
    assert any(EXE[:40] in data for data in one.contents())


def test_an_encoding_with_a_space_is_unknown_to_some_readers() -> None:
    (found,) = leaves(encoded(b"Content-Transfer-Encoding: quoted-printable \r\n", b"a=2Eexe"))
    assert [data.strip() for data in found.contents()] == [b"a.exe", b"a=2Eexe"]


def test_uuencode_is_opened_wherever_it_stands() -> None:
    lines = b"begin 644 evil.exe\r\n" + b"#0V%T\r\n" + b"`\r\nend\r\n"
    assert list(transfer.uuencoded(lines)) == [("evil.exe", b"Cat")]
    inline = read(b"Subject: x\r\n\r\nhello\r\n" + lines)
    assert [(p.name, p.data) for p in inline.parts[1:]] == [("evil.exe", b"Cat")]
    assert list(transfer.uuencoded(b"begin 644 a\r\n\xff\r\n")) == []  # a sentence
    assert list(transfer.uuencoded(b"begin 100644 a\r\n\r\n#0V%T\r\n")) == [("a", b"Cat")]
    assert list(transfer.uuencoded(b"begin 644 a\r\nend\r\n")) == [("a", b"")]
    assert list(transfer.uuencoded(b"begin-base64 644 a\r\nQ2F0\r\n====\r\n")) == [("a", b"Cat")]
    assert list(transfer.uuencoded(b"begin 644 a")) == []
    stated = encoded(b"Content-Transfer-Encoding: x-uuencode\r\n", lines)
    assert leaves(stated)[0].data == b"Cat"


def test_text_is_read_in_the_charset_that_was_meant() -> None:
    raw = b'Content-Type: text/plain; charset="latin-1"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'
    (one,) = leaves(raw + b"f=FCr=\r\n dich")
    assert one.text == "für dich"
    for label, data, text in (
        ("utf-8 (Plain text)", "Geschäft".encode(), "Geschäft"),
        ("utf-8", b"Gesch\xc3\xa4ft \xff", "Geschäft \ufffd"),
        ("us-ascii", "Geschäft".encode(), "Geschäft"),
        ("us-ascii", b"Gesch\xe4ft", "Geschäft"),
        ("nonsense", b"\xe4", "ä"),
        ("gb2312", "镕".encode("gbk"), "镕"),
        ("shift_jis", "①".encode("cp932"), "①"),
        ("ks_c_5601-1987", "똠".encode("cp949"), "똠"),
        ("iso-8859-8-i", "שלום".encode("iso8859-8"), "שלום"),
        ("iso-8859-1", b"\x80", "€"),
        ("punycode", b"b-1ga", "b-1ga"),
        ("base64", b"QQ==", "QQ=="),
        ("utf-16", b"\xff", "\ufffd"),
        ("", b"", ""),
    ):
        assert decode(data, label) == text, label


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-8?Q?Gesch=C3=A4ft?= =?utf-8?Q?=FF?=", "Geschäft\ufffd"),
        ("=?utf-8?Q?Gesch=C3=A4ft?= =?x-foo?Q?x?=", "Geschäftx"),
        ("=?utf-8?B?R2VzY2jD?= =?utf-8?B?pGZ0?=", "Geschäft"),
        ("a =?utf-8?q?b_c?= d", "a b c d"),
        ("=?utf-8?q?a?= (=?utf-8?q?b?=)", "a (b)"),
        ("=?utf-8?q?never ends", "=?utf-8?q?never ends"),
        ("=?utf-8?z?unknown?=", "=?utf-8?z?unknown?="),
        ("=?utf-8*en?Q?evil.exe?=", "evil.exe"),
        ("=?a?b?Q?=", ""),
        ("plain", "plain"),
    ],
)
def test_each_encoded_word_is_read_by_itself(value: str, text: str) -> None:
    assert decoded(value) == text


def test_text_that_people_read_is_text_whatever_its_header_says() -> None:
    for head in (
        b"Content-Type: text",
        b"Content-Type: text/plain, charset=utf-8",
        b"Content-Type: text/plain; charset=utf-8 (Plain text)",
        b"Content-Type: text/plain; name=a.txt\r\nContent-Disposition: inline; filename=a.txt",
    ):
        assert Mail(InMemory(head + b"\r\n\r\nGesch\xc3\xa4ft\r\n")).text == "Geschäft\r\n", head
    attached = Mail(InMemory(b"Content-Type: text/plain\r\nContent-Disposition: attachment\r\n\r\nx\r\n"))
    assert (attached.text, [a.type for a in attached.attachments]) == ("", ["text/plain"])


def test_every_name_that_a_part_has_is_in_the_view_of_user_code() -> None:
    raw = INNER + b"Content-Type: a/b; name=evil.exe\r\nContent-Disposition: inline; filename=a.pdf" + EVIL
    (one,) = Mail(InMemory(raw)).attachments
    assert (one.name, one.names) == ("a.pdf", ("a.pdf", "evil.exe"))


SPELLINGS = [
    "evil.exe",
    "EVIL.EXE",
    "a/evil.exe",
    "a\\evil.exe",
    "evil.exe;1",
    "evil.exe\x7f",
    "ev\x01il.exe",
    "evil\u200b.exe",
    "evil\uff0eexe",
    "evil.exe\\.",
    "evil.exe\0",
    "x:evil.exe",
]


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    assert "evil.exe" in spellings(name)


# Containers


def _der(tag: int, *values: bytes) -> bytes:
    data = b"".join(values)
    length = bytes([len(data)]) if len(data) < 128 else b"\x82" + len(data).to_bytes(2, "big")
    return bytes([tag]) + length + data


SIGNED, DATA = bytes.fromhex("06092a864886f70d010702"), bytes.fromhex("06092a864886f70d010701")
ENVELOPED = bytes.fromhex("06092a864886f70d010703")


def signed(content: bytes) -> bytes:
    inner = _der(0x30, _der(2, b"\1"), _der(0x31), _der(0x30, DATA, _der(0xA0, content)))
    return _der(0x30, SIGNED, _der(0xA0, inner))


def test_what_was_signed_is_looked_into() -> None:
    inside = b"Content-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n"
    whole = signed(_der(4, inside))
    assert cms.signed_content(whole) == inside
    pieces = signed(_der(0x24, _der(4, inside[:9]), _der(4, inside[9:])))
    assert cms.signed_content(pieces) == inside
    endless = b"\x30\x80" + SIGNED + b"\xa0\x80\x30\x80\x02\x01\x01\x31\x00\x30\x80" + DATA + b"\xa0\x80\x24\x80"
    endless += _der(4, inside) + b"\0\0" * 6
    assert cms.signed_content(endless) == inside
    raw = multipart(part(whole, "smime.p7m", "application/pkcs7-mime"))
    assert [p.name for p in leaves(raw)] == ["smime.p7m", "evil.exe"]
    assert (
        cms.signed_content(_der(0x30, SIGNED, _der(0xA0, _der(0x30, _der(2, b"\1"), _der(0x31), _der(0x30, DATA)))))
        == b""
    )


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (_der(0x30, ENVELOPED, _der(0xA0, b"")), Kind.ENCRYPTED),
        (b"rubbish", Kind.UNREADABLE),
        (b"", Kind.UNREADABLE),
        (_der(0x30, DATA), Kind.UNREADABLE),
        (b"\x30\x89" + b"\1" * 9, Kind.UNREADABLE),
        (b"\x30\x80" * 60, Kind.UNREADABLE),
        (b"\x30\x80\x30", Kind.UNREADABLE),
        (_der(0x30, SIGNED), Kind.UNREADABLE),
        (signed(b"\x24\x80" * 30), Kind.UNREADABLE),
    ],
)
def test_what_cannot_be_opened_is_a_finding(data: bytes, kind: Kind) -> None:
    reading = read(multipart(part(data, "smime.p7m", "application/pkcs7-mime")))
    assert kinds(reading) == {kind}
    assert [finding.kind for finding in reading.parts[0].findings] == [kind]


def test_encrypted_mail_is_a_finding() -> None:
    raw = multipart(TEXT).replace(b"multipart/mixed", b"multipart/encrypted")
    assert kinds(read(raw)) == {Kind.ENCRYPTED}


def _property(number: int, kind: int, data: bytes) -> bytes:
    padded = data + b"\0" * (-len(data) % 4)
    return (
        kind.to_bytes(2, "little")
        + number.to_bytes(2, "little")
        + b"\1\0\0\0"
        + len(data).to_bytes(4, "little")
        + padded
    )


def test_tnef_is_opened() -> None:
    named = b"\x03\x00\x01\x80" + uuid.UUID(int=1).bytes + b"\0\0\0\0" + b"\5\0\0\0" + b"\7\0\0\0"
    words = b"\x03\x00\x02\x80" + uuid.UUID(int=1).bytes + b"\1\0\0\0" + b"\4\0\0\0a\0\0\0" + b"\7\0\0\0"
    properties = named + words + _property(0x3707, 0x001F, "evil.exe\0".encode("utf-16-le"))
    properties += b"\x0b\x00\x02\x37\1\0\0\0"
    inner = tnef.MAGIC + b"\0\0" + attribute(0x9002, b"") + attribute(0x8010, b"deep.exe\0") + attribute(0x800F, b"MZ")
    data = tnef.MAGIC + b"\0\0" + attribute(0x8004, b"hello", 1) + attribute(0x9002, b"\0" * 14)
    data += attribute(0x8010, b"EVIL~1.EXE\0") + attribute(0x800F, b"MZ")
    data += attribute(0x9005, (4).to_bytes(4, "little") + properties)
    data += attribute(0x9002, b"\0" * 14) + attribute(0x8010, b"b\xf6se.txt\0")
    data += attribute(0x9005, (1).to_bytes(4, "little") + _property(0x3701, 0x000D, b"\0" * 16 + inner))
    assert list(tnef.attachments(data)) == [
        (["evil.exe", "EVIL~1.EXE"], b"MZ"), (["böse.txt"], inner)]  # fmt: skip
    raw = multipart(part(data, "winmail.dat", "application/ms-tnef"))
    assert [p.name for p in leaves(raw)] == ["winmail.dat", "evil.exe", "böse.txt", "deep.exe"]
    assert leaves(raw)[1].names == ("evil.exe", "EVIL~1.EXE")
    for broken in (b"", data[:18], data[:-5], data[:6] + b"\2" * 12):
        assert kinds(read(multipart(part(broken, "winmail.dat", "application/ms-tnef")))) == {Kind.UNREADABLE}
    for n in range(len(properties)):
        cut = tnef.MAGIC + b"\0\0" + attribute(0x9005, (4).to_bytes(4, "little") + properties[:n])
        assert isinstance(list(tnef.attachments(cut)), list)
    assert list(tnef.attachments(tnef.MAGIC + b"\0\0" + attribute(0x9005, b"\1"))) == []


# Cost


@pytest.mark.parametrize(
    "raw",
    [
        INNER + b'Content-Type: application/x; name="' + b'\\";' * 300_000 + b'"\r\n\r\nx\r\n--b--\r\n',
        b"Content-Type: " + b"(" * 500_000 + b")" * 500_000 + b"\r\n\r\nx\r\n",
        b"Content-Type: multipart/mixed" + b"; boundary=x" * 80_000 + b"\r\n\r\nx\r\n",
        b"Content-Type: multipart/mixed" + b"".join(b"; boundary=%d" % n for n in range(60_000)) + b"\r\n\r\nx\r\n",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * 200_000,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b--b" * 160_000,
        b"".join(IN_B.replace(b"=b", b"=%d" % n) + b"\r\n--%d\r\n" % n for n in range(16_000)),
        b"Content-Type: message/rfc822\r\n\r\n" * 32_000,
        b"Subject: " + b"=?x?q?" * 170_000 + b"\r\n\r\nx\r\n",
        b"a:\r\n" * 250_000 + b"\r\nx\r\n",
        b"Content-Type: text/plain\r\n\r\nx\r\n" + b"Content-Type:\r\n" * 70_000,
        b"Content-Type: text/plain\r\n\r\n" + b"Content-Type:\r\n\r\n" * 60_000,
        b"Content-Type: a/b\r\n" * 50_000 + b"\r\nx\r\n",
        b"begin 644 a\r\n" * 80_000,
        INNER + b"Content-Disposition: a" + b"; filename*0*=''a; filename*1=b" * 30_000 + EVIL,
    ],
    ids=range(15),
)
def test_a_megabyte_takes_seconds_not_minutes(raw: bytes) -> None:
    began = time.process_time()
    mail = Mail(InMemory(raw))
    for one in mail.parts:
        list(one.contents())
    assert isinstance(mail.subject, str)
    assert mail.findings is not None
    assert took(began) < 8


def test_what_python_writes_has_no_findings(tmp_path: Path) -> None:
    message = EmailMessage()
    message["Subject"] = "Grüße"
    message.set_content("Gruß\n")
    message.add_alternative("<p>Gruß</p>", subtype="html")
    message.add_attachment(EXE, maintype="application", subtype="zip", filename="größe.zip")
    reading = read(message.as_bytes().replace(b"\n", b"\r\n"))
    assert reading.findings == ()
    assert [p.name for p in reading.parts] == ["", "", "größe.zip"]


@pytest.mark.parametrize("label", ["utf-7", "UTF-7", "unicode-1-1-utf-7"])
def test_half_a_character_is_no_text(label: str) -> None:
    """UTF-7 can write it (RFC 2152); nothing behind us takes it: JSON, databases, terminals."""
    text = decode(b"+2AA- x +2D3eAA- +AOQ-", label)
    assert text == "\N{REPLACEMENT CHARACTER} x \U0001f600 \u00e4"
    assert text.encode()
