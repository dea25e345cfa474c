"""A webhook: the message is posted as JSON to a URL, and the answer is the verdict.

The request is signed as Standard Webhooks says (standardwebhooks.com): `webhook-id`, `webhook-timestamp`,
`webhook-signature`. With `previous_secret` it is signed twice, so that a receiver can change its secret in its own
time. `traceparent` names the message's trace (W3C Trace Context).

    2xx                       the verdict in the body; an empty body is no opinion
    408, 429, 5xx, no answer  asked again, as Retry-After says or after a second, while the step's `limit` lasts
    any other                 a failure of the step: `on_error` decides

Only public addresses are asked, checked after DNS, and those that the site allows; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal
from urllib.parse import urlencode

import orjson
from httpx import URL
from pydantic import Field, SecretStr, field_validator
from standardwebhooks import Webhook as Signer

from sendswitch.config.units import Secret
from sendswitch.errors import Temporary
from sendswitch.journal.spans import traceparent
from sendswitch.mail.ids import from_text
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict, verdict_from_json
from sendswitch.processors import base
from sendswitch.processors.http import Answer, Url, asked, new_client, shown
from sendswitch.processors.payload import described
from sendswitch.processors.reach import Reach
from sendswitch.processors.sharing import Seat

# Bytes of an answer: a verdict.
LONGEST = 256 * 1024
# Seconds before it is asked again when it does not say.
PAUSE = 1.0
AGAIN = (408, 429)


class WebhookOptions(base.Options):
    """Options of `webhook`."""

    url: Url = Field(description="Where the message is posted to.")
    secret: Secret = Field(
        description='Signs the request: whsec_ and 24 to 64 bytes in base64. Better {file = "/path"} than written out.'
    )
    previous_secret: Secret = Field(SecretStr(""), description="Signs it as well, while the receiver changes over.")
    content: Literal["thin", "full", "raw"] = Field(
        "thin", description="thin: envelope and header; full: text and attachments, too; raw: thin and the message."
    )
    format: Literal["json", "form"] = Field("json", description="How it is written: as JSON or as a form's fields.")
    connections: int = Field(
        8, ge=1, le=100, description="Most messages that all pipelines with this URL and this number ask about at once."
    )

    @field_validator("secret", "previous_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and not (text.startswith("whsec_") and 24 <= len(_key(text)) <= 64):
            raise ValueError(
                "a secret is whsec_ and 24 to 64 bytes in base64: echo whsec_$(head -c 32 /dev/urandom | base64)"
            )
        return value


def _key(text: str) -> bytes:
    try:
        key: bytes = Signer(text)._whsecret
    except Exception:  # whatever the library says about what is no base64
        return b""
    return key


class Webhook:
    """Asks a URL."""

    Options: ClassVar[type[base.Options]] = WebhookOptions
    version = "1"

    def __init__(self, options: WebhookOptions) -> None:
        if not options.secret.get_secret_value():
            raise ValueError("secret must be given")
        self._options = options
        given = (options.secret, options.previous_secret)
        self._signers = [Signer(text) for secret in given if (text := secret.get_secret_value())]
        self._http = Seat(new_client, options.connections, Webhook, options.url)
        self._reach = Reach()

    def enter(self, site: base.Site) -> None:
        """Know what the site allows."""
        self._reach = Reach(site.allow)

    async def ask(self, mail: Mail, context: base.Context) -> Mapping[str, Any]:
        """The status and the verdict of the answer. Raises OSError, Refused, Temporary, ValueError."""
        body = await asyncio.to_thread(self._body, mail, context)
        async with self._http.use() as client:
            attempt = 0
            while True:
                attempt += 1
                url, name = await self._checked(URL(self._options.url))
                head = self._head(body, context, attempt, name)
                try:
                    answer = await asked(
                        client, "POST", url, headers=head, content=body.encode(), limit=LONGEST, name=name
                    )
                except OSError:
                    await asyncio.sleep(PAUSE)
                    continue
                if answer.status not in AGAIN and answer.status < 500:
                    return self._read(answer)
                await asyncio.sleep(_pause(answer))

    def judge(self, answer: Mapping[str, Any], mail: Mail, context: base.Context) -> Verdict | None:
        """The verdict; none for an empty answer."""
        return verdict_from_json(answer["verdict"]) if answer.get("verdict") else None

    def _read(self, answer: Answer) -> dict[str, Any]:
        where = f"{shown(self._options.url)} answered {answer.status}"
        if not 200 <= answer.status < 300:
            raise Temporary(f"{where}: {answer.text[:200]}")
        if not answer.body.strip():
            return {"status": answer.status}
        try:
            told = orjson.loads(answer.body)
            verdict = verdict_from_json(_as_ours(told)) if told else None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{where} with what is no verdict: {error}: {answer.text[:200]!r}") from error
        return {"status": answer.status, "verdict": verdict.to_json() if verdict else None}

    async def _checked(self, url: URL) -> tuple[str, str]:
        """The URL with the address in it that may be reached, and the host's own name."""
        port = url.port or (443 if url.scheme == "https" else 80)
        address = await self._reach.find(url.host, port)
        return str(url.copy_with(host=address)), url.netloc.decode("ascii")

    def _body(self, mail: Mail, context: base.Context) -> str:
        options = self._options
        told = described(mail, context, thin=options.content != "full")
        if options.content == "raw":
            told["raw"] = b64encode(mail.raw).decode()
        told = {"type": "message.decide", "timestamp": _iso(context.now), "data": told}
        if options.format == "json":
            return orjson.dumps(told).decode()
        fields = {"type": told["type"], "timestamp": told["timestamp"], **told["data"]}
        return urlencode({name: v if isinstance(v, str) else orjson.dumps(v).decode() for name, v in fields.items()})

    def _head(self, body: str, context: base.Context, attempt: int, host: str) -> list[tuple[bytes, bytes]]:
        now = datetime.now(UTC)
        whose = hashlib.sha256(context.recipient.address.encode("utf-8", "replace")).hexdigest()[:8]
        id_ = f"msg_{context.message}_{whose}_{context.attempt}"
        json = self._options.format == "json"
        head = {
            "Host": host,
            "Content-Type": "application/json" if json else "application/x-www-form-urlencoded",
            "User-Agent": "SendSwitch",
            "webhook-id": id_,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(id_, now, body) for signer in self._signers),
            "webhook-attempt": str(attempt),
            "traceparent": traceparent(from_text(context.message)),
        }
        return [(name.encode(), value.encode()) for name, value in head.items()]

    async def close(self) -> None:
        """Leave the connections to the others."""
        await self._http.leave()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _as_ours(told: dict[str, Any]) -> dict[str, Any]:
    """The answer with a reply written out as ours is, and `discard`, which is to put it aside here: nothing that a
    receiver says throws mail away unseen."""
    reply = told.get("reply")
    if isinstance(reply, dict):
        words = (str(reply["code"]), str(reply.get("enhanced", "")), str(reply.get("text", "")))
        told = told | {"reply": " ".join(word for word in words if word)}
    return told | {"action": "quarantine"} if told.get("action") == "discard" else told


def _pause(answer: Answer) -> float:
    """Seconds until it may be asked again (RFC 9110 10.2.3)."""
    said = answer.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return max(PAUSE, float(said[:6]))
    try:
        return max(PAUSE, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return PAUSE
