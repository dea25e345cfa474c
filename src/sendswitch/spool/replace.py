"""A delivery that is replaced by others of the same message, in one transaction: a forward."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from sendswitch.spool.connection import write_rows
from sendswitch.spool.records import Change, Delivery
from sendswitch.spool.spool import Spool, insert_delivery

Make = Callable[[Sequence[str], int], tuple[list[Delivery], Change]]
"""Returns the new deliveries and the change of the old one. Gets the addresses that the message came by, from the old
delivery's own to the first recipient's, and the number of the first new delivery."""


async def replace_delivery(spool: Spool, delivery: Delivery, make: Make, *, now: float) -> list[Delivery]:
    """End a delivery and add those that `make` returns; durable on return. Raises SpoolUnavailable."""

    def run(connection: sqlite3.Connection) -> tuple[list[Delivery], Change]:
        message = delivery.message.id
        first = connection.execute("SELECT max(n) + 1 FROM delivery WHERE message = ?", (message,)).fetchone()[0]
        new, change = make(_chain(connection, delivery), first)
        for child in new:
            insert_delivery(connection, child, now)
        connection.execute("UPDATE message SET recipients = recipients + ? WHERE id = ?", (len(new), message))
        write_rows(connection, [spool.change_row(change)])
        return new, change

    new, change = await spool.call(run)
    delivery.state, delivery.due = change.state, change.due
    return list(new)


def _chain(connection: sqlite3.Connection, delivery: Delivery) -> list[str]:
    rows = connection.execute(
        "WITH RECURSIVE up(n, recipient, origin) AS ("
        " SELECT n, recipient, origin FROM delivery WHERE message = ?1 AND n = ?2"
        " UNION SELECT d.n, d.recipient, d.origin FROM delivery d JOIN up ON d.message = ?1 AND d.n = up.origin)"
        " SELECT recipient FROM up",
        (delivery.message.id, delivery.n),
    )
    return [row[0] for row in rows]
