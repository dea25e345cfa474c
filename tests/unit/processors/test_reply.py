"""Automatic answers: who gets none, and what stands in one (RFC 3834)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from email import message_from_bytes, policy
from typing import Any

import pytest

from sendswitch.errors import Refused
from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.processors.base import AutoReply, Services
from sendswitch.processors.reply import Reply, ReplyOptions, suppressed, written
from sendswitch.testing import context, mail
from tests.verdicts import verdict_of

ASKED = context("friend@example.org", "ann@example.test", now=1_700_000_000.0)


@dataclass
class Post:
    replies: list[AutoReply] = field(default_factory=list)
    again: bool = False

    async def send(self, reply: AutoReply) -> bool:
        self.replies.append(reply)
        return not self.again


def test_a_person_is_answered() -> None:
    assert suppressed(mail(To="Ann <ann@Example.test>"), ASKED) == ""
    assert suppressed(mail(To="x@y", Cc="Ann <ann+news@example.test>"), ASKED) == ""
    assert suppressed(mail(To="boss@example.test"), ASKED, ["boss@example.test"]) == ""
    assert suppressed(mail(Auto_Submitted="no"), ASKED) == ""


@pytest.mark.parametrize(
    ("sender", "fields", "why"),
    [
        ("", {}, "null sender"),
        ("owner-list@x", {}, "no person"),
        ("list-request@x", {}, "no person"),
        ("MAILER-DAEMON@x", {}, "no person"),
        ("news-bounces+ann=x@x", {}, "no person"),
        ("noreply@x", {}, "no person"),
        ("do-not-reply@x", {}, "no person"),
        ("SRS0=hash=tt=x=y@relay.example", {}, "no person"),
        ("ann@example.test", {}, "from the recipient"),
        ("ann+x@example.test", {}, "from the recipient"),
        ("a@x", {"Auto_Submitted": "auto-replied (vacation)"}, "sent automatically"),
        ("a@x", {"Auto_Submitted": "Auto-Generated; x=y"}, "sent automatically"),
        ("a@x", {"X_Auto_Response_Suppress": "OOF, AutoReply"}, "asks for no answer"),
        ("a@x", {"List_Id": "<x.y>"}, "came by a list"),
        ("a@x", {"List_Unsubscribe": "<mailto:x>"}, "came by a list"),
        ("a@x", {"Precedence": "Bulk"}, "low precedence"),
        ("a@x", {"To": "undisclosed-recipients:;"}, "does not name the recipient"),
        ("a@x", {"To": "bob@example.test"}, "does not name the recipient"),
    ],
)
def test_who_is_not_answered(sender: str, fields: dict[str, str], why: str) -> None:
    assert why in suppressed(mail(**fields), replace(ASKED, sender=sender))


@pytest.mark.parametrize("tag", ["SPAM", "VIRUS"])
def test_spam_is_not_answered(tag: str) -> None:
    assert suppressed(mail(), replace(ASKED, tags=(tag,))) == "it is tagged"


def answer(raw: bytes, options: ReplyOptions | None = None, sender: str = "friend@example.org") -> Any:
    data = written(
        Mail(InMemory(raw)), replace(ASKED, sender=sender), options or ReplyOptions(text="Ich bin für Tage fort.\n")
    )
    assert data.replace(b"\r\n", b"").count(b"\n") == 0
    return message_from_bytes(data, policy=policy.default)


def test_what_stands_in_it() -> None:
    raw = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <1.2@example.org>\r\n\r\nhello\r\n"
    one = answer(raw)
    told = {name: str(one[name]) for name in ("From", "To", "Subject", "Auto-Submitted", "In-Reply-To", "References")}
    assert told == {
        "From": "ann@example.test",
        "To": "friend@example.org",
        "Subject": "Auto: Grüße",
        "Auto-Submitted": "auto-replied",
        "In-Reply-To": "<1.2@example.org>",
        "References": "<1.2@example.org>",
    }
    assert one.get_content().strip() == "Ich bin für Tage fort."
    assert one["Date"].datetime.timestamp() == 1_700_000_000


def test_what_a_stranger_wrote_starts_no_other_field() -> None:
    raw = b"Subject: =?utf-8?q?hi=0D=0ABcc:_x@y?=\r\nMessage-ID: <a b>\r\n x <c>\r\n\r\n"
    one = answer(raw)
    assert "Bcc" not in one
    assert "In-Reply-To" not in one
    assert str(one["Subject"]) == "Auto: hi Bcc: x@y"


@pytest.mark.parametrize(
    "sender", ['"a b"@x.example', "a@[192.0.2.1]", "jörg@example.org", "a.@x.example", "x" * 64 + "@y.example"]
)
def test_odd_senders_are_answered_all_the_same(sender: str) -> None:
    assert answer(b"\r\n", sender=sender)["To"] is not None


async def test_the_reply() -> None:
    reply, post = Reply(ReplyOptions(text="gone", again="2d")), Post()
    reply.setup(Services(auto_replies=post))
    verdict = verdict_of(await reply.process(mail(), ASKED))
    assert (verdict.action, verdict.reason) == (None, "answered friend@example.org")
    (sent,) = post.replies
    assert (sent.owner, sent.to, sent.again) == ("ann@example.test", "friend@example.org", 172_800)
    post.again = True
    assert verdict_of(await reply.process(mail(), ASKED)).reason == "friend@example.org was answered before"
    assert "rehearsal" in verdict_of(await reply.process(mail(), replace(ASKED, rehearsal=True))).reason
    assert (
        verdict_of(await reply.process(mail(Precedence="bulk"), ASKED))
    ).reason == "not answered: it has a low precedence"
    assert len(post.replies) == 2


async def test_without_a_node_nobody_is_answered() -> None:
    with pytest.raises(Refused, match="where a node runs"):
        await Reply(ReplyOptions(text="x")).process(mail(), ASKED)


@pytest.mark.parametrize("options", [{"text": ""}, {"text": "x", "again": "1h"}, {"text": "x", "addresses": ["x"]}])
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least|greater|no mail address"):
        ReplyOptions(**options)
