"""The messages in the spool that still have their content, with their verdicts, for replays.

They are read in small pieces, each in a transaction of its own: one long transaction would keep the live node from
folding its log back into the spool.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sendswitch.errors import ContentDamaged
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope, Recipient, from_json
from sendswitch.spool.contents import STORED, Stored, open_content
from sendswitch.spool.states import State

# Messages in one piece.
PIECE = 200

_KEPT = "FROM message m LEFT JOIN content c ON c.message = m.id WHERE m.id > ? AND (c.message IS NOT NULL OR m.in_file)"


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A message with its content, its deliveries by number, and its events with verdicts in order: each with the
    delivery's number, time, kind and data.
    """

    id: int
    received: float
    envelope: Envelope
    content: Content
    deliveries: Mapping[int, tuple[Recipient, State]]
    events: tuple[tuple[int, float, str, dict[str, Any]], ...]


def count(connection: sqlite3.Connection, after: int, before: int) -> int:
    """Return how many messages between these ids have their content, at most."""
    query = f"SELECT count(*) {_KEPT} AND m.id < ?"
    return int(connection.execute(query, (after, before)).fetchone()[0])


def recorded(connection: sqlite3.Connection, data: Path, after: int, before: int) -> Iterator[Recorded | None]:
    """Yield each message between two ids, in their order; None for one whose content is damaged, and for a report,
    which is never offered to a pipeline."""
    columns = f"m.received, m.sender, m.via, m.envelope, {STORED}"
    query = f"SELECT {columns} {_KEPT} AND m.id < ? ORDER BY m.id LIMIT {PIECE}"
    while piece := connection.execute(query, (after, before)).fetchall():
        for received, sender, via, envelope, *kept in piece:
            stored = Stored(*kept)
            content = None if via == "report" else _content(data, stored)
            if content is None:
                yield None
                continue
            to = _deliveries(connection, stored.message)
            whole = from_json(sender, tuple(recipient for recipient, _ in to.values()), orjson.loads(envelope))
            yield Recorded(stored.message, received, whole, content, to, _events(connection, stored.message))
        after = stored.message


def _deliveries(connection: sqlite3.Connection, message: int) -> dict[int, tuple[Recipient, State]]:
    query = "SELECT n, recipient, notify, orcpt, state FROM delivery WHERE message = ?"
    return {
        n: (Recipient(address, notify, orcpt), State(state))
        for n, address, notify, orcpt, state in connection.execute(query, (message,))
    }


def _events(connection: sqlite3.Connection, message: int) -> tuple[tuple[int, float, str, dict[str, Any]], ...]:
    query = "SELECT n, at, event, data FROM outbox WHERE message = ? AND event IN ('accepted', 'rejected', 'verdict')"
    rows = connection.execute(f"{query} ORDER BY id", (message,))
    return tuple((n, at, event, orjson.loads(text)) for n, at, event, text in rows)


def _content(data: Path, stored: Stored) -> Content | None:
    """Return a message's content, None when it is gone or damaged: a verdict about other content says nothing."""
    try:
        return open_content(data / "spool" / "content", stored)
    except (OSError, ContentDamaged):
        return None
