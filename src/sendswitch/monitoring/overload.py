"""Overload: while memory or the spool is short, new mail gets a 421.

Mail in the queue goes on. A sender that gets a 421 keeps its mail and tries again, which is better than a queue that
does not move.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from sendswitch import logs, metrics
from sendswitch.errors import SendSwitchError
from sendswitch.spool.spool import Spool

# Seconds between looks.
INTERVAL = 1.0
# Seconds one group commit may take; a disk that is merely slow takes milliseconds.
SLOW = 10.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Overload:
    """The watcher of memory and spool. `why` names the shortage, '' when there is none."""

    def __init__(self, spool: Spool, most_memory: Callable[[], int]) -> None:
        self._spool, self._most_memory = spool, most_memory
        self.why = ""

    async def watch(self) -> None:
        """Look every second, for ever."""
        began = 0.0
        while True:
            was, self.why = self.why, self._look()
            if self.why and not was:
                began = time.monotonic()
                logs.overloaded(why=self.why)
            elif was and not self.why:
                logs.overload_over(dur_ms=(time.monotonic() - began) * 1000)
            metrics.OVERLOAD.set(bool(self.why))
            if self._spool.failure is not None:
                await self._try()
            await asyncio.sleep(INTERVAL)

    def _look(self) -> str:
        most, used = self._most_memory(), memory()
        if most and used > most:
            return f"{used} bytes of memory in use, more than node.max_memory = {most}"
        if (waits := self._spool.writing_for()) > SLOW:
            return f"the spool has been writing for {waits:.0f} s; look at its disk"
        return f"the spool cannot be written: {self._spool.failure}" if self._spool.failure is not None else ""

    async def _try(self) -> None:
        """Write to the spool: no mail is written now, so that nothing else would notice that it can be
        written again.
        """
        try:
            async with asyncio.timeout(SLOW):
                await self._spool.probe()
        except (SendSwitchError, TimeoutError):
            return


def memory() -> int:
    """Return how many bytes this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
