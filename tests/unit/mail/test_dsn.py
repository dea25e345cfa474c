"""Reports to senders."""

from __future__ import annotations

import email

import pytest

from sendswitch.mail import dsn
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.reply import Reply
from sendswitch.testing import message

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
            dsn.RecipientOutcome(
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
        [dsn.RecipientOutcome(Recipient("a@b", orcpt="rfc822;j+C3+B6"), Reply(250, "2.0.0", "ok"), "delivered")],
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


def test_a_report_without_an_enhanced_code_or_an_original_recipient() -> None:
    raw = dsn.report(
        dsn.Kind.FAILED,
        [dsn.RecipientOutcome(Recipient("a@b"), Reply(452, "", "full"), "full")],
        envelope=Envelope("a@b", ()),
        content=InMemory(message()),
        message="id",
        host="us.example",
        received=0.0,
        now=0.0,
    ).decode()
    assert "Status: 4.0.0\r\n" in raw
    assert "Original-" not in raw
