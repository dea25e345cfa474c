"""Reports to senders: made from a message in the spool, and themselves messages for the spool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sendswitch.clock import Clock
from sendswitch.errors import SpoolUnavailable
from sendswitch.mail import dsn
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.spool import Spool, new_message


@dataclass(frozen=True, slots=True)
class Reporter:
    """The maker of reports in the name of `host`. Their delivery is tried for `lifetime` seconds."""

    spool: Spool
    host: str
    lifetime: float
    clock: Clock

    async def make(self, kind: dsn.Kind, message: Message, outcomes: Sequence[dsn.Outcome]) -> tuple[Message, Delivery]:
        """Return the report and its one delivery, not written yet.

        When the mail cannot be read, the report comes without it.
        """
        now = self.clock()
        try:
            content = await message.load()
        except SpoolUnavailable:
            content = InMemory(b"\r\n")

        def build() -> bytes:
            return dsn.report(
                kind,
                outcomes,
                envelope=message.envelope,
                content=content,
                message=message.text_id,
                host=self.host,
                received=message.received,
                now=now,
            )

        data = await asyncio.to_thread(build)
        to = Recipient(message.envelope.sender)
        smtputf8 = not to.address.isascii()
        envelope = Envelope("", (to,), body="" if data.isascii() else "8BITMIME", smtputf8=smtputf8)
        report = new_message(self.spool, envelope, InMemory(data), now=now, lifetime=self.lifetime, via="report")
        return report, Delivery(report, 0, to, due=now)
