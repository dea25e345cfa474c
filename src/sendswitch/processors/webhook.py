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
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson
from pydantic import Field

from sendswitch.errors import Temporary
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.mail.verdict_json import verdict_from_json
from sendswitch.processors import base
from sendswitch.processors.services.connections import SharedClient
from sendswitch.processors.services.endpoint import EndpointOptions, body_of, id_of, signed
from sendswitch.processors.services.http import PipelineResult, asked, checked_url, new_client, retry_after, shown
from sendswitch.processors.services.reachable import Reach

# Bytes of an answer: a verdict.
LONGEST = 256 * 1024
# Seconds before it is asked again when it does not say.
PAUSE = 1.0
AGAIN = (408, 429)


class WebhookOptions(EndpointOptions):
    """Options of `webhook`."""

    connections: int = Field(
        8,
        ge=1,
        le=100,
        description="Most messages that a worker asks about at once, for all pipelines with this URL.",
    )


class Webhook:
    """The step that asks a URL."""

    Options: ClassVar[type[base.Options]] = WebhookOptions
    version = "1"

    def __init__(self, options: WebhookOptions) -> None:
        self._options, self._secrets = options, options.secrets
        self._http = SharedClient(new_client, options.connections, Webhook, options.url)
        self._reach, self._readers = Reach(), base.Services().readers

    def setup(self, services: base.Services) -> None:
        """Take the addresses that the services allows, and the readers of content."""
        self._reach, self._readers = Reach(services.allow), services.readers

    async def query(self, mail: Mail, context: base.Context) -> Mapping[str, Any]:
        """Return the status and the verdict of the answer. Raises OSError, Refused, Temporary, ValueError."""
        options = self._options
        body = await body_of(options, "message.decide", mail, context, self._readers)
        id_, form = id_of(context, f"decide {context.attempt}"), options.format == "form"
        attempt, last = 0, ""
        try:
            async with self._http.use() as client:
                while True:
                    attempt += 1
                    try:
                        url, name = await checked_url(options.url, self._reach)
                        head = signed(
                            self._secrets, id_, body, form=form, attempt=attempt, message=context.message, host=name
                        )
                        answer = await asked(
                            client, "POST", url, headers=head, content=body.encode(), limit=LONGEST, name=name
                        )
                    except OSError as error:  # also a DNS that may know it in a moment
                        last = str(error)
                        await asyncio.sleep(PAUSE)
                        continue
                    if answer.status not in AGAIN and answer.status < 500:
                        return self._read(answer)
                    last = f"{shown(options.url)} answered {answer.status}"
                    await asyncio.sleep(max(PAUSE, retry_after(answer)))
        except asyncio.CancelledError:  # at the step's limit
            if last:
                context.notes.append(f"at attempt {attempt}: {last}")
            raise

    def evaluate(self, answer: Mapping[str, Any], mail: Mail, context: base.Context) -> Verdict | None:
        """Return the verdict; none for an empty answer."""
        return verdict_from_json(answer["verdict"]) if answer.get("verdict") else None

    def _read(self, answer: PipelineResult) -> dict[str, Any]:
        where = f"{shown(self._options.url)} answered {answer.status}"
        if not 200 <= answer.status < 300:
            raise Temporary(f"{where}: {answer.text[:200]}")
        if not answer.body.strip():
            return {"status": answer.status}
        try:
            told = orjson.loads(answer.body)
            verdict = verdict_from_json(_as_ours(told), outside=True) if told else None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{where} with what is no verdict: {error}: {answer.text[:200]!r}") from error
        return {"status": answer.status, "verdict": verdict.to_json() if verdict else None}

    async def close(self) -> None:
        """Leave the connections to the others."""
        await self._http.release()


def _as_ours(told: dict[str, Any]) -> dict[str, Any]:
    """Return the answer with a reply written out as ours is, and `discard`, which is to put it aside here: nothing that
    a receiver says throws mail away unseen.
    """
    reply = told.get("reply")
    if isinstance(reply, dict):
        words = (str(reply["code"]), str(reply.get("enhanced", "")), str(reply.get("text", "")))
        told = told | {"reply": " ".join(word for word in words if word)}
    return told | {"action": "quarantine"} if told.get("action") == "discard" else told
