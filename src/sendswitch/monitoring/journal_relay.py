"""The relay of events from the spool's outbox to the journal in the database.

Rules:
1. At least once: an event is marked as taken over when the database has committed it, and writing it a second time
   changes nothing. A crash between both repeats one batch.
2. Mail never waits for the database. While it is away events gather in the spool, which keeps them; nothing is lost but
   time. The node's purge leaves what the journal does not have.
3. Mail goes first: while it flows, no more than a tenth of the time goes into the journal, which catches up afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from sendswitch import logs, metrics
from sendswitch.clock import Clock
from sendswitch.db.connect import in_thread
from sendswitch.journal.events import Event
from sendswitch.spool.spool import Spool

# Events in one transaction of the database.
BATCH = 1000
# Seconds in which events gather before they are written, when there are few.
GATHER = 0.5
# Seconds between tries while the database is away: first and longest.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
# Of the time while mail flows, one part in so many is for the journal.
PARTS = 10
# Seconds between prunings.
PRUNE = 3600.0

Write = Callable[[Sequence[Event]], None]
"""Writes a batch durably; blocks, and raises when the database does not take it."""

Prune = Callable[[float], int]
"""A function that deletes some records older than a time. It returns their number, 0 when none is left."""


async def keep_journal(spool: Spool, write: Write) -> None:
    """Take events over, for ever."""
    pause, failing = FIRST_RETRY, False
    while True:
        spool.written.clear()
        began = time.monotonic()
        try:
            events = await _take_over(spool, write)
        except Exception as error:
            metrics.JOURNAL_FAILURES.inc()
            logs.journal_failed(error=error, retry_in=pause)
            failing = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_RETRY)
            continue
        if failing:
            logs.journal_recovered(events=events)
            pause, failing = FIRST_RETRY, False
        if events < BATCH:
            await spool.written.wait()
            await asyncio.sleep(GATHER)
        else:
            await _let_mail_go_first(spool, time.monotonic() - began)


async def finish_journal(spool: Spool, write: Write) -> None:
    """Relay the remaining events at the end. Raises the errors of reading and writing; the events are then relayed
    after the next start.
    """
    while await _take_over(spool, write):
        pass


async def _take_over(spool: Spool, write: Write) -> int:
    """Take over one batch; return how many events (rule 1)."""
    batch = await spool.events(await spool.journaled(), BATCH)
    if batch:
        await in_thread(write, batch)
        await spool.mark_journaled(batch[-1].seq)
    return len(batch)


async def _let_mail_go_first(spool: Spool, spent: float) -> None:
    """Wait as long as the batch took, and much longer when mail came meanwhile (rule 3)."""
    groups = spool.groups
    await asyncio.sleep(spent)
    if spool.groups != groups:
        await asyncio.sleep(spent * (PARTS - 2))


async def prune_journal(prune: Prune, clock: Clock) -> None:
    """Delete records that are too old or too many, in small steps, for ever."""
    while True:
        try:
            while await in_thread(prune, clock()):  # noqa: ASYNC110 - steps, not polling
                await asyncio.sleep(0.1)
        except Exception as error:
            logs.failed("pruning the journal", error=error)
        await asyncio.sleep(PRUNE)
