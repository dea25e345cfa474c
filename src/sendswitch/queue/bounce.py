"""Reports to senders: made from a message in the spool, and themselves messages for the spool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sendswitch.clock import Clock
from sendswitch.errors import SpoolUnavailable
from sendswitch.mail import dsn
from sendswitch.mail.content import InMemory
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.spool import Spool, own_message


@dataclass(frozen=True, slots=True)
class Reporter:
    """The maker of reports in the name of `host`. Their delivery is tried for `lifetime` seconds."""

    spool: Spool
    host: str
    lifetime: float
    clock: Clock

    async def make(
        self, kind: dsn.Kind, message: Message, outcomes: Sequence[dsn.RecipientOutcome]
    ) -> tuple[Message, Delivery]:
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
        return own_message(self.spool, message.envelope.sender, data, now=now, lifetime=self.lifetime)
