"""Delivery status notifications: the report a sender gets (RFC 3464 in the form of RFC 6522).

Decisions first: `wanted` says whether a report may be sent at all. A report never answers a null sender
(RFC 5321 4.5.5), and follows NOTIFY (RFC 3461 4.1). The report itself has the null sender, so none follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import StrEnum

from sendswitch.mail import xtext
from sendswitch.mail.content import Content, read_all
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.reply import Reply

# Postfix's bounce_size_limit: enough to recognise a message by, too little to be worth a forged sender.
RETURN_LIMIT = 50_000


class Kind(StrEnum):
    """The Action field of RFC 3464 2.3.3."""

    FAILED = "failed"
    RELAYED = "relayed"
    DELIVERED = "delivered"


@dataclass(frozen=True, slots=True)
class RecipientOutcome:
    """The outcome for one recipient, in words for the report. With `said` the reply is the next hop's, not ours."""

    recipient: Recipient
    reply: Reply
    explanation: str
    said: bool = False


def wanted(kind: Kind, sender: str, recipient: Recipient) -> bool:
    """Return whether RFC 3461 and RFC 5321 allow a report of this kind to the sender about this recipient."""
    if not sender:
        return False
    notify = {word.strip().upper() for word in recipient.notify.split(",") if word.strip()}
    if kind is Kind.FAILED:
        return not notify or "FAILURE" in notify
    return "SUCCESS" in notify


def report(
    kind: Kind,
    outcomes: Sequence[RecipientOutcome],
    *,
    envelope: Envelope,
    content: Content,
    message: str,
    host: str,
    received: float,
    now: float,
) -> bytes:
    """Return the report as a whole message with CRLF line ends, ready for the spool.

    `message` is the id of the mail it is about, `received` when that came (seconds since 1970), `host` the reporting
    MTA. Headers of the original are attached, or all of it when the sender asked (RET=FULL) and it is at most 50,000
    bytes.
    """
    boundary = f"=_{message}/{host}"
    full = envelope.ret.upper() == "FULL" and content.size <= RETURN_LIMIT
    original = read_all(content) if full else content.head()[:RETURN_LIMIT]
    utf8 = not (envelope.sender + "".join(o.recipient.address for o in outcomes)).isascii()
    returned = (
        ("message/global" if utf8 else "message/rfc822")
        if full
        else ("message/global-headers" if utf8 else "text/rfc822-headers")
    )
    parts = (
        (
            "text/plain; charset=utf-8",
            _prose(kind, outcomes, message, host),
        ),
        (
            "message/global-delivery-status" if utf8 else "message/delivery-status",
            _status(kind, outcomes, envelope, message, host, received, utf8),
        ),
        (returned, original),
    )
    body = b"".join(
        f"--{boundary}\r\nContent-Type: {type_}\r\n{_encoding(data)}\r\n".encode() + data + b"\r\n"
        for type_, data in parts
    )
    body += f"--{boundary}--\r\n".encode()
    return _head(kind, envelope.sender, boundary, message, host, now) + _encoding(body).encode() + _OPENING + body


_OPENING = b"\r\nThis is a MIME-encapsulated message.\r\n\r\n"


def _encoding(data: bytes) -> str:
    return f"Content-Transfer-Encoding: {'7bit' if data.isascii() else '8bit'}\r\n"


def _date(now: float) -> str:
    return format_datetime(datetime.fromtimestamp(now, UTC))


def _head(kind: Kind, to: str, boundary: str, message: str, host: str, now: float) -> bytes:
    subject = "Undelivered mail returned to sender" if kind is Kind.FAILED else "Successful mail delivery report"
    lines = (
        f"Date: {_date(now)}",
        f"From: Mail Delivery System <MAILER-DAEMON@{host}>",
        f"To: <{to}>",
        f"Subject: {subject}",
        f"Message-ID: <{message}.report@{host}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{boundary}"',
        "",
    )
    return "\r\n".join(lines).encode()


_FIRST = {
    Kind.FAILED: "Your message could not be delivered to one or more recipients.",
    Kind.RELAYED: "Your message was handed on to a system that sends no reports of its own.",
    Kind.DELIVERED: "Your message was put into the mailboxes of these recipients.",
}


def _prose(kind: Kind, outcomes: Sequence[RecipientOutcome], message: str, host: str) -> bytes:
    lines = [f"This is the mail system at host {host}.", "", _FIRST[kind], f"Its id here was {message}.", ""]
    for outcome in outcomes:
        lines += [f"<{outcome.recipient.address}>: {outcome.explanation}", f"    {outcome.reply}", ""]
    return "\r\n".join(lines).encode()


def _status(
    kind: Kind,
    outcomes: Sequence[RecipientOutcome],
    envelope: Envelope,
    message: str,
    host: str,
    received: float,
    utf8: bool,
) -> bytes:
    """Return the machine's part: 7-bit (RFC 3464 section 2.1) unless an address needs more (RFC 6533)."""
    lines = [f"Reporting-MTA: dns; {host}", f"X-SendSwitch-Message-Id: {message}"]
    if envelope.envid:
        lines.append(f"Original-Envelope-Id: {xtext.decode(envelope.envid)}")
    lines.append(f"Arrival-Date: {_date(received)}")
    for outcome in outcomes:
        recipient = outcome.recipient
        kind_of_address = "rfc822" if recipient.address.isascii() else "utf-8"
        lines += ["", f"Final-Recipient: {kind_of_address}; {recipient.address}"]
        if recipient.orcpt:
            kind_of_original, _, original = recipient.orcpt.partition(";")
            lines.append(f"Original-Recipient: {kind_of_original}; {xtext.decode(original)}")
        status = outcome.reply.enhanced or f"{outcome.reply.code // 100}.0.0"
        lines += [f"Action: {kind}", f"Status: {status}"]
        if outcome.said:
            lines.append(f"Diagnostic-Code: smtp; {outcome.reply}")
    text = "\r\n".join(lines) + "\r\n"
    return text.encode() if utf8 else text.encode("ascii", "replace")
