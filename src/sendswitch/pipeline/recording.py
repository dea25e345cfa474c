"""Recorded mail: each message with its envelope as it came, and what a pipeline said of it.

Read in small pieces, each in a transaction of its own: one long transaction would keep the live node from folding its
log back into the spool.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from sendswitch.mail.content import Content, Damaged, InFile, InMemory, verify
from sendswitch.mail.envelope import Envelope, Recipient, from_json
from sendswitch.mail.ids import to_text
from sendswitch.mail.verdict import Verdict, verdict_from_json
from sendswitch.spool.body import content_file
from sendswitch.spool.states import TERMINAL, State

# Messages in one piece.
PIECE = 200


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One recorded message for one recipient. `verdict` is what counted, None where no pipeline was asked; `at` is when
    (seconds since the epoch), `attempt` which offer it was, from 1."""

    message: int
    n: int
    recipient: Recipient
    envelope: Envelope
    content: Content
    subject: str
    at: float
    attempt: int = 1
    verdict: Verdict | None = None

    @property
    def id(self) -> str:
        """Return the delivery's id as people see it."""
        return f"{to_text(self.message)}.{self.n}"


def messages(connection: sqlite3.Connection, after: int, before: int) -> int:
    """Return how many messages between these ids have their content, at most."""
    query = f"SELECT count(*) {_KEPT} AND m.id < ?"
    return int(connection.execute(query, (after, before)).fetchone()[0])


def cases(connection: sqlite3.Connection, data: Path, after: int, before: int) -> Iterator[list[Case]]:
    """Yield the cases of each message that has its content, in the order of their ids, between `after` and `before`."""
    while piece := _piece(connection, after, before):
        for row in piece:
            yield _cases(connection, data, row)
        after = piece[-1][0]


def case(connection: sqlite3.Connection, data: Path, message: int, n: int) -> Case | None:
    """Return the last time this delivery was judged; None when it never was or its content is gone."""
    for row in _piece(connection, message - 1, message + 1):
        found = [one for one in _cases(connection, data, row) if one.n == n and one.verdict is not None]
        if found:
            return found[-1]
    return None


_KEPT = "FROM message m LEFT JOIN content c ON c.message = m.id WHERE m.id > ? AND (c.message IS NOT NULL OR m.in_file)"

_Row = tuple[int, float, str, int, str, str, int, bytes | None, bytes | None]


def _piece(connection: sqlite3.Connection, after: int, before: int) -> list[_Row]:
    columns = "m.id, m.received, m.sender, m.in_file, m.via, m.envelope, m.size, m.digest, c.bytes"
    query = f"SELECT {columns} {_KEPT} AND m.id < ? ORDER BY m.id LIMIT {PIECE}"
    return connection.execute(query, (after, before)).fetchall()


def _cases(connection: sqlite3.Connection, data: Path, row: _Row) -> list[Case]:
    message, received, sender, in_file, via, envelope_text, size, digest, data_bytes = row
    if via == "report":
        return []  # never offered to a pipeline
    content = _content(data, message, in_file=bool(in_file), small=data_bytes, size=size, digest=digest)
    if content is None:
        return []
    to = {
        n: (Recipient(address, notify, orcpt), State(state))
        for n, address, notify, orcpt, state in connection.execute(
            "SELECT n, recipient, notify, orcpt, state FROM delivery WHERE message = ?", (message,)
        )
    }
    envelope = from_json(sender, tuple(recipient for recipient, _ in to.values()), orjson.loads(envelope_text))
    subject = ""
    found: list[Case] = []

    def add(n: int, at: float, attempt: int, verdict: Verdict | None) -> None:
        if n in to:
            found.append(Case(message, n, to[n][0], envelope, content, subject, at, attempt, verdict))

    events = "SELECT n, at, event, data FROM outbox WHERE message = ? AND event IN ('accepted', 'rejected', 'verdict')"
    for n, at, event, text in connection.execute(f"{events} ORDER BY id", (message,)):
        told = orjson.loads(text)
        if event == "verdict":
            attempt = int(told.pop("attempt", 1))
            told.pop("before", None)
            add(n, at, attempt, verdict_from_json(told))
        else:
            subject = str(told.get("subject", ""))
            for number, verdict in told.get("verdicts", {}).items():
                if verdict.get("pipeline"):
                    add(int(number), at, 1, verdict_from_json(verdict))
    judged = {one.n for one in found}
    for n, (_, state) in to.items():
        if n not in judged and state in TERMINAL:
            add(n, received, 1, None)
    return found


def _content(
    data: Path, message: int, *, in_file: bool, small: bytes | None, size: int, digest: bytes | None
) -> Content | None:
    """Return a message's content, None when it is gone or damaged: a verdict about other content says nothing."""
    path = content_file(data / "spool" / "content", message)
    try:
        content = InFile(path, path.stat().st_size) if in_file else InMemory(small or b"")
        return verify(content, size, digest)
    except (OSError, Damaged):
        return None
