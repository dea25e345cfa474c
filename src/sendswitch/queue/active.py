"""The active queue: the window of deliveries that are in memory, and how they get there.

Theory of operation. Every delivery that is not final has a `due` in the spool. The queue holds a window of them in
memory (`active`), one task a message; what does not fit stays on disk and is loaded when there is room. A message
that was just accepted enters the window directly, so that light load never reads the disk.

Rule: a delivery is in the window at most once. Its key enters `active` before it can be seen on disk, and leaves
after its new state is durable. What ends while a load reads the disk is remembered until that load is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from sendswitch import logs
from sendswitch.clock import Clock
from sendswitch.mail.content import InFile
from sendswitch.mail.verdict import Answer
from sendswitch.queue.runner import Journeys
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.spool import Spool

# Deliveries in memory. With a worker that hangs for its deadline of 60 s this is what may wait for it before
# other mail must wait for a place: 166 a second.
WINDOW = 10_000
# Bytes of small messages kept in memory while they wait; beyond it they are read again from the spool.
CONTENT = 64 * 1024 * 1024
# Longest sleep of the feeder; a clock that jumps is noticed after this.
NAP = 60.0
# Seconds by which the clock may run away from the time that passes before it was set.
JUMP = 30.0
# Seconds that no mail is put off for, whatever the configuration was.
FAR = 2 * 86400.0
# Seconds between loads that fail, so that an unreadable spool is not asked thousands of times.
PAUSE = 1.0


class Queue:
    """The active queue of one node."""

    def __init__(self, spool: Spool, journeys: Journeys, *, clock: Clock) -> None:
        self._spool, self._journeys, self._clock = spool, journeys, clock
        self._loop = asyncio.get_running_loop()
        self._active: set[tuple[int, int]] = set()
        self._ended: set[tuple[int, int]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._more = True
        self._held = 0
        self._stopping = False
        self._offset: float | None = None
        journeys.enter(self)

    @property
    def active(self) -> int:
        """Return how many deliveries are in the window."""
        return len(self._active)

    # Entering and leaving the window

    def expect(self, deliveries: Sequence[Delivery]) -> bool:
        """Reserve places for deliveries that are about to be written; False when there is no room."""
        if self._stopping or len(self._active) + len(deliveries) > WINDOW:
            self._more = True
            return False
        self._active.update(delivery.key for delivery in deliveries)
        return True

    def claim(self, deliveries: Sequence[Delivery]) -> None:
        """Keep deliveries that are about to be written away from the queue, until `forget`."""
        self._active.update(delivery.key for delivery in deliveries)

    def forget(self, deliveries: Sequence[Delivery]) -> None:
        """Give reserved places back: they were not written."""
        self._leave(deliveries)

    def start(self, deliveries: Sequence[Delivery], asked: Mapping[int, asyncio.Task[Answer]] | None = None) -> None:
        """Begin with deliveries of one message whose places were reserved. `asked` are answers already on order."""
        message = deliveries[0].message
        if message.content is not None and not isinstance(message.content, InFile):
            if self._held + message.size > CONTENT:
                message.content = None
            else:
                self._held += message.size
        task = self._loop.create_task(self._guard(message, deliveries, asked or {}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _leave(self, deliveries: Sequence[Delivery]) -> None:
        keys = [delivery.key for delivery in deliveries]
        self._active.difference_update(keys)
        if self._ended is not None:
            self._ended.update(keys)
        if (self._more and len(self._active) < WINDOW // 2) or any(d.due is not None for d in deliveries):
            self._wake.set()  # there is room, or a new time to wait for

    async def run(self) -> None:
        """Load what is due, until `stop`."""
        while not self._stopping:
            self._wake.clear()
            try:
                wait = await self._feed()
            except Exception as error:
                logs.failed("loading the queue", error=error)
                await asyncio.sleep(PAUSE)
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _feed(self) -> float:
        """Load what is due; gives the seconds until there may be more."""
        # One moment for both questions: what falls due between them would be in neither answer.
        now = self._clock()
        await self._mind(now)
        await self._load(now)
        if self._more:
            return 0.0 if len(self._active) < WINDOW // 2 else NAP
        due = await self._spool.next_due(now)
        return NAP if due is None else max(0.001, min(NAP, due - self._clock()))

    async def _mind(self, now: float) -> None:
        """See whether the clock was set. Set back, it would make mail wait that was put off before.

        The same may have happened while we were not running.
        """
        offset = now - time.monotonic()
        jumped = 0.0 if self._offset is None else offset - self._offset
        hurried, longest = 0, self._journeys.outcomes.backoff.longest
        if self._offset is None:
            # The configuration may have been another when that mail was put off, but hardly by so much.
            hurried = await self._spool.hurry(now, max(longest, FAR))
        elif jumped < -JUMP:
            hurried = await self._spool.hurry(now, longest)
        if hurried or abs(jumped) > JUMP:
            logs.clock_set(seconds=jumped if self._offset is not None else None, hurried=hurried)
        self._offset = offset

    def look(self) -> None:
        """Look at the spool now: something may be due."""
        self._wake.set()

    async def stop(self, grace: float) -> None:
        """Take nothing new, let what is under way end for at most `grace` seconds; the rest stays in the spool."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _load(self, now: float) -> None:
        room = WINDOW - len(self._active)
        self._ended = set()
        try:
            limit = room + len(self._active)
            found = await self._spool.due(now, limit)
            new = [d for d in found if d.key not in self._active and d.key not in self._ended]
        finally:
            self._ended = None
        self._more = len(found) == limit
        by_message: dict[int, list[Delivery]] = {}
        for delivery in new[:room]:
            self._active.add(delivery.key)
            by_message.setdefault(delivery.message.id, []).append(delivery)
        for deliveries in by_message.values():
            self.start(deliveries)

    async def _guard(
        self, message: Message, deliveries: Sequence[Delivery], asked: Mapping[int, asyncio.Task[Answer]]
    ) -> None:
        held = message.size if message.content is not None and not isinstance(message.content, InFile) else 0
        try:
            await self._journeys.run(message, deliveries, asked)
        finally:
            for task in asked.values():
                task.cancel()
            self._held -= held
            self._leave(deliveries)
