"""Orders: what a person wants to happen to mail on its way that matches a search, for a limited time.

They are in the spool, so that they hold over a restart. The node carries them out, one delivery at a time, where it
would have gone on with it: so an order and a delivery under way can never both happen. Every order but a suspension
also names the deliveries that were here when it was given, and holds for those however long their turn takes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sendswitch.errors import NotFound, Refused
from sendswitch.journal.search import OF_MOVING, Term, matches, parse
from sendswitch.spool.admin import parse_id
from sendswitch.spool.connection import scalar, transaction
from sendswitch.spool.records import Delivery, Message, facts_of

# What every suspended delivery's last answer begins with.
SUSPENDED = "suspended by order"


class Kind(StrEnum):
    """What is ordered."""

    SUSPEND = "suspend"
    BOUNCE = "bounce"
    DROP = "drop"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Order:
    """One order. Times in seconds since the epoch; `words` is the search, '' for all mail; `named` are the deliveries
    it is about whatever the time."""

    id: int
    kind: Kind
    words: str
    reason: str
    author: str
    created: float
    expires: float
    terms: tuple[Term, ...] = field(default=(), repr=False)
    named: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)

    @property
    def mark(self) -> str:
        """Return what a suspended delivery's last answer begins with."""
        return f"{SUSPENDED} {self.id}:"


def give(
    connection: sqlite3.Connection,
    kind: Kind,
    words: str,
    *,
    reason: str,
    author: str,
    now: float,
    time: float,
    here: Sequence[str] = (),
) -> Order:
    """Store an order that holds for `time` seconds, and for the deliveries with the ids `here`.

    Raises InvalidSearch, and Refused for an order to end all mail.
    """
    if not parse(words, now, OF_MOVING) and kind is not Kind.SUSPEND:
        raise Refused(f"{kind} needs a search: it would be about all mail")
    row = (kind.value, words, reason, author, now, now + time)
    with transaction(connection):
        cursor = connection.execute(
            "INSERT INTO orders (kind, words, reason, author, created, expires) VALUES (?, ?, ?, ?, ?, ?)", row
        )
        id_ = cursor.lastrowid or 0
        if kind is not Kind.SUSPEND:
            named = [(id_, *parse_id(one)) for one in here]
            connection.executemany("INSERT OR IGNORE INTO ordered VALUES (?, ?, ?)", named)
    return _order(connection, id_, *row)


_NAMED = (
    "SELECT o.message, o.n FROM ordered o JOIN delivery d ON d.message = o.message AND d.n = o.n"
    " AND d.due IS NOT NULL AND d.state IN ('accepted', 'decided') WHERE o.id = {id}"
)


def active(connection: sqlite3.Connection, now: float) -> list[Order]:
    """Return the orders that hold now, the oldest first."""
    query = (
        "SELECT id, kind, words, reason, author, created, expires FROM orders"
        f" WHERE ended IS NULL AND (expires > ? OR EXISTS ({_NAMED.format(id='orders.id')})) ORDER BY id"
    )
    return [_order(connection, *row) for row in connection.execute(query, (now,)).fetchall()]


def holds(connection: sqlite3.Connection, id_: int) -> bool:
    """Return whether nobody has cancelled it."""
    return bool(scalar(connection, "SELECT count(*) FROM orders WHERE id = ? AND ended IS NULL", id_))


def let_go_since(connection: sqlite3.Connection, id_: int, message: int, n: int) -> bool:
    """Return whether a person released or answered this delivery after the order was given: the newer word counts."""
    query = (
        "SELECT 1 FROM outbox WHERE message = ? AND n = ? AND event IN ('released', 'answered')"
        " AND at >= (SELECT created FROM orders WHERE id = ?)"
    )
    return scalar(connection, query, message, n, id_) is not None


def cancel(connection: sqlite3.Connection, id_: int, now: float) -> tuple[Order, int]:
    """End an order; what it suspended is due now. Gives the order, and how many deliveries go on. Raises NotFound."""
    with transaction(connection):
        found = next((order for order in active(connection, now) if order.id == id_), None)
        if found is None:
            raise NotFound(f"there is no order {id_} that holds; `sendswitch queue orders` shows all")
        connection.execute("UPDATE orders SET ended = ? WHERE id = ?", (now, id_))
        resumed = connection.execute(
            "UPDATE delivery SET due = ? WHERE due > ? AND state IN ('accepted', 'decided') AND reply LIKE ? || '%'",
            (now, now, found.mark),
        ).rowcount
    return found, resumed


def _order(
    connection: sqlite3.Connection,
    id_: int,
    kind: str,
    words: str,
    reason: str,
    author: str,
    created: float,
    expires: float,
) -> Order:
    terms = tuple(parse(words, created, OF_MOVING))
    named = frozenset((message, n) for message, n in connection.execute(_NAMED.format(id="?"), (id_,)))
    return Order(id_, Kind(kind), words, reason, author, created, expires, terms, named)


def first_for(orders: Sequence[Order], message: Message, delivery: Delivery, now: float) -> Order | None:
    """Return the oldest order that holds now and is about this delivery."""
    facts = None
    for order in orders:
        if delivery.key in order.named:
            return order
        if order.expires > now:
            facts = facts or facts_of(message, delivery)
            if matches(order.terms, facts):
                return order
    return None
