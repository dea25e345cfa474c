"""The proof that every accepted recipient is in exactly one state and every message that is needed is there."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from sendswitch.journal.events import EventKind
from sendswitch.mail.ids import to_text
from sendswitch.spool.schema import FILES_NEEDED, content_file
from sendswitch.spool.states import NEVER_OURS, TERMINAL, State


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One inconsistency: the rule, the object, and an explanation."""

    rule: str
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an audit. It is clean when there are no findings."""

    messages: int
    deliveries: int
    states: dict[str, int]
    findings: tuple[AuditFinding, ...]


_ENDS = {
    State.DELIVERED: (EventKind.DELIVERED,),
    State.FORWARDED: (EventKind.FORWARDED,),
    State.BOUNCED: (EventKind.BOUNCED,),
    State.FAILED: (EventKind.FAILED,),
    State.DISCARDED: (EventKind.DISCARDED, EventKind.DELETED, EventKind.DROPPED),
}
_TERMINAL = ", ".join(f"'{state.value}'" for state in sorted(TERMINAL))
_STATES = ", ".join(f"'{state.value}'" for state in State)

# Each rule is a query whose rows are what breaks it: message, n, detail.
_RULES: tuple[tuple[str, str, str], ...] = (
    (
        "every accepted recipient has a delivery",
        "SELECT id, NULL, recipients || ' recipients, ' || (SELECT count(*) FROM delivery WHERE message = id)"
        " || ' deliveries' FROM message"
        " WHERE recipients <> (SELECT count(*) FROM delivery WHERE message = id)",
        "a recipient is unaccounted for",
    ),
    (
        "every delivery belongs to a message",
        "SELECT message, n, recipient FROM delivery WHERE message NOT IN (SELECT id FROM message)",
        "its message is missing",
    ),
    (
        "every state is one of the known",
        f"SELECT message, n, state FROM delivery WHERE state NOT IN ({_STATES})",
        "nobody knows what to do with it",
    ),
    (
        "what is not final has a time to be looked at again",
        f"SELECT message, n, state FROM delivery WHERE due IS NULL AND state NOT IN ({_TERMINAL})",
        "it would wait for ever",
    ),
    (
        "what is final is not looked at again",
        f"SELECT message, n, state FROM delivery WHERE due IS NOT NULL AND state IN ({_TERMINAL})",
        "it could be delivered again",
    ),
    (
        "what is not final has its content",
        "SELECT m.id, NULL, m.size || ' bytes' FROM message m WHERE NOT m.in_file"
        " AND EXISTS (SELECT 1 FROM delivery d WHERE d.message = m.id AND d.due IS NOT NULL)"
        " AND NOT EXISTS (SELECT 1 FROM content c WHERE c.message = m.id AND length(c.bytes) = m.size)",
        "its content is missing or cut",
    ),
    (
        "content goes with the last delivery that needs it",
        "SELECT c.message, NULL, length(c.bytes) || ' bytes' FROM content c"
        " WHERE NOT EXISTS (SELECT 1 FROM delivery d WHERE d.message = c.message AND d.due IS NOT NULL)"
        " AND NOT EXISTS (SELECT 1 FROM recorded r WHERE r.message = c.message)",
        "content of a message that is done with",
    ),
    (
        "what is recorded is there",
        "SELECT r.message, NULL, r.size || ' bytes' FROM recorded r LEFT JOIN message m ON m.id = r.message"
        " WHERE m.id IS NULL OR (NOT m.in_file"
        " AND NOT EXISTS (SELECT 1 FROM content c WHERE c.message = r.message AND length(c.bytes) = r.size))",
        "recorded content is missing or cut",
    ),
    (
        "every message has its first event",
        "SELECT id, NULL, via FROM message"
        " WHERE NOT EXISTS (SELECT 1 FROM outbox"
        " WHERE message = message.id AND event IN ('accepted', 'rejected', 'refused'))",
        "its history does not begin",
    ),
)


def audit(connection: sqlite3.Connection, data: Path) -> Report:
    """Check every rule in one snapshot of the spool."""
    connection.execute("BEGIN")
    try:
        findings = [
            AuditFinding(rule, to_text(message) + ("" if n is None else f".{n}"), f"{meaning}: {detail}")
            for rule, query, meaning in _RULES
            for message, n, detail in connection.execute(query)
        ]
        findings += _histories(connection)
        messages = connection.execute("SELECT count(*) FROM message").fetchone()[0]
        states = dict(connection.execute("SELECT state, count(*) FROM delivery GROUP BY state ORDER BY state"))
        missing = _files(connection, data / "spool" / "content")
    finally:
        connection.execute("ROLLBACK")
    # A file may have gone with its last delivery while we looked: what is still needed now is really missing.
    still = f"{FILES_NEEDED} AND id = ?"
    findings += [finding for message, finding in missing if connection.execute(still, (message,)).fetchone()]
    return Report(messages, sum(states.values()), states, tuple(findings))


def _histories(connection: sqlite3.Connection) -> list[AuditFinding]:
    """Find final deliveries whose history does not have exactly one end, that of its state."""
    every = [event for events in _ENDS.values() for event in events]
    marks = ",".join("?" * len(every))
    query = (
        "SELECT d.message, d.n, d.state, group_concat(o.event) FROM delivery d"
        " LEFT JOIN outbox o ON o.message = d.message AND o.n = d.n"
        f" AND o.event IN ({marks})"
        " JOIN message m ON m.id = d.message WHERE m.via <> 'proxy' OR d.state <> 'delivered'"
        " GROUP BY d.message, d.n"
    )
    findings = []
    for message, n, state, events in connection.execute(query, every):
        ended = events.split(",") if events else []
        allowed = _ENDS.get(State(state), ()) if state in set(State) else ()
        if state in NEVER_OURS:
            continue  # told in the message's first event
        if (len(ended) != 1 or ended[0] not in allowed) if allowed else ended:
            told = ", ".join(ended) or "no end"
            findings.append(AuditFinding("a final delivery has one end", f"{to_text(message)}.{n}", f"{state}: {told}"))
    return findings


def _files(connection: sqlite3.Connection, folder: Path) -> list[tuple[int, AuditFinding]]:
    findings = []
    for message, size in connection.execute(FILES_NEEDED):
        path = content_file(folder, message)
        there = path.stat().st_size if path.exists() else None
        if there != size:
            text = "its file is missing" if there is None else f"its file has {there} bytes, not {size}"
            findings.append((message, AuditFinding("what is needed has its content", to_text(message), text)))
    return findings
