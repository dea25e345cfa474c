"""Events for webhooks, in a SQLite file of their own: durable before the step that made them is over.

    endpoint  a URL for a recipient, with the secrets that sign for it; disabled when the receiver said 410
    event     one request with its body, until it is taken or given up, and for a time afterwards
    attempt   each try, for people who ask what happened

An event has an id made of what it is about, so that a message which is offered again makes no second one. Of one
message to one endpoint events are sent in the order they were made. Every function blocks; several processes may use
the file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sendswitch.errors import NotFound, SpoolUnavailable
from sendswitch.processors.base import Notice

VERSION = 1
_TABLES = """
CREATE TABLE endpoint (
  id INTEGER PRIMARY KEY,
  url TEXT NOT NULL,
  recipient TEXT NOT NULL,
  secrets TEXT NOT NULL,
  disabled REAL,
  why TEXT NOT NULL DEFAULT '',
  UNIQUE (url, recipient)
);
CREATE TABLE event (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  endpoint INTEGER NOT NULL,
  message TEXT NOT NULL,
  created REAL NOT NULL,
  form INTEGER NOT NULL,
  body TEXT NOT NULL,
  state TEXT NOT NULL,
  due REAL,
  attempts INTEGER NOT NULL DEFAULT 0,
  ended REAL
);
CREATE INDEX event_due ON event (due) WHERE due IS NOT NULL;
CREATE INDEX event_of_message ON event (endpoint, message, seq) WHERE due IS NOT NULL;
CREATE TABLE attempt (
  event TEXT NOT NULL,
  n INTEGER NOT NULL,
  at REAL NOT NULL,
  seconds REAL NOT NULL,
  status INTEGER NOT NULL,
  said TEXT NOT NULL,
  PRIMARY KEY (event, n)
) WITHOUT ROWID;
"""
# Bytes kept of what a receiver said.
MOST_SAID = 500
# Where it is in a data folder.
PLACE = Path("webhooks") / "outbox.db"
WAITING, DELIVERED, FAILED = "waiting", "delivered", "failed"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it is to be sent. `attempts` are those before."""

    id: str
    endpoint: int
    url: str
    secrets: tuple[str, ...]
    message: str
    form: bool
    body: str
    attempts: int


def copy_outbox(data: Path, target: Path) -> bool:
    """Copy the outbox of a data folder, as of one moment, into another; False when there is none."""
    if not (data / PLACE).exists():
        return False
    (target / PLACE).parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(data / PLACE)) as source, closing(sqlite3.connect(target / PLACE)) as copy:
        source.backup(copy)
    (target / PLACE).chmod(0o600)
    return True


class Outbox:
    """The file. Raises SpoolUnavailable when it cannot be written.

    `first` is the number of its first endpoint: those of several nodes have numbers of their own.
    """

    def __init__(self, file: Path, first: int = 1) -> None:
        self._lock, self._first = threading.Lock(), first
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=10)
            file.chmod(0o600)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            if self.connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                self.connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        except (sqlite3.Error, OSError) as error:
            raise SpoolUnavailable(f"the webhooks' outbox {file} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    def _write(self, *statements: tuple[str, Sequence[Any]]) -> list[int]:
        """Write all or nothing, durable on return; return how many rows each changed."""
        with self._lock:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                try:
                    changed = [self.connection.execute(sql, values).rowcount for sql, values in statements]
                    self.connection.execute("COMMIT")
                except BaseException:
                    self.connection.execute("ROLLBACK")
                    raise
                return changed
            except sqlite3.Error as error:
                raise SpoolUnavailable(f"the webhooks' outbox cannot be written: {error}") from error

    def _read(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self.connection.execute(sql, values).fetchall()

    def put(self, notice: Notice, now: float) -> None:
        """Keep an event, unless it is there already. To an endpoint that is disabled it is not sent."""
        secrets = orjson.dumps(notice.secrets).decode()
        whose = (notice.url, notice.recipient)
        self._write(
            (
                "INSERT INTO endpoint (id, url, recipient, secrets)"
                " SELECT max(?, coalesce(max(id), 0) + 1), ?, ?, ? FROM endpoint WHERE true"
                " ON CONFLICT (url, recipient) DO UPDATE SET secrets = excluded.secrets",
                (self._first, *whose, secrets),
            ),
            (
                "INSERT OR IGNORE INTO event (id, endpoint, message, created, form, body, state, due)"
                f" SELECT ?, id, ?, ?, ?, ?, iif(disabled IS NULL, '{WAITING}', '{FAILED}'),"
                " iif(disabled IS NULL, ?, NULL) FROM endpoint WHERE url = ? AND recipient = ?",
                (notice.id, notice.message, now, notice.form, notice.body, now, *whose),
            ),
        )

    def due(self, now: float, limit: int, *, but: Sequence[str] = (), full: Sequence[int] = ()) -> list[Event]:
        """Return events whose time has come, of each message the first that waits, in their order; without those named
        and those of endpoints that are full.
        """
        rows = self._read(
            "SELECT e.id, e.endpoint, p.url, p.secrets, e.message, e.form, e.body, e.attempts"
            " FROM event e JOIN endpoint p ON p.id = e.endpoint WHERE e.due <= ?"
            " AND e.id NOT IN (SELECT value FROM json_each(?)) AND e.endpoint NOT IN (SELECT value FROM json_each(?))"
            " AND NOT EXISTS (SELECT 1 FROM event o"
            " WHERE o.endpoint = e.endpoint AND o.message = e.message AND o.seq < e.seq AND o.due IS NOT NULL)"
            " ORDER BY e.seq LIMIT ?",
            now,
            orjson.dumps(list(but)).decode(),
            orjson.dumps(list(full)).decode(),
            limit,
        )
        return [
            Event(id_, endpoint, url, tuple(orjson.loads(secrets)), message, bool(form), body, attempts)
            for id_, endpoint, url, secrets, message, form, body, attempts in rows
        ]

    def next_due(self, now: float) -> float | None:
        """Return when the next event becomes due after now."""
        found: float | None = self._read("SELECT min(due) FROM event WHERE due > ?", now)[0][0]
        return found

    def tried(self, event: Event, *, at: float, seconds: float, status: int, said: str, due: float | None) -> None:
        """Record an attempt: delivered for a good status, to be tried again at `due`, or failed."""
        state = DELIVERED if 200 <= status < 300 else FAILED if due is None else WAITING
        n = event.attempts + 1
        self._write(
            (
                "INSERT OR REPLACE INTO attempt VALUES (?, ?, ?, ?, ?, ?)",
                (event.id, n, at, seconds, status, said[:MOST_SAID]),
            ),
            (
                "UPDATE event SET state = ?, due = ?, attempts = ?, ended = ? WHERE id = ?",
                (state, None if state == DELIVERED else due, n, None if state == WAITING else at, event.id),
            ),
        )

    def disable(self, endpoint: int, now: float, why: str) -> None:
        """Stop sending to an endpoint, waiting events included."""
        self._write(
            ("UPDATE endpoint SET disabled = ?, why = ? WHERE id = ?", (now, why, endpoint)),
            (
                f"UPDATE event SET state = '{FAILED}', due = NULL, ended = ? WHERE endpoint = ? AND due IS NOT NULL",
                (now, endpoint),
            ),
        )

    def enable(self, endpoint: int) -> None:
        """Send to an endpoint again what comes from now on. Raises NotFound."""
        (changed,) = self._write(("UPDATE endpoint SET disabled = NULL, why = '' WHERE id = ?", (endpoint,)))
        if not changed:
            raise NotFound(f"there is no endpoint {endpoint}; sendswitch webhook list tells their numbers")

    def send_again(self, ids: Sequence[str], now: float) -> int:
        """Send events again from their first attempt. Return their number. Waiting ones are due at once."""
        marks = ", ".join("?" * len(ids))
        sql = (
            f"UPDATE event SET state = '{WAITING}', due = ?, attempts = 0, ended = NULL WHERE id IN ({marks})"
            " AND (SELECT disabled FROM endpoint WHERE id = event.endpoint) IS NULL"
        )
        return self._write((sql, (now, *ids)))[0] if ids else 0

    def endpoints(self) -> list[dict[str, Any]]:
        """Return every endpoint with the numbers of its events by state."""
        rows = self._read(
            "SELECT p.id, p.url, p.recipient, p.disabled, p.why, sum(e.state = 'waiting'), sum(e.state = 'delivered'),"
            " sum(e.state = 'failed'), min(e.due) FROM endpoint p LEFT JOIN event e ON e.endpoint = p.id"
            " GROUP BY p.id ORDER BY p.id"
        )
        names = ("number", "url", "recipient", "disabled", "why", "waiting", "delivered", "failed", "due")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def events(
        self, *, endpoint: int | None = None, since: float = 0.0, state: str = "", limit: int
    ) -> list[dict[str, Any]]:
        """Return events, the newest first."""
        rows = self._read(
            "SELECT id, endpoint, message, created, state, attempts, due FROM event"
            " WHERE created >= ?1 AND (?2 IS NULL OR endpoint = ?2) AND (?3 = '' OR state = ?3)"
            " ORDER BY seq DESC LIMIT ?4",
            since,
            endpoint,
            state,
            limit,
        )
        names = ("id", "endpoint", "message", "created", "state", "attempts", "due")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def attempts(self, id_: str) -> list[dict[str, Any]]:
        """Return each attempt to send an event. Raises NotFound."""
        if not self._read("SELECT 1 FROM event WHERE id = ?", id_):
            raise NotFound(f"there is no event {id_}; sendswitch webhook events lists them")
        rows = self._read("SELECT n, at, seconds, status, said FROM attempt WHERE event = ? ORDER BY n", id_)
        return [dict(zip(("n", "at", "seconds", "status", "said"), row, strict=True)) for row in rows]

    def prune(self, before: float, limit: int = 1000) -> int:
        """Delete events that ended before a time. Return their number."""
        ids = [row[0] for row in self._read("SELECT id FROM event WHERE ended < ? LIMIT ?", before, limit)]
        if ids:
            marks = ", ".join("?" * len(ids))
            self._write(
                (f"DELETE FROM attempt WHERE event IN ({marks})", ids),
                (f"DELETE FROM event WHERE id IN ({marks})", ids),
            )
        return len(ids)
