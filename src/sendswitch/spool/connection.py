"""A connection to the spool's database, and the statements that every writer of it shares."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

from sendswitch.errors import SpoolUnavailable, caused_by, in_words
from sendswitch.spool.records import Record
from sendswitch.spool.schema import COLUMNS_WRITTEN

# Rows in one statement. SQLite keeps a statement prepared and its last values with it, so there are few texts, one for
# each power of two, and a group is filled up with rows of nothing.
MOST_ROWS = 64
_ROW = f"({', '.join('?' * len(COLUMNS_WRITTEN))})"
_NOTHING: Record = (None,) * len(COLUMNS_WRITTEN)


def write_rows(connection: sqlite3.Connection, rows: Sequence[Record]) -> None:
    """Insert rows in their order, inside the caller's transaction or (up to MOST_ROWS) in one of their own."""
    for start in range(0, len(rows), MOST_ROWS):
        part = rows[start : start + MOST_ROWS]
        size = 1 << (len(part) - 1).bit_length()
        values = list(chain.from_iterable(part))
        values += _NOTHING * (size - len(part))
        connection.execute(statement(size), values)


@cache
def statement(rows: int) -> str:
    """Return the statement that writes so many rows."""
    return f"INSERT INTO writing VALUES {', '.join([_ROW] * rows)}"


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection that writes durably. Raises SpoolUnavailable when there is none to be had."""
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=10.0, cached_statements=256
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        # 8 MiB of log between checkpoints: fewer fsyncs of the database file, still a quick start.
        connection.execute("PRAGMA wal_autocheckpoint=2000")
        return connection
    except sqlite3.Error as error:
        raise caused_by(error, SpoolUnavailable(f"cannot open the spool {path}: {in_words(error)}")) from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of the block durably, or nothing. No other connection writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def scalar(connection: sqlite3.Connection, sql: str, *parameters: Any) -> Any:
    """Return the single value of a query, None when it has no row."""
    row = connection.execute(sql, parameters).fetchone()
    return cast(Any, row[0]) if row else None
