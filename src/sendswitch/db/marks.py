"""Counters of changes, by which each node sees what others changed without reading it all again."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Transaction, insert, select, update
from sqlalchemy.exc import IntegrityError

from sendswitch.db.tables import marks

# How often users with their pipelines and workers, kept lists, and keys of programs were changed.
USERS, LISTS, KEYS = "users", "lists", "keys"

# The numbers that a transaction has. It needs one of each kind, whatever it changes: PostgreSQL would go through all
# versions of a row that one transaction changes ten thousand times.
_counted: WeakKeyDictionary[Transaction, dict[str, int]] = WeakKeyDictionary()


def count(connection: Connection, name: str) -> int:
    """Count what a transaction changes, and return the number of the change. Call it before anything else in it.

    No other transaction gets a number until this one ends. So a number that can be seen means that all lower ones can
    be seen too, and two transactions never wait for each other.
    """
    transaction = connection.get_transaction()
    assert transaction is not None
    mine = _counted.setdefault(transaction, {})
    if name not in mine:
        if not _add_one(connection, name):
            _begin(connection, name)
            _add_one(connection, name)
        mine[name] = number(connection, name)
    return mine[name]


def _add_one(connection: Connection, name: str) -> bool:
    """Count on; return False when there is nothing yet to count on from."""
    return connection.execute(update(marks).where(marks.c.name == name).values(value=marks.c.value + 1)).rowcount > 0


def _begin(connection: Connection, name: str) -> None:
    try:
        with connection.begin_nested():
            connection.execute(insert(marks).values(name=name, value=0))
    except IntegrityError:
        pass  # another transaction was quicker


def number(connection: Connection, name: str) -> int:
    """Return the number of the last change, 0 for none."""
    return int(connection.execute(select(marks.c.value).where(marks.c.name == name)).scalar() or 0)


def numbers(engine: Engine) -> Mapping[str, int]:
    """Return the numbers of the last changes by their names."""
    with engine.connect() as connection:
        found = connection.execute(select(marks.c.name, marks.c.value).where(marks.c.name.in_((USERS, LISTS, KEYS))))
        return dict.fromkeys((USERS, LISTS, KEYS), 0) | {str(row.name): int(row.value) for row in found}
