"""The sender of webhook events: each event until it is delivered, with retries.

Rules:
1. At least once: an attempt is recorded when it is over, so that a crash repeats it, with the same `webhook-id`.
2. One endpoint never delays another: each has a number of places, and a failing endpoint waits for its own time.
3. 410 disables the endpoint; any other answer but 2xx is tried again by the schedule.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from sendswitch import logs, metrics
from sendswitch.clock import Clock
from sendswitch.processors.base import Notice
from sendswitch.processors.services.reachable import Reach
from sendswitch.webhooks.outbox import Event, Outbox
from sendswitch.webhooks.schedule import next_try

if TYPE_CHECKING:
    from sendswitch.webhooks.post import Post

# Requests at once, to all and to one endpoint.
AT_ONCE, EACH = 32, 4
# Seconds between looks when nothing is known to be due, and after an outbox that cannot be read.
NAP, PAUSE = 60.0, 5.0
# Seconds between prunings.
PRUNE = 3600.0
GONE = 410


class Sender:
    """The sender of one node. `keep` returns the seconds that an ended event is kept."""

    def __init__(self, outbox: Outbox, reach: Reach, keep: Callable[[], float], clock: Clock) -> None:
        self._outbox, self._reach, self._keep, self._clock = outbox, reach, keep, clock
        self._wake = asyncio.Event()
        self.sending: dict[str, asyncio.Task[None]] = {}
        self._busy: Counter[int] = Counter()
        self._post: Post | None = None

    async def put(self, notice: Notice) -> None:
        """Keep an event, and send it soon (`base.Outbox`)."""
        await asyncio.to_thread(self._outbox.put, notice, self._clock())
        self._wake.set()

    def look(self) -> None:
        """Look again: something may be due."""
        self._wake.set()

    async def run(self) -> None:
        """Send for ever. An attempt under way is made again after a cancel."""
        pruned = -PRUNE
        try:
            while True:
                self._wake.clear()
                try:
                    wait = await self._start()
                    if self._clock() - pruned >= PRUNE:
                        pruned = self._clock()
                        while await asyncio.to_thread(self._outbox.prune, pruned - self._keep()):  # noqa: ASYNC110
                            await asyncio.sleep(0.1)
                except Exception as error:
                    logs.failed("sending webhooks", error=error)
                    wait = PAUSE
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            for task in list(self.sending.values()):
                task.cancel()
            if self.sending:
                await asyncio.wait(list(self.sending.values()))
            if self._post is not None:
                await self._post.aclose()

    async def _start(self) -> float:
        """Start the due events that have a place. Return the seconds until there may be more."""
        while (free := AT_ONCE - len(self.sending)) > 0:
            under_way = list(self.sending)
            full = [endpoint for endpoint, number in self._busy.items() if number >= EACH]
            now = self._clock()
            found = await asyncio.to_thread(lambda: self._outbox.due(now, free, but=under_way, full=full))  # noqa: B023
            for event in found:
                if self._busy[event.endpoint] < EACH:
                    self._busy[event.endpoint] += 1
                    self.sending[event.id] = asyncio.create_task(self._send(event))
            if not found:
                break
        # What is due and has no place is begun when another ends, which wakes us.
        due = await asyncio.to_thread(self._outbox.next_due, self._clock())
        return NAP if due is None else max(0.001, min(NAP, due - self._clock()))

    async def _send(self, event: Event) -> None:
        try:
            began, at = asyncio.get_running_loop().time(), self._clock()
            status, said, after = await self._ask(event)
            seconds = asyncio.get_running_loop().time() - began
            good = 200 <= status < 300
            due = None if good else next_try(event.attempts + 1, self._clock(), random.random(), after)  # noqa: S311
            metrics.WEBHOOKS.labels("delivered" if good else "failed").inc()
            await asyncio.to_thread(
                lambda: self._outbox.tried(event, at=at, seconds=seconds, status=status, said=said, due=due)
            )
            if status == GONE:
                await asyncio.to_thread(self._outbox.disable, event.endpoint, self._clock(), "the receiver said 410")
            logs.webhook(
                event.message, id=event.id, status=status, said=said[:200], attempt=event.attempts + 1, due=due
            )
        except Exception as error:
            logs.failed("recording a webhook", error=error, msg_id=event.message)
            await asyncio.sleep(PAUSE)  # it is still due: not at once again
        finally:
            del self.sending[event.id]
            self._busy[event.endpoint] -= 1
            self._wake.set()

    async def _ask(self, event: Event) -> tuple[int, str, float]:
        if self._post is None:
            # What speaks HTTP takes some MiB, which a node that tells nobody need not have.
            from sendswitch.webhooks.post import Post

            self._post = Post(self._reach)
        return await self._post.ask(event)
