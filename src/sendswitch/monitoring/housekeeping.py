"""Periodic work of the node: delete final mail that is old or too much, and update gauges on request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sendswitch import logs, metrics
from sendswitch.clock import Clock
from sendswitch.spool.spool import Spool
from sendswitch.spool.states import State

# Seconds between clean-ups: history is kept for days, so an hour more is nothing.
INTERVAL = 3600.0
# Seconds between looks at how much is recorded: at full speed a node takes some hundred megabytes in this time.
TRIM = 30.0


async def keep_house(spool: Spool, *, keep: Callable[[], float], journal: bool, clock: Clock) -> None:
    """Purge in small steps, for ever; mail goes first between them."""
    while True:
        try:
            while await spool.purge(clock() - keep(), journal=journal):  # noqa: ASYNC110 - steps, not polling
                await asyncio.sleep(0.1)
        except Exception as error:
            logs.failed("purging the spool", error=error)
        await asyncio.sleep(INTERVAL)


async def trim_recorded(spool: Spool, *, most: Callable[[], int]) -> None:
    """Keep recorded mail below `most()` bytes, in small steps, for ever."""
    while True:
        try:
            while await spool.trim(most()):  # noqa: ASYNC110 - steps, not polling
                await asyncio.sleep(0.02)
        except Exception as error:
            logs.failed("trimming recorded mail", error=error)
        await asyncio.sleep(TRIM)


async def refresh_gauges(spool: Spool, clock: Clock) -> None:
    """Count the spool for /metrics."""
    states, oldest, events = await spool.figures()
    for state in (State.ACCEPTED, State.DECIDED, State.HELD):
        metrics.QUEUE.labels(state.value).set(states.get(state.value, 0))
    metrics.QUARANTINED.set(states.get(State.QUARANTINED.value, 0))
    metrics.QUEUE_OLDEST.set(max(0.0, clock() - oldest) if oldest else 0)
    metrics.OUTBOX.set(events)
    metrics.RECORDED.set(await spool.recorded())
