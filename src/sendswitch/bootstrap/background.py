"""The background work of a node. A part that fails is reported and started again.

A part that ended for good would be missed only when it is needed. The watcher of the node's load, for one, may end
while it refuses mail, and mail is then refused until a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

from sendswitch import logs, metrics

# Seconds before a part is begun again: first, and longest where it fails again and again.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
# Seconds without a failure after which a part is called well again.
WELL = 600.0


class Background:
    """The runner of background parts, until they return or are cancelled."""

    def __init__(self) -> None:
        self._failed: dict[str, tuple[float, str]] = {}

    @property
    def trouble(self) -> str:
        """Return the failures of the last ten minutes, '' when there are none."""
        now = time.monotonic()
        recent = [f"{part}: {why}" for part, (when, why) in self._failed.items() if now - when < WELL]
        return "; ".join(recent)

    async def keep(self, part: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run a part, and again when it raises. Never raises but when cancelled."""
        pause = FIRST_RETRY
        while True:
            began = time.monotonic()
            try:
                return await work()
            except Exception as error:
                if time.monotonic() - began > WELL:
                    pause = FIRST_RETRY
                self._failed[part] = time.monotonic(), f"{type(error).__name__}: {error}"
                metrics.BACKGROUND_FAILURES.labels(part).inc()
                logs.background_failed(part, error=error, retry_in=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_RETRY)
