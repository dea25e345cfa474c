"""Orders: what a person wants to happen to mail on its way that matches a search, for a limited time.

They are in the spool, so that they hold over a restart. The node carries them out, one delivery at a time, where it
would have gone on with it: so an order and a delivery under way can never both happen.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sendswitch.errors import NotFound
from sendswitch.journal.search import OF_MOVING, Term, matches, parse
from sendswitch.spool.records import Delivery, Message, facts_of


class Kind(StrEnum):
    """What is ordered."""

    SUSPEND = "suspend"
    BOUNCE = "bounce"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Order:
    """One order. Times in seconds since the epoch; `words` is the search, '' for all mail."""

    id: int
    kind: Kind
    words: str
    reason: str
    author: str
    created: float
    expires: float
    terms: tuple[Term, ...] = field(default=(), repr=False)

    @property
    def mark(self) -> str:
        """What a suspended delivery's last answer begins with."""
        return f"suspended by order {self.id}:"


def give(
    connection: sqlite3.Connection, kind: Kind, words: str, *, reason: str, author: str, now: float, time: float
) -> Order:
    """Store an order that holds for `time` seconds. Raises InvalidSearch."""
    parse(words, now, OF_MOVING)
    row = (kind.value, words, reason, author, now, now + time)
    cursor = connection.execute(
        "INSERT INTO orders (kind, words, reason, author, created, expires) VALUES (?, ?, ?, ?, ?, ?)", row
    )
    return _order(cursor.lastrowid or 0, *row)


def active(connection: sqlite3.Connection, now: float) -> list[Order]:
    """The orders that hold now, the oldest first."""
    query = "SELECT id, kind, words, reason, author, created, expires FROM orders WHERE expires > ? ORDER BY id"
    return [_order(*row) for row in connection.execute(query, (now,))]


def cancel(connection: sqlite3.Connection, id_: int, now: float) -> tuple[Order, int]:
    """End an order; what it suspended is due now. Gives the order, and how many deliveries go on. Raises NotFound."""
    found = next((order for order in active(connection, now) if order.id == id_), None)
    if found is None:
        raise NotFound(f"there is no order {id_} that holds; `sendswitch queue orders` shows all")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE orders SET expires = ? WHERE id = ?", (now, id_))
    resumed = connection.execute(
        "UPDATE delivery SET due = ? WHERE due > ? AND state IN ('accepted', 'decided') AND reply LIKE ? || '%'",
        (now, now, found.mark),
    ).rowcount
    connection.execute("COMMIT")
    return found, resumed


def _order(id_: int, kind: str, words: str, reason: str, author: str, created: float, expires: float) -> Order:
    terms = tuple(parse(words, created, OF_MOVING))
    return Order(id_, Kind(kind), words, reason, author, created, expires, terms)


def first_for(orders: Sequence[Order], message: Message, delivery: Delivery, now: float) -> Order | None:
    """The oldest order that holds now and is about this delivery."""
    facts = None
    for order in orders:
        if order.expires > now:
            facts = facts or facts_of(message, delivery)
            if matches(order.terms, facts):
                return order
    return None
