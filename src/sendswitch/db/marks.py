"""Counters of changes, by which each node sees what others changed without reading it all again."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Engine, insert, select, update

from sendswitch.db.tables import marks

# How often users with their pipelines and workers, kept lists, and keys of programs were changed.
USERS, LISTS, KEYS = "users", "lists", "keys"


def count(connection: Connection, name: str) -> int:
    """Count a change, and return its number. Call it before other writes of a transaction.

    No other transaction gets a number until this one ends. So a number that can be seen means that all lower ones can
    be seen too, and two transactions never wait for each other.
    """
    mine = marks.c.name == name
    if not connection.execute(update(marks).where(mine).values(value=marks.c.value + 1)).rowcount:
        connection.execute(insert(marks).values(name=name, value=1))
    return number(connection, name)


def number(connection: Connection, name: str) -> int:
    """Return the number of the last change, 0 for none."""
    return int(connection.execute(select(marks.c.value).where(marks.c.name == name)).scalar() or 0)


def numbers(engine: Engine) -> Mapping[str, int]:
    """Return the numbers of the last changes by their names."""
    with engine.connect() as connection:
        found = connection.execute(select(marks.c.name, marks.c.value).where(marks.c.name.in_((USERS, LISTS, KEYS))))
        return dict.fromkeys((USERS, LISTS, KEYS), 0) | {str(row.name): int(row.value) for row in found}
