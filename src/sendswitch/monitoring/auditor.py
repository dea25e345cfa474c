"""The audit: each accepted recipient is in exactly one state, in the spool and in the journal, at all times.

The spool is checked in one snapshot. The journal is compared with it in pieces: every event that the spool has passed
on must be there once, and each delivery's row must agree with the spool. A delivery that changes meanwhile is checked
the next time.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Engine, func, select

from sendswitch import logs, metrics
from sendswitch.db.connect import in_thread
from sendswitch.db.journal import pruned_to
from sendswitch.db.tables import deliveries, events, messages
from sendswitch.mail.ids import to_text
from sendswitch.spool.admin import open_files
from sendswitch.spool.audit import AuditFinding, Report, audit
from sendswitch.spool.history import (
    changed_after,
    events_told,
    journaled,
    messages_after,
    newest_events,
    states_between,
)

# Messages in one piece.
PIECE = 500
# Seconds between two audits at least, and of the time no more than one part in so many.
INTERVAL, PARTS = 300.0, 100

HAS_MESSAGE = "the journal has every message"
HAS_DELIVERY = "the journal has every delivery"
SAME_STATE = "the journal says what the spool says"
HAS_EVENTS = "the journal has every event"


def full_audit(data: Path, engine: Engine | None) -> Report:
    """Check every rule of the spool in `data` and, with `engine`, of the journal. It blocks."""
    connection = open_files(data)
    try:
        report = audit(connection, data)
        if engine is None:
            return report
        found = (*report.findings, *_compare(connection, engine))
        return Report(report.messages, report.deliveries, report.states, found)
    finally:
        connection.close()


def audit_all(folders: Sequence[Path], engine: Engine | None) -> Report:
    """Check the spools of several nodes with one database. It blocks."""
    reports = [full_audit(folder, engine) for folder in folders]
    states: Counter[str] = Counter()
    for report in reports:
        states.update(report.states)
    return Report(
        sum(report.messages for report in reports),
        sum(report.deliveries for report in reports),
        dict(states),
        tuple(finding for report in reports for finding in report.findings),
    )


def _compare(connection: sqlite3.Connection, engine: Engine) -> Iterator[AuditFinding]:
    told = journaled(connection)
    after = 0
    while told and (ids := messages_after(connection, after, PIECE)):
        after = ids[-1]
        yield from _compare_piece(connection, engine, ids, told)


def _compare_piece(
    connection: sqlite3.Connection, engine: Engine, ids: Sequence[int], told: int
) -> Iterator[AuditFinding]:
    first, end = ids[0], ids[-1]
    counts = events_told(connection, first, end, told)
    last = newest_events(connection, first, end)
    spooled = states_between(connection, first, end)
    with engine.connect() as journal:
        known = {row[0] for row in journal.execute(select(messages.c.id).where(messages.c.id.between(first, end)))}
        columns = (deliveries.c.message, deliveries.c.n, deliveries.c.state)
        query = select(*columns).where(deliveries.c.message.between(first, end))
        states = {(message, n): state for message, n, state in journal.execute(query)}
        query_events = (
            select(events.c.message, func.count())
            .where(events.c.message.between(first, end), events.c.seq <= told)
            .group_by(events.c.message)
        )
        kept = {message: count for message, count in journal.execute(query_events)}
    with engine.connect() as journal:
        pruned = pruned_to(journal)  # after the rest: what went meanwhile is marked
    for message in ids:
        if message <= pruned:
            continue  # it may have been forgotten
        if counts.get(message) and message not in known:
            yield AuditFinding(HAS_MESSAGE, to_text(message), "it has none of it")
        elif counts.get(message, 0) != kept.get(message, 0):
            text = f"{kept.get(message, 0)} of {counts.get(message, 0)} events are there"
            yield AuditFinding(HAS_EVENTS, to_text(message), text)
    for message, n, state in spooled:
        if message not in known or not counts.get(message) or last.get((message, n), 0) > told:
            continue
        there = states.get((message, n))
        if there != state and not changed_after(connection, message, n, told):
            about = f"{to_text(message)}.{n}"
            if there is None:
                yield AuditFinding(HAS_DELIVERY, about, f"it is {state} and missing there")
            else:
                yield AuditFinding(SAME_STATE, about, f"it is {state}, and {there} there")


async def keep_ledger(look: Callable[[], Report]) -> None:
    """Audit in a thread, for ever. The number of findings is a metric that must be 0, and each finding is logged."""
    while True:
        began = time.monotonic()
        try:
            report = await in_thread(look)
        except Exception as error:
            logs.failed("the audit", error=error)
        else:
            metrics.UNACCOUNTED.set(len(report.findings))
            for finding in report.findings[:10]:
                logs.unaccounted(finding.about, rule=finding.rule, what=finding.text)
        spent = time.monotonic() - began
        await asyncio.sleep(max(INTERVAL, spent * PARTS))
