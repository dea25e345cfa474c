"""The common part of webhooks: a URL, secrets that sign, and a message in a request (standardwebhooks.com)."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

import orjson
from pydantic import Field, SecretStr, field_validator
from standardwebhooks import Webhook as Signer

from sendswitch.config.units import Secret, Size
from sendswitch.journal.spans import traceparent
from sendswitch.mail.ids import from_text
from sendswitch.mail.message import Mail
from sendswitch.processors import base
from sendswitch.processors.hosting.threads import reading
from sendswitch.processors.services.http import Url


class EndpointOptions(base.Options):
    """Options of every webhook."""

    url: Url = Field(description="Where the message is posted to.")
    secret: Secret = Field(
        description='Signs the request: whsec_ and 24 to 64 bytes in base64. Better {file = "/path"} than written out.'
    )
    previous_secret: Secret = Field(SecretStr(""), description="Signs it as well, while the receiver changes over.")
    content: Literal["thin", "full", "raw"] = Field(
        "thin", description="thin: envelope and header; full: text and attachments, too; raw: thin and the message."
    )
    largest: Size = Field(5_000_000, le=50_000_000, description="Of larger messages only what is thin is sent.")
    format: Literal["json", "form"] = Field("json", description="How it is written: as JSON or as a form's fields.")

    @field_validator("secret", "previous_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and not (text.startswith("whsec_") and 24 <= len(_key(text)) <= 64):
            raise ValueError(
                "a secret is whsec_ and 24 to 64 bytes in base64: echo whsec_$(head -c 32 /dev/urandom | base64)"
            )
        return value

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the secrets that sign. Raises ValueError when there is none."""
        given = (self.secret, self.previous_secret)
        if not self.secret.get_secret_value():
            raise ValueError("secret must be given")
        return tuple(text for secret in given if (text := secret.get_secret_value()))


def _key(text: str) -> bytes:
    try:
        key: bytes = Signer(text)._whsecret
    except Exception:  # whatever the library says about what is no base64
        return b""
    return key


async def body_of(options: EndpointOptions, kind: str, mail: Mail, context: base.Context, readers: base.Readers) -> str:
    """Return the request's body about a message. Raises Temporary when it cannot be read."""
    content = options.content if mail.size <= options.largest else "thin"
    told = await readers.described(mail, context, thin=content != "full")
    return await reading(_written, options, kind, told, mail if content == "raw" else None, context.now)


def _written(options: EndpointOptions, kind: str, told: dict[str, Any], raw: Mail | None, now: float) -> str:
    if raw is not None:
        told["raw"] = b64encode(raw.raw).decode()
    at = datetime.fromtimestamp(now, UTC).isoformat()
    if options.format == "json":
        return orjson.dumps({"type": kind, "timestamp": at, "data": told}).decode()
    fields = {"type": kind, "timestamp": at, **told}
    return urlencode({name: v if isinstance(v, str) else orjson.dumps(v).decode() for name, v in fields.items()})


def id_of(context: base.Context, what: str) -> str:
    """Return the same for the same message, recipient and question, whenever it is made."""
    whose = hashlib.sha256(f"{context.recipient.address}\0{what}".encode("utf-8", "replace")).hexdigest()[:12]
    return f"msg_{context.message}_{whose}"


def signed(
    secrets: Sequence[str], id_: str, body: str, *, form: bool, attempt: int, message: str, host: str
) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a request: signed now by every secret, so that a receiver may know any of them."""
    now = datetime.now(UTC)
    head = {
        "Host": host,
        "Content-Type": "application/x-www-form-urlencoded" if form else "application/json",
        "User-Agent": "SendSwitch",
        "webhook-id": id_,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(id_, now, body) for secret in secrets),
        "webhook-attempt": str(attempt),
        "traceparent": traceparent(from_text(message)),
    }
    return [(name.encode(), value.encode()) for name, value in head.items()]
