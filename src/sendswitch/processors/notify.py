"""Webhooks about messages, as Standard Webhooks defines them, with retries. The mail does not wait for them.

The event is on disk before the step is over, and the node sends it: again after 5 s, 5 min, 30 min, 2 h and so on for
about three days, later when the receiver asks for it with Retry-After. 410 disables the endpoint. A message that is
offered again makes no second event. A try or a replay sends nothing.
"""

from __future__ import annotations

from typing import ClassVar

from sendswitch.errors import Refused
from sendswitch.mail.address import key
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base
from sendswitch.processors.services.endpoint import EndpointOptions, body_of, id_of


class NotifyOptions(EndpointOptions):
    """Options of `notify`."""


class Notify:
    """Puts an event about the message into the outbox, and has no opinion."""

    Options: ClassVar[type[base.Options]] = NotifyOptions
    version = "1"

    def __init__(self, options: NotifyOptions) -> None:
        self._options, self._secrets = options, options.secrets
        self._outbox: base.NoticeSink | None = None
        self._readers: base.Readers = base.Services().readers

    def setup(self, services: base.Services) -> None:
        """Take the outbox, and the readers of content."""
        self._outbox, self._readers = services.outbox, services.readers

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the event's id. Raises SpoolUnavailable when it cannot be kept, Refused where no node runs."""
        if context.rehearsal:
            return Verdict(reason="nobody is told in a rehearsal")
        if self._outbox is None:
            raise Refused("events can only be sent where a node runs")
        options = self._options
        body = await body_of(options, "message.received", mail, context, self._readers)
        notice = base.Notice(
            id=id_of(context, f"notify {options.url}"),
            url=options.url,
            recipient=key(context.recipient.address),
            secrets=self._secrets,
            message=context.message,
            form=options.format == "form",
            body=body,
        )
        await self._outbox.put(notice)
        return Verdict(reason=f"event {notice.id}")
