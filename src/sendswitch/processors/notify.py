"""Tell a URL about each message, as Standard Webhooks says, until it has heard: the mail does not wait for it.

The event is on disk before the step is over, and is sent by the node: tried again after 5 s, 5 min, 30 min, 2 h and so
on for about three days, later when the receiver asks for it with Retry-After. 410 disables the endpoint. A message that
is offered again makes no second event. In a try or a replay nobody is told.
"""

from __future__ import annotations

from typing import ClassVar

from sendswitch.errors import Refused
from sendswitch.mail.address import key
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base
from sendswitch.processors.endpoint import EndpointOptions, body_of, id_of


class NotifyOptions(EndpointOptions):
    """Options of `notify`."""


class Notify:
    """Puts an event about the message into the outbox, and has no opinion."""

    Options: ClassVar[type[base.Options]] = NotifyOptions
    version = "1"

    def __init__(self, options: NotifyOptions) -> None:
        self._options, self._secrets = options, options.secrets
        self._outbox: base.Outbox | None = None
        self._readers: base.Readers = base.Site().readers

    def enter(self, site: base.Site) -> None:
        """Know where events are kept, and who reads content."""
        self._outbox, self._readers = site.outbox, site.readers

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
