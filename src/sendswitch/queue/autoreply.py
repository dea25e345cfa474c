"""Automatic replies that pipelines send: once for each sender in a time, then messages in the spool like any other."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable

from sendswitch.clock import Clock
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.processors.base import AutoReply
from sendswitch.queue.active import ActiveQueue
from sendswitch.spool.connection import write_rows
from sendswitch.spool.records import Delivery
from sendswitch.spool.spool import Spool, new_message

# Seconds after which a reply to a sender is forgotten; longer than any step may ask for.
FORGOTTEN = 90 * 86_400.0


class AutoReplies:
    """Sends the automatic replies of one node (`processors.base.AutoReplySender`)."""

    def __init__(self, spool: Spool, queue: ActiveQueue, lifetime: float, clock: Clock) -> None:
        self._spool, self._queue, self._lifetime, self._clock = spool, queue, lifetime, clock

    async def send(self, reply: AutoReply) -> bool:
        """Send a reply, unless its sender had one before. Both is on disk on return, or neither."""
        now = self._clock()
        to = Recipient(reply.to)
        body = "" if reply.data.isascii() else "8BITMIME"
        envelope = Envelope("", (to,), body=body, smtputf8=not reply.to.isascii())
        message = new_message(
            self._spool, envelope, InMemory(reply.data), now=now, lifetime=self._lifetime, via="report"
        )
        delivery = Delivery(message, 0, to, due=now)
        row = self._spool.row(message, [delivery], {"about": reply.about})

        def run(connection: sqlite3.Connection) -> bool:
            whose = (reply.owner, reply.to.lower())
            found = connection.execute("SELECT at FROM answered WHERE owner = ? AND sender = ?", whose).fetchone()
            if found is not None and now - reply.again < found[0] <= now:
                return False
            connection.execute("DELETE FROM answered WHERE at < ?", (now - FORGOTTEN,))
            connection.execute("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", (*whose, now))
            write_rows(connection, [row])
            return True

        def write() -> Awaitable[bool]:
            return self._spool.call(run)

        sent: bool = await self._queue.enqueue([delivery], write)
        return sent
