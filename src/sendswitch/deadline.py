"""Deadlines that count only the time in which work was really done.

A process that stands still (SIGSTOP, a paused machine, a busy event loop) must not use up the time of the work that
waits in it. Otherwise a sender who slows a node down could have mail decided by its time limit. So time is counted in
ticks, and a tick counts for no more than `MOST`, however long it took. Work that waits for a place marks this with
`waiting`, and that time does not count either.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

# Seconds between two looks at the time, and the most that one counts for.
TICK, MOST = 0.05, 0.25


class Deadline:
    """A limit (seconds of work) for the code inside it. TimeoutError is raised there when it has passed."""

    __slots__ = ("_ticker", "_timeout", "passed", "until")

    def __init__(self, limit: float) -> None:
        self._ticker = _ticker()
        self.until = self._ticker.now + limit
        self._timeout = asyncio.timeout(None)
        self.passed = False

    async def __aenter__(self) -> Deadline:
        await self._timeout.__aenter__()
        self._ticker.add(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ticker.remove(self)
        await self._timeout.__aexit__(kind, error, trace)  # type: ignore[arg-type]

    def expire(self) -> None:
        """End the work inside now."""
        self.passed = True
        self._timeout.reschedule(asyncio.get_running_loop().time())


class _Ticker:
    """The counter of an event loop's time while it has deadlines."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = 0.0
        self._at = 0.0
        self._heap: list[tuple[float, int, Deadline]] = []
        self._alive: set[Deadline] = set()
        self._count = itertools.count()
        self._handle: asyncio.TimerHandle | None = None

    def add(self, deadline: Deadline) -> None:
        self._alive.add(deadline)
        heapq.heappush(self._heap, (deadline.until, next(self._count), deadline))
        if self._handle is None:
            self._at = self._loop.time()
            self._handle = self._loop.call_later(TICK, self._tick)

    def again(self, deadline: Deadline) -> None:
        """Look at a deadline that was put off."""
        if deadline in self._alive:
            heapq.heappush(self._heap, (deadline.until, next(self._count), deadline))

    def remove(self, deadline: Deadline) -> None:
        self._alive.discard(deadline)
        if not self._alive:
            self._heap.clear()
            if self._handle is not None:
                self._handle.cancel()
                self._handle = None

    def _tick(self) -> None:
        at = self._loop.time()
        self.now += min(at - self._at, MOST)
        self._at = at
        while self._heap and self._heap[0][0] <= self.now:
            _, _, deadline = heapq.heappop(self._heap)
            if deadline not in self._alive:
                continue
            if deadline.until <= self.now:
                deadline.expire()
            elif deadline.until < float("inf"):  # it waited meanwhile
                self.again(deadline)
        self._handle = self._loop.call_later(TICK, self._tick)


_tickers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Ticker] = WeakKeyDictionary()
_inside: ContextVar[tuple[Deadline, ...]] = ContextVar("inside", default=())


def _ticker() -> _Ticker:
    loop = asyncio.get_running_loop()
    if (ticker := _tickers.get(loop)) is None:
        ticker = _tickers[loop] = _Ticker(loop)
    return ticker


@asynccontextmanager
async def within(limit: float) -> AsyncIterator[Deadline]:
    """Limit the work inside to `limit` seconds. Raises TimeoutError when they are over."""
    deadline = Deadline(limit)
    token = _inside.set((*_inside.get(), deadline))
    try:
        async with deadline:
            yield deadline
    finally:
        _inside.reset(token)


@asynccontextmanager
async def waiting() -> AsyncIterator[None]:
    """Do not count the time inside: the work waits for a place and has none."""
    deadlines = _inside.get()
    ticker = _ticker()
    began = ticker.now
    before = [deadline.until for deadline in deadlines]
    for deadline in deadlines:
        deadline.until = float("inf")
    try:
        yield
    finally:
        waited = ticker.now - began
        for deadline, until in zip(deadlines, before, strict=True):
            deadline.until = until + waited
            ticker.again(deadline)
