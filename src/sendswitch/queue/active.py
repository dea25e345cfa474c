"""The active queue: the deliveries that are in memory, and how they get there.

Theory of operation. Every delivery that is not final has a `due` in the spool. The queue holds a window of them in
memory and gives them, a message at a time, to the runner that takes them. What does not fit stays on disk and is
loaded when there is room. A message that was just accepted enters the window directly, so that light load never reads
the disk.

Rule: a delivery is in the window at most once. Its key enters the window before it can be seen on disk, and leaves
after its new state is durable. The deliveries of a forward get their numbers on disk: nothing loads them while they
are being written. What ends while a load reads the disk is remembered until that load is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sendswitch import logs
from sendswitch.clock import Clock
from sendswitch.mail.content import InFile
from sendswitch.queue.settings import Current
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.spool import Spool

# Deliveries in memory. With a worker that hangs for its deadline of 60 s this is what may wait for it before
# other mail must wait for room: 166 a second.
WINDOW = 10_000
# Bytes of small messages kept in memory while they wait; beyond it they are read again from the spool.
CONTENT = 64 * 1024 * 1024
# Longest sleep of the loader; a clock that jumps is noticed after this.
NAP = 60.0
# Seconds by which the clock may run away from the time that passes before it was set.
JUMP = 30.0
# Upper bound of a retry delay (seconds), whatever the configuration was.
FAR = 2 * 86400.0
# Seconds between loads that fail, so that an unreadable spool is not asked thousands of times.
PAUSE = 1.0


@dataclass(slots=True, eq=False)
class Entry:
    """Deliveries of one message that are to be run, and the bytes of its content that the queue counts."""

    message: Message
    deliveries: Sequence[Delivery]
    size: int


class ActiveQueue:
    """The active queue of one node."""

    def __init__(self, spool: Spool, current: Current, *, clock: Clock) -> None:
        self._spool, self._current, self._clock = spool, current, clock
        self._loop = asyncio.get_running_loop()
        self._active: set[tuple[int, int]] = set()
        self._ended: set[tuple[int, int]] | None = None
        self._splitting: set[tuple[int, int | None]] = set()
        self._ready: list[Entry] = []
        self._taker: asyncio.Future[None] | None = None
        self._wake = asyncio.Event()
        self._more = True
        self._held = 0
        self._stopping = False
        self._offset: float | None = None

    @property
    def active(self) -> int:
        """Return how many deliveries are in the window."""
        return len(self._active)

    # Entering and leaving the window

    def enqueue(self, deliveries: Sequence[Delivery], write: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        """Write deliveries of one message and begin with them. Return the future of the write.

        `write` makes them durable; it returns False when it wrote none of them. When the window is full, they are
        loaded from the spool later. Whether or not the caller still waits: what was written goes its way.
        """
        reserved = self._reserve(deliveries)
        try:
            written = asyncio.ensure_future(write())
        except BaseException:
            if reserved:
                self.release(deliveries)
            raise

        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled() or future.exception() is not None or future.result() is False:
                if reserved:
                    self.release(deliveries)
            elif reserved:
                self._start(deliveries)
            else:
                self.wake()

        written.add_done_callback(done)
        return written

    async def split(self, parent: Delivery, write: Callable[[], Awaitable[Sequence[Delivery]]]) -> None:
        """Write the deliveries that take the place of one in the window, and begin with them.

        `write` makes them durable and returns them: they get their numbers there. Until then nothing loads them.
        """
        self._splitting.add(parent.key)
        try:
            new = await write()
        finally:
            self._splitting.discard(parent.key)
        if new and self._reserve(new):
            self._start(new)
        else:
            self.wake()

    def claim(self, deliveries: Sequence[Delivery]) -> None:
        """Reserve deliveries for the caller until `release`. The runner does not get them."""
        self._active.update(delivery.key for delivery in deliveries)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Let deliveries leave the window."""
        keys = [delivery.key for delivery in deliveries]
        self._active.difference_update(keys)
        if self._ended is not None:
            self._ended.update(keys)
        if (self._more and len(self._active) < WINDOW // 2) or any(d.due is not None for d in deliveries):
            self._wake.set()  # there is room, or a new time to wait for

    def wake(self) -> None:
        """Read the spool now: something may be due."""
        self._wake.set()

    def _reserve(self, deliveries: Sequence[Delivery]) -> bool:
        if self._stopping or len(self._active) + len(deliveries) > WINDOW:
            self._more = True
            return False
        self._active.update(delivery.key for delivery in deliveries)
        return True

    def _start(self, deliveries: Sequence[Delivery]) -> None:
        """Pass deliveries of one message, which are in the window, to the runner. After `stop` they stay on disk."""
        if self._stopping:
            self.release(deliveries)
            return
        message, size = deliveries[0].message, 0
        if message.content is not None and not isinstance(message.content, InFile):
            if self._held + message.size > CONTENT:
                message.content = None
            else:
                size = message.size
        self._held += size
        self._ready.append(Entry(message, deliveries, size))
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    # The runner's side

    async def take(self) -> list[Entry]:
        """Wait for entries that are ready and return them. One caller at a time."""
        if not self._ready:
            self._taker = self._loop.create_future()
            await self._taker
        entries, self._ready = self._ready, []
        return entries

    def done(self, entry: Entry) -> None:
        """Let an entry leave the window: its deliveries have a new state or a new time, and that is durable."""
        self._held -= entry.size
        self.release(entry.deliveries)

    # Loading from the spool

    async def run(self) -> None:
        """Load due deliveries until `stop`."""
        while not self._stopping:
            self._wake.clear()
            wait, fed = 0.0, False
            try:
                wait, fed = await self._feed(), True
            except Exception as error:
                logs.failed("loading the queue", error=error)
            if not fed:
                await asyncio.sleep(PAUSE)
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Take nothing new and load nothing more; the rest stays in the spool."""
        self._stopping = True
        self._wake.set()
        waiting, self._ready = self._ready, []
        for entry in waiting:
            self.done(entry)

    async def _feed(self) -> float:
        """Load due deliveries. Return the seconds until more may be due."""
        # One moment for both questions: what falls due between them would be in neither answer.
        now = self._clock()
        await self._check_clock(now)
        await self._load(now)
        if self._more:
            return 0.0 if len(self._active) < WINDOW // 2 else NAP
        due = await self._spool.next_due(now)
        return NAP if due is None else max(0.001, min(NAP, due - self._clock()))

    async def _check_clock(self, now: float) -> None:
        """Find out whether the clock was set. Set back, it would make mail wait that was deferred before.

        The same may have happened while we were not running.
        """
        offset = now - time.monotonic()
        jumped = 0.0 if self._offset is None else offset - self._offset
        hurried, longest = 0, self._current.settings.backoff.longest
        if self._offset is None:
            # The configuration may have been another when that mail was deferred, but hardly by so much.
            hurried = await self._spool.hurry(now, max(longest, FAR))
        elif jumped < -JUMP:
            hurried = await self._spool.hurry(now, longest)
        if hurried or abs(jumped) > JUMP:
            logs.clock_set(seconds=jumped if self._offset is not None else None, hurried=hurried)
        self._offset = offset

    async def _load(self, now: float) -> None:
        room = WINDOW - len(self._active)
        self._ended = ended = set[tuple[int, int]]()
        try:
            limit = room + len(self._active)
            found = await self._spool.due(now, limit)
        finally:
            self._ended = None
        known, splitting = self._active | ended, self._splitting
        new = [d for d in found if d.key not in known and (d.message.id, d.origin) not in splitting]
        self._more = len(found) == limit
        by_message: dict[int, list[Delivery]] = {}
        for delivery in new[:room]:
            self._active.add(delivery.key)
            by_message.setdefault(delivery.message.id, []).append(delivery)
        for deliveries in by_message.values():
            self._start(deliveries)
