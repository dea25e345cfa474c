"""The senders that had an automatic reply, and when: each gets one in a time."""

from __future__ import annotations

import sqlite3

from sendswitch.spool.connection import write_rows
from sendswitch.spool.records import Record
from sendswitch.spool.spool import Spool

# Seconds after which a reply to a sender is forgotten; longer than any step may ask for.
FORGOTTEN = 90 * 86_400.0


async def write_reply(spool: Spool, row: Record, owner: str, sender: str, *, again: float, now: float) -> bool:
    """Write a reply from `owner`, unless its sender had one in the last `again` seconds. Return whether it was written.

    The reply and the note of it are durable on return, or neither is there. Raises SpoolUnavailable.
    """
    names = (owner, sender.lower())

    def run(connection: sqlite3.Connection) -> bool:
        found = connection.execute("SELECT at FROM answered WHERE owner = ? AND sender = ?", names).fetchone()
        if found is not None and now - again < found[0] <= now:
            return False
        connection.execute("DELETE FROM answered WHERE at < ?", (now - FORGOTTEN,))
        connection.execute("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", (*names, now))
        write_rows(connection, [row])
        return True

    return bool(await spool.call(run))
