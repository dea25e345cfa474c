"""A limit on work at once. Work that waits for it learns when a reload replaced the limit."""

from __future__ import annotations

import asyncio
from collections import deque


class Limiter:
    """A semaphore that can be closed. After a reload replaced it, waiting callers return and look for the new one."""

    def __init__(self, number: int) -> None:
        self.number = self._free = number
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._closed = False

    def try_acquire(self) -> bool:
        """Take a permit if one is free, and return whether that was so. Most often it is, and nothing is awaited."""
        if self._free and not self._closed:
            self._free -= 1
            return True
        return False

    async def acquire(self) -> bool:
        """Wait for a permit. Return False when this limiter was closed."""
        if self._closed:
            return False
        if self.try_acquire():
            return True
        permit: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(permit)
        try:
            return await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled() and permit.result():
                self.release()
            raise

    def release(self) -> None:
        """Return a permit. The next caller that waits gets it."""
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(True)
                return
        self._free += 1

    def close(self) -> None:
        """Grant no more permits. Work that has one keeps it."""
        self._closed = True
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(False)
