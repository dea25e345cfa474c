"""Answers that pipelines send: once per sender in a time, and then messages of the spool like any other."""

from __future__ import annotations

import sqlite3

from sendswitch.clock import Clock
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.processors.base import Letter
from sendswitch.queue.active import Queue
from sendswitch.spool.connection import write_rows
from sendswitch.spool.records import Delivery
from sendswitch.spool.spool import Spool, new_message

# Seconds after which it is forgotten who was answered; longer than anybody may ask for.
FORGOTTEN = 90 * 86_400.0


class Answers:
    """Sends them for one node (`processors.base.Answers`)."""

    def __init__(self, spool: Spool, queue: Queue, lifetime: float, clock: Clock) -> None:
        self._spool, self._queue, self._lifetime, self._clock = spool, queue, lifetime, clock

    async def answer(self, letter: Letter) -> bool:
        """Send it, unless this sender was answered before; both is known or neither, whatever crashes."""
        now = self._clock()
        to = Recipient(letter.to)
        body = "" if letter.data.isascii() else "8BITMIME"
        envelope = Envelope("", (to,), body=body, smtputf8=not letter.to.isascii())
        message = new_message(
            self._spool, envelope, InMemory(letter.data), now=now, lifetime=self._lifetime, via="report"
        )
        delivery = Delivery(message, 0, to, due=now)
        row = self._spool.row(message, [delivery], {"about": letter.about})

        def run(connection: sqlite3.Connection) -> bool:
            whose = (letter.owner, letter.to.lower())
            found = connection.execute("SELECT at FROM answered WHERE owner = ? AND sender = ?", whose).fetchone()
            if found is not None and now - letter.again < found[0] <= now:
                return False
            connection.execute("DELETE FROM answered WHERE at < ?", (now - FORGOTTEN,))
            connection.execute("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", (*whose, now))
            write_rows(connection, [row])
            return True

        sent: bool = await self._spool.call(run)
        if sent:
            self._queue.look()
        return sent
