"""The events that the spool keeps for the journal, read by message: for the audit and for probes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from sendswitch.spool.connection import scalar

# Events after which a message may have deliveries that it had not before.
_ADDS = "('forwarded', 'requeued', 'sent on')"


def last_event(connection: sqlite3.Connection) -> int:
    """Return the number of the newest event. Later events have a higher one."""
    return int(scalar(connection, "SELECT max(id) FROM outbox") or 0)


def journaled(connection: sqlite3.Connection) -> int:
    """Return the number of the last event that the journal has, 0 when it has none."""
    return int(scalar(connection, "SELECT value FROM meta WHERE key = 'journaled'") or 0)


def messages_after(connection: sqlite3.Connection, after: int, limit: int) -> list[int]:
    """Return the ids of at most `limit` messages above `after`, in order."""
    query = "SELECT id FROM message WHERE id > ? ORDER BY id LIMIT ?"
    return [row[0] for row in connection.execute(query, (after, limit))]


def events_told(connection: sqlite3.Connection, first: int, last: int, told: int) -> dict[int, int]:
    """Return the number of events up to number `told`, for each message between two ids."""
    query = "SELECT message, count(*) FROM outbox WHERE message BETWEEN ? AND ? AND id <= ? GROUP BY message"
    return dict(connection.execute(query, (first, last, told)).fetchall())


def newest_events(connection: sqlite3.Connection, first: int, last: int) -> dict[tuple[int, int], int]:
    """Return the newest event of each delivery of the messages between two ids. A candidate's changes nothing."""
    query = (
        "SELECT message, n, max(id) FROM outbox WHERE message BETWEEN ? AND ? AND event <> 'candidate'"
        " GROUP BY message, n"
    )
    return {(message, n): seq for message, n, seq in connection.execute(query, (first, last))}


def states_between(connection: sqlite3.Connection, first: int, last: int) -> list[tuple[int, int, str]]:
    """Return message, number and state of each delivery of the messages between two ids."""
    query = "SELECT message, n, state FROM delivery WHERE message BETWEEN ? AND ?"
    return connection.execute(query, (first, last)).fetchall()


def changed_after(connection: sqlite3.Connection, message: int, n: int, told: int) -> bool:
    """Return whether a delivery has events behind event `told`."""
    query = f"SELECT max(id) FROM outbox WHERE message = ? AND (n = ? OR event IN {_ADDS})"
    return int(scalar(connection, query, message, n) or 0) > told


def arrivals(connection: sqlite3.Connection, after: int) -> Iterator[tuple[int, float, Mapping[str, Any]]]:
    """Yield message, time and data of each message that was accepted or rejected behind event `after`."""
    query = "SELECT message, at, data FROM outbox WHERE id > ? AND event IN ('accepted', 'rejected')"
    for message, at, text in connection.execute(query, (after,)):
        yield message, at, orjson.loads(text)


def deliveries_events(connection: sqlite3.Connection, message: int) -> Iterator[tuple[float, str, Mapping[str, Any]]]:
    """Yield time, kind and data of each event of a message's deliveries, in order."""
    query = "SELECT at, event, data FROM outbox WHERE message = ? AND n IS NOT NULL ORDER BY id"
    for at, event, text in connection.execute(query, (message,)):
        yield at, event, orjson.loads(text)
