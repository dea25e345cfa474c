"""Requeue or forward a message that is still in the spool."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sendswitch.errors import NotFound, Refused
from sendswitch.journal.events import EventKind
from sendswitch.mail.content import Content
from sendswitch.mail.ids import to_text
from sendswitch.spool.admin import parse_id
from sendswitch.spool.connection import scalar, transaction
from sendswitch.spool.contents import STORED, Stored, open_content
from sendswitch.spool.records import dumps
from sendswitch.spool.states import TERMINAL, State


def content(connection: sqlite3.Connection, data: Path, message: int) -> Content:
    """Return a message's content, its length and digest checked.

    Raises NotFound when the spool has it no more, ContentDamaged when it differs from what was stored.
    """
    query = f"SELECT {STORED} FROM message m LEFT JOIN content c ON c.message = m.id WHERE m.id = ?"
    row = connection.execute(query, (message,)).fetchone()
    if row is None:
        raise NotFound(f"the content of {to_text(message)} is in no spool here")
    try:
        return open_content(data / "spool" / "content", Stored(*row))
    except FileNotFoundError as error:
        known = 'is not kept any more; recording.mail = "all" keeps it longer'
        raise NotFound(f"the content of {to_text(message)} {known}") from error


def requeue(
    connection: sqlite3.Connection,
    data: Path,
    id_: str,
    now: float,
    *,
    by: str,
    reason: str,
    unfiltered: bool,
    once_more: bool = False,
) -> str:
    """Deliver to the same recipient once more, through the pipeline unless `unfiltered`. Return the new delivery's id.

    Raises NotFound without its content, and Refused while the delivery is in the queue, held or in quarantine, or when
    it was requeued already and got through; `once_more` allows the last.
    """
    told = {"by": by, "reason": reason} | ({"unfiltered": True} if unfiltered else {})
    passed = {"action": "pass", "reason": f"put into the queue again by {by}"} if unfiltered else None
    return _add(connection, data, id_, [], passed, EventKind.REQUEUED, told, now, once_more=once_more)[0]


def send_on(
    connection: sqlite3.Connection, data: Path, id_: str, to: Sequence[str], now: float, *, by: str, reason: str
) -> list[str]:
    """Deliver to other addresses, each through its own pipeline. Return the new deliveries' ids. Raises NotFound."""
    return _add(connection, data, id_, to, None, EventKind.SENT_ON, {"by": by, "reason": reason}, now)


def _require_final(
    connection: sqlite3.Connection, message: int, n: int, id_: str, state: str, *, once_more: bool
) -> None:
    """Raise Refused while the delivery, or the one that took its place, can still be delivered."""
    if state not in TERMINAL:
        hint = {"held": "hold answer", "quarantined": "quarantine release"}.get(state, "queue flush")
        raise Refused(f"{id_} is {state}, so it is delivered once already; see `sendswitch {hint}`")
    again = (
        "SELECT c.n FROM delivery c JOIN delivery d ON d.message = c.message AND d.n = c.origin"
        " AND d.recipient = c.recipient WHERE c.message = ? AND c.origin = ?"
    )
    through = "" if once_more else " OR c.state IN ('delivered', 'forwarded')"
    child = scalar(connection, f"{again} AND (c.due IS NOT NULL{through})", message, n)
    if child is not None:
        hint = "" if once_more else "; --again delivers one more"
        raise Refused(f"{id_} was put into the queue again already, as {to_text(message)}.{child}{hint}")


def _state(connection: sqlite3.Connection, id_: str) -> str:
    found = scalar(connection, "SELECT state FROM delivery WHERE message = ? AND n = ?", *parse_id(id_))
    if found is None:
        raise NotFound(f"there is no delivery {id_} in this spool; it may be too old, or another node's")
    return str(found)


def _add(
    connection: sqlite3.Connection,
    data: Path,
    id_: str,
    to: Sequence[str],
    verdict: dict[str, Any] | None,
    event: EventKind,
    told: dict[str, Any],
    now: float,
    *,
    once_more: bool = False,
) -> list[str]:
    """Add deliveries of a message with an event, in one transaction. Deliveries to other addresses cause no reports."""
    message, n = parse_id(id_)
    # All in one transaction: nobody else decides, and the content cannot go in between.
    with transaction(connection):
        state = _state(connection, id_)
        if not to:
            _require_final(connection, message, n, id_, state, once_more=once_more)
        _require_kept(connection, data, message)
        new = _insert(connection, message, n, to, verdict, now)
        connection.execute(
            "UPDATE message SET recipients = recipients + ?, expires = max(expires, ? + lifetime) WHERE id = ?",
            (len(new), now, message),
        )
        row = (message, n, now, event, dumps(told | {"children": new}))
        connection.execute("INSERT INTO outbox (message, n, at, event, data) VALUES (?, ?, ?, ?, ?)", row)
    return [f"{to_text(message)}.{child}" for child, _, _ in new]


def _require_kept(connection: sqlite3.Connection, data: Path, message: int) -> None:
    """Raise NotFound when the content is not here, or goes any moment."""
    alive = "SELECT 1 FROM delivery WHERE message = ?1 AND due IS NOT NULL"
    if scalar(connection, f"SELECT 1 FROM recorded WHERE message = ?1 UNION {alive}", message) is None:
        raise NotFound(
            f'the content of {to_text(message)} is not kept any more; recording.mail = "all" keeps it longer'
        )
    content(connection, data, message)


def _insert(
    connection: sqlite3.Connection, message: int, n: int, to: Sequence[str], verdict: dict[str, Any] | None, now: float
) -> list[tuple[int, str, str]]:
    """Return number, address and state of each delivery that comes from delivery `n`."""
    rewritten = "json_extract(verdict, '$.rewrite')"
    query = f"SELECT recipient, notify, orcpt, {rewritten} FROM delivery WHERE message = ? AND n = ?"
    *own, rewrite = connection.execute(query, (message, n)).fetchone()
    wanted = [(address, "NEVER", "") for address in to] or [own]
    if rewrite and not to:  # it was forwarded, and still is
        verdict = (verdict or {}) | {"rewrite": True}
    first = int(scalar(connection, "SELECT max(n) FROM delivery WHERE message = ?", message)) + 1
    state = State.DECIDED if verdict and "action" in verdict else State.ACCEPTED
    text = None if verdict is None else dumps(verdict)
    connection.executemany(
        "INSERT INTO delivery VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, '')",
        [(message, first + k, *who, state.value, now, now, n, text) for k, who in enumerate(wanted)],
    )
    return [(first + k, address, state.value) for k, (address, _, _) in enumerate(wanted)]
