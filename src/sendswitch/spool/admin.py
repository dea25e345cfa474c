"""The spool as administrators read and change it, in transactions outside the node's writer.

SQLite lets several connections share the file. Each change checks the state in the transaction that makes it, so that
of two requests, or of a request and the node, only one succeeds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sendswitch.errors import NotFound, Refused, SpoolUnavailable
from sendswitch.journal.events import Event, EventKind
from sendswitch.journal.search import SearchFacts, Term, matches
from sendswitch.mail.ids import from_text, to_text
from sendswitch.spool import schema
from sendswitch.spool.connection import connect, scalar, transaction, write_rows
from sendswitch.spool.records import EVENTS, NewState, dumps, event_from_row
from sendswitch.spool.states import State


@dataclass(frozen=True, slots=True)
class Row:
    """One delivery as listed. Times are seconds since the epoch; `id` is message and recipient number."""

    id: str
    received: float
    sender: str
    recipient: str
    size: int
    state: str
    since: float
    due: float | None
    attempts: int
    reply: str
    action: str
    tags: tuple[str, ...]
    reason: str
    subject: str
    message_id: str
    client: str
    helo: str
    client_name: str
    queue_id: str
    header_to: str
    header_cc: str
    reply_to: str
    parts: tuple[str, ...]
    score: float | None

    def facts(self) -> SearchFacts:
        """Return the facts that a search looks at."""
        message, _ = parse_id(self.id)
        return SearchFacts(
            message=message,
            sender=self.sender,
            recipient=self.recipient,
            size=self.size,
            state=self.state,
            subject=self.subject,
            message_id=self.message_id,
            address=self.client,
            helo=self.helo,
            client_name=self.client_name,
            queue_id=self.queue_id,
            action=self.action,
            tags=self.tags,
            reason=self.reason,
            header_to=self.header_to,
            header_cc=self.header_cc,
            reply_to=self.reply_to,
            parts=self.parts,
            score=self.score,
        )


def open_files(data: Path) -> sqlite3.Connection:
    """Open the spool of a data folder. Raises NotFound when there is none, SpoolUnavailable when it cannot be read."""
    path = data / "spool" / "spool.db"
    none = NotFound(f"there is no spool in {data}; is node.data right, and was `sendswitch serve` ever run?")
    if not path.exists():
        raise none
    connection = connect(path)
    connection.executescript(schema.WRITER)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:  # it is just being made
        connection.close()
        raise none
    if version != schema.VERSION:
        raise SpoolUnavailable(f"the spool has schema version {version}, this program knows {schema.VERSION}")
    return connection


def has_mail(data: Path) -> bool:
    """Return whether there is any mail in the spool of a data folder, final mail too, which is still to be removed."""
    try:
        with closing(open_files(data)) as connection:
            return bool(scalar(connection, "SELECT EXISTS (SELECT 1 FROM message)"))
    except (SpoolUnavailable, sqlite3.Error):  # of an older program, or damaged: a node tells
        return True


def node_number(connection: sqlite3.Connection) -> int:
    """Return the number in the ids of this spool's messages."""
    return int(scalar(connection, "SELECT value FROM meta WHERE key = 'node'"))


def spool_name(connection: sqlite3.Connection) -> str:
    """Return the name of this spool, which it keeps wherever it is."""
    return str(scalar(connection, "SELECT value FROM meta WHERE key = 'name'") or "")


def count_waiting(connection: sqlite3.Connection) -> int:
    """Return the number of deliveries that are not final."""
    return int(scalar(connection, "SELECT count(*) FROM delivery WHERE due IS NOT NULL"))


def parse_id(text: str) -> tuple[int, int]:
    """Return the numbers of '<message>.<n>'. Raises NotFound for other text."""
    message, dot, n = text.partition(".")
    try:
        if not dot:
            raise ValueError(f"{text!r} names a message; add the recipient's number, like {text}.0")
        return from_text(message), int(n)
    except ValueError as error:
        raise NotFound(str(error)) from error


def rows(
    connection: sqlite3.Connection,
    states: Sequence[State],
    *,
    terms: Sequence[Term] = (),
    limit: int = 1000,
    after: str = "",
) -> list[Row]:
    """Return deliveries in these states for which every term holds, the oldest first, those behind the id `after`.

    Raises NotFound when `after` is not an id.
    """
    marks = ",".join("?" * len(states))
    query = f"{_ROWS} WHERE d.state IN ({marks}) AND (d.message, d.n) > (?, ?) ORDER BY d.message, d.n"
    begin = parse_id(after) if after else (-1, -1)
    found: list[Row] = []
    for values in connection.execute(query, [*(state.value for state in states), *begin]):
        row = _row(*values)
        if not terms or matches(terms, row.facts()):
            found.append(row)
            if len(found) == limit:
                break
    return found


def row(connection: sqlite3.Connection, id_: str) -> Row:
    """Return one delivery. Raises NotFound."""
    found = connection.execute(f"{_ROWS} WHERE d.message = ? AND d.n = ?", parse_id(id_)).fetchone()
    if found is None:
        raise NotFound(f"there is no delivery {id_} in this spool")
    return _row(*found)


_ROWS = (
    "SELECT m.id, d.n, m.received, m.sender, d.recipient, m.size, d.state, d.since, d.due, d.attempts, d.reply,"
    " d.verdict, m.envelope, (SELECT data FROM outbox WHERE message = m.id"
    " AND event IN ('accepted', 'rejected', 'refused') ORDER BY id LIMIT 1)"
    " FROM delivery d JOIN message m ON m.id = d.message"
)


def _row(message: int, n: int, *rest: Any) -> Row:
    received, sender, recipient, size, state, since, due, attempts, reply, verdict, envelope, came = rest
    data = orjson.loads(verdict) if verdict else {}
    client = orjson.loads(envelope).get("client", {})
    told = orjson.loads(came) if came else {}
    return Row(
        id=f"{to_text(message)}.{n}",
        received=received,
        sender=sender,
        recipient=recipient,
        size=size,
        state=state,
        since=since,
        due=due,
        attempts=attempts,
        reply=reply,
        action=data.get("action", ""),
        tags=tuple(data.get("tags", ())),
        reason=data.get("reason", ""),
        subject=told.get("subject", ""),
        message_id=told.get("message_id", ""),
        client=client.get("address", ""),
        helo=client.get("helo", ""),
        client_name=client.get("name", ""),
        queue_id=client.get("ident", ""),
        header_to=told.get("header_to", ""),
        header_cc=told.get("header_cc", ""),
        reply_to=told.get("reply_to", ""),
        parts=tuple(told.get("parts", ())),
        score=data.get("score"),
    )


def events(connection: sqlite3.Connection, message: int) -> list[Event]:
    """Return the events of a message that the spool still has, in order."""
    return [event_from_row(row) for row in connection.execute(f"{EVENTS} WHERE message = ? ORDER BY id", (message,))]


def flush(connection: sqlite3.Connection, ids: Sequence[str] | None, now: float) -> int:
    """Make deliveries that wait for another attempt due now, all of them or these. Return their number."""
    update = "UPDATE delivery SET due = ?1 WHERE due > ?1 AND state IN ('accepted', 'decided')"
    with transaction(connection):
        if ids is None:
            return connection.execute(update, (now,)).rowcount
        keys = [(now, *parse_id(id_)) for id_ in ids]
        return connection.executemany(f"{update} AND message = ?2 AND n = ?3", keys).rowcount


def release(connection: sqlite3.Connection, id_: str, now: float, *, by: str) -> None:
    """Let a quarantined delivery go to its recipient, not filtered again. Raises NotFound, Refused."""
    message, n = parse_id(id_)
    old = scalar(connection, "SELECT verdict FROM delivery WHERE message = ? AND n = ?", message, n)
    verdict = (orjson.loads(old) if old else {}) | {"action": "pass", "reason": f"released by {by}"}
    _decide(connection, id_, State.QUARANTINED, EventKind.RELEASED, {"by": by}, verdict, now)


# What a person may say to a held delivery, as the verdict that it becomes.
ANSWERS: dict[str, dict[str, str]] = {
    "pass": {"action": "pass"},
    "deny": {"action": "deny", "then": "bounce"},
    "quarantine": {"action": "quarantine"},
    "discard": {"action": "deny", "then": "discard"},
}


def answer(connection: sqlite3.Connection, id_: str, what: str, now: float, *, by: str, reason: str) -> None:
    """Decide a held delivery, as one of ANSWERS. Raises NotFound, Refused."""
    message, n = parse_id(id_)
    old = scalar(connection, "SELECT verdict FROM delivery WHERE message = ? AND n = ?", message, n)
    kept = {
        name: value
        for name, value in (orjson.loads(old) if old else {}).items()
        if name in ("tags", "edits", "rewrite")
    }
    told = {"by": by, "answer": what, "reason": reason}
    verdict = kept | ANSWERS[what] | {"reason": reason or f"{what} by {by}"}
    _decide(connection, id_, State.HELD, EventKind.ANSWERED, told, verdict, now)


def _decide(
    connection: sqlite3.Connection,
    id_: str,
    was: State,
    event: EventKind,
    told: dict[str, Any],
    verdict: dict[str, Any],
    now: float,
) -> None:
    """Put a person's decision in the place of the pipeline's."""
    message, n = parse_id(id_)
    _leave(connection, NewState(message, n, now, event, told, was, State.DECIDED, due=now, verdict=dumps(verdict)))


def delete(connection: sqlite3.Connection, id_: str, now: float, *, by: str) -> None:
    """Delete a quarantined delivery; its content stays as long as recorded mail does. Raises NotFound, Refused."""
    message, n = parse_id(id_)
    reply = f"250 2.0.0 deleted by {by}"
    was, state = State.QUARANTINED, State.DISCARDED
    _leave(connection, NewState(message, n, now, EventKind.DELETED, {"by": by}, was, state, reply=reply))


def _leave(connection: sqlite3.Connection, new: NewState) -> None:
    """Write a new state, if the delivery is still in the state it was. Raises NotFound, Refused."""
    with transaction(connection):
        found = scalar(connection, "SELECT state FROM delivery WHERE message = ? AND n = ?", new.message, new.n)
        id_ = f"{to_text(new.message)}.{new.n}"
        if found is None:
            noun = "hold" if new.was is State.HELD else "quarantine"
            raise NotFound(f"there is no delivery {id_}; `sendswitch {noun} list` shows all")
        if found != new.was:
            raise Refused(f"{id_} is {found}, not {new.was}")
        write_rows(connection, [new.row()])


def damage(connection: sqlite3.Connection) -> str:
    """Return the first damage that SQLite finds in the spool's file, '' when there is none."""
    said = str(scalar(connection, "PRAGMA quick_check(1)"))
    return "" if said == "ok" else said


def newest_message(connection: sqlite3.Connection) -> int:
    """Return the highest id of a message, 0 when there is none."""
    return int(scalar(connection, "SELECT max(id) FROM message") or 0)


def count_poison(connection: sqlite3.Connection) -> int:
    """Return how many deliveries are in quarantine because their pipelines crashed again and again."""
    query = "SELECT count(*) FROM delivery WHERE state = 'quarantined' AND reply LIKE 'poison:%'"
    return int(scalar(connection, query))
