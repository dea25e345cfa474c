"""Reading a message, broken ones too."""

from __future__ import annotations

import email
from email import policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.findings import Kind
from sendswitch.mail.mime.reader import MAX_PARTS


def test_what_another_process_found_is_not_looked_for_again() -> None:
    mail = Mail(InMemory(b"From: a@b.example\r\nSubject: x\r\n\r\n"))
    assert not mail.examined
    mail.prepare()
    mail.know(())
    assert mail.examined
    assert mail.findings == ()


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
