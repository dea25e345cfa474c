"""Automatic replies as RFC 3834 asks: to the envelope sender, from the null sender, once a week.

Mail that is not a person's own mail to this recipient gets no reply: from the null sender, list owners and robots, from
lists and of low precedence, automatic replies, mail that names the recipient neither in To nor in Cc, and mail that
earlier steps tagged SPAM or VIRUS. A try, a replay or a shadow sends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import ClassVar

from pydantic import Field, field_validator

from sendswitch.config.units import Duration
from sendswitch.errors import Refused
from sendswitch.mail.address import in_header, key, valid
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import SPAM, VIRUS, Verdict
from sendswitch.processors import base

# Senders that no person reads (RFC 3834 2, and what Postfix and Sieve implementations leave unanswered).
_ROBOT = re.compile(
    r"(?:owner-.*|.*-owner|.*-request|.*-bounces?(?:[+=].*)?|.*-return|bounces?(?:[+=-].*)?|listserv|majordomo|mailer|"
    r"mailer-daemon|postmaster|no-?reply.*|do-?not-?reply.*|srs[01][=+-].*|prvs=.*)\Z",
    re.I,
)
_LIST = ("list-id", "list-unsubscribe", "list-post", "list-help", "list-owner", "x-loop", "feedback-id")


class ReplyOptions(base.Options):
    """Options of `reply`."""

    text: str = Field(min_length=1, max_length=20_000, description="What is answered.")
    subject: str = Field("Auto: {subject}", max_length=500, description="{subject} is that of the mail.")
    addresses: tuple[str, ...] = Field((), max_length=50, description="Other addresses that are the recipient's own.")
    again: Duration = Field(
        604_800.0, ge=86_400, le=7_776_000, description="Time before the same sender is answered again."
    )

    @field_validator("addresses")
    @classmethod
    def _valid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if not valid(address) or "@" not in address:
                raise ValueError(f"{address!r} is no mail address")
        return value


class Reply:
    """Answers the sender, and has no opinion."""

    Options: ClassVar[type[base.Options]] = ReplyOptions
    version = "1"

    def __init__(self, options: ReplyOptions) -> None:
        self._options = options
        self._auto_replies: base.AutoReplySender | None = None

    def setup(self, services: base.Services) -> None:
        """Take the sender of automatic replies."""
        self._auto_replies = services.auto_replies

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return only the facts about the reply. Raises the errors of `answer`."""
        return Verdict(reason=await answer(self._auto_replies, mail, context, self._options))


async def answer(sender: base.AutoReplySender | None, mail: Mail, context: base.Context, options: ReplyOptions) -> str:
    """Answer a message if that is allowed. Return the result in words.

    Raises SpoolUnavailable, and Refused where no node runs.
    """
    why = suppressed(mail, context, options.addresses)
    if why:
        return f"not answered: {why}"
    if context.rehearsal:
        return "nobody is answered in a rehearsal"
    if sender is None:
        raise Refused("answers can only be sent where a node runs")
    reply = base.AutoReply(
        owner=key(context.recipient.address),
        to=context.sender,
        data=written(mail, context, options),
        again=options.again,
        about=context.message,
    )
    answered = await sender.send(reply)
    return f"answered {context.sender}" if answered else f"{context.sender} was answered before"


def suppressed(mail: Mail, context: base.Context, addresses: Iterable[str] = ()) -> str:
    """Return why there must be no automatic answer, '' when there may be one (RFC 3834 2)."""
    local = context.sender.rpartition("@")[0]
    own = {_bare(address) for address in (context.recipient.address, *addresses)}
    named = {_bare(address) for field in ("to", "cc") for address in in_header(mail.raw_headers(field))}
    automatic = mail.header("auto-submitted").partition(";")[0].strip().lower()
    suppress = mail.header("x-auto-response-suppress").lower()
    tests = {
        "it has the null sender": not context.sender,
        f"{context.sender} is no person": _ROBOT.match(local) is not None,
        "it is from the recipient": _bare(context.sender) in own,
        "it was sent automatically": automatic not in ("", "no"),
        "its sender asks for no answer": any(word in suppress for word in ("all", "oof", "autoreply")),
        "it came by a list": any(mail.raw_headers(field) for field in _LIST),
        "it has a low precedence": mail.header("precedence").strip().lower() in ("bulk", "list", "junk", "auto_reply"),
        "it does not name the recipient": not named & own,
        "it is tagged": bool({SPAM, VIRUS} & set(context.tags)),
    }
    return next((why for why, holds in tests.items() if holds), "")


def _bare(address: str) -> str:
    """Return the form of an address for comparison, without an extension."""
    local, _, domain = key(address).rpartition("@")
    return f"{local.partition('+')[0]}@{domain}"


def written(mail: Mail, context: base.Context, options: ReplyOptions) -> bytes:
    """Return the answer as a whole message with CRLF line ends (RFC 3834 3)."""
    answer = EmailMessage(policy=SMTP)
    answer["From"] = context.recipient.address
    answer["To"] = context.sender
    answer["Subject"] = _line(options.subject.replace("{subject}", mail.subject))[:500]
    answer["Date"] = format_datetime(datetime.fromtimestamp(context.now, UTC))
    answer["Message-ID"] = f"<{context.message}.reply@{context.recipient.address.rpartition('@')[2]}>"
    answer["Auto-Submitted"] = "auto-replied"
    answer["Precedence"] = "bulk"
    answer["X-Auto-Response-Suppress"] = "All"
    if about := _id(mail.header("message-id")):
        answer["In-Reply-To"] = about
        answer["References"] = about
    answer.set_content(options.text)
    return bytes(answer)


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _id(value: str) -> str:
    """Return a message id that a header can hold, '' for other text."""
    return value if re.fullmatch(r"<[!-;=?-~]{1,250}>", value) else ""
