"""The canary: a probe sent through the whole chain now and then, so that a break in it is known before people ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from sendswitch import logs, metrics
from sendswitch.monitoring import probe
from sendswitch.smtp.endpoint import Endpoint
from sendswitch.spool.history import last_event
from sendswitch.spool.spool import Spool

# Seconds between two looks for a probe that is on its way, and before the first is sent.
LOOK, FIRST = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class Flight:
    """The settings of the canary: the server it starts from and its recipient; `interval` and `limit` in seconds.
    Without `to` none is sent.
    """

    endpoint: Endpoint
    host: str
    sender: str
    to: str
    interval: float
    limit: float


class Canary:
    """`trouble` says why the last one did not come through, '' when it did."""

    def __init__(self, spool: Spool, flight: Callable[[], Flight]) -> None:
        self._spool, self._flight = spool, flight
        self.trouble = ""

    async def run(self) -> None:
        """Send one each interval, for ever."""
        await asyncio.sleep(FIRST)
        while True:
            flight = self._flight()
            if flight.to:
                try:
                    self._tell(*await self._fly(flight))
                except Exception as error:
                    self._tell(0.0, f"{type(error).__name__}: {error}")
            await asyncio.sleep(flight.interval)

    async def _fly(self, flight: Flight) -> tuple[float, str]:
        """Return how many seconds it took, and why it did not get through."""
        began = time.monotonic()
        after = await self._spool.call(last_event)
        sent, reply = await probe.send(
            flight.endpoint, host=flight.host, sender=flight.sender, to=flight.to, limit=flight.limit
        )
        if not reply.positive:
            return 0.0, f"{flight.endpoint} did not take it: {reply}"
        state = ""
        while time.monotonic() - began < flight.limit:
            stages, state = await self._spool.call(lambda c: probe.trail(c, sent, after))
            if probe.arrived(state):
                return max(stage.seconds for stage in stages), ""
            await asyncio.sleep(LOOK)
        return 0.0, f"it is {state or 'not here'} after {flight.limit:g} s; run `sendswitch postfix check`"

    def _tell(self, seconds: float, trouble: str) -> None:
        if trouble:
            metrics.CANARY_FAILURES.inc()
            logs.canary_lost(why=trouble)
        else:
            metrics.CANARY_SECONDS.set(seconds)
        self.trouble = trouble
