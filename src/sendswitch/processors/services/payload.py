"""A message as JSON, for webhooks, programs and saved files.

The names are those of inbound mail services. `thin` leaves out the contents: text, and the bytes of attachments. Text
that is not UTF-8 is decoded as far as possible, so that the whole is always JSON.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from sendswitch.mail.address import in_header
from sendswitch.mail.message import Mail
from sendswitch.mail.text import storable

if TYPE_CHECKING:
    from sendswitch.processors.base import Context

# Characters of text, of markup; header fields.
MOST_TEXT, MOST_FIELDS = 5_000_000, 1000


def described(mail: Mail, context: Context, *, thin: bool = False) -> dict[str, Any]:
    """Return the message for one recipient. Reads the whole message; blocks."""
    client = context.client
    out: dict[str, Any] = {
        "id": context.message,
        "envelope": {
            "from": context.sender,
            "to": context.recipient.address,
            "client": {"ip": client.address, "name": client.name, "helo": client.helo},
        },
        "size": mail.size,
        "subject": mail.subject,
        "from": mail.header("from"),
        "to": in_header(mail.raw_headers("to")),
        "cc": in_header(mail.raw_headers("cc")),
        "date": _date(mail.header("date")),
        "message_id": mail.header("message-id"),
        "mailbox_hash": context.recipient.address.rpartition("@")[0].partition("+")[2],
        "headers": [[field.name, field.value] for field in mail.fields[:MOST_FIELDS]],
        "attachments": [
            {
                "name": attachment.name,
                "type": attachment.type,
                "size": attachment.size,
                "sha256": hashlib.sha256(attachment.data).hexdigest(),
                **({} if thin else {"content": b64encode(attachment.data).decode()}),
            }
            for attachment in mail.attachments
        ],
        "tags": list(context.tags),
        "score": context.score,
    }
    if not thin:
        out |= {"text": mail.text[:MOST_TEXT], "html": mail.html[:MOST_TEXT]}
    clean: dict[str, Any] = _storable(out)
    return clean


def _date(value: str) -> str | None:
    """Return a date as ISO 8601 in UTC, None for other text."""
    try:
        date = parsedate_to_datetime(value)
        return date.astimezone(UTC).isoformat() if date.tzinfo else datetime.isoformat(date)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _storable(value: Any) -> Any:
    match value:
        case str():
            return storable(value, MOST_TEXT * 20)
        case dict():
            return {name: _storable(inner) for name, inner in value.items()}
        case list():
            return [_storable(inner) for inner in value]
    return value
