"""Places for work that may go on at once; who waits for one can be told that they are gone."""

from __future__ import annotations

import asyncio
from collections import deque


class Places:
    """Like a semaphore; but when a reload replaces it, those who wait are told to look for the new one."""

    def __init__(self, number: int) -> None:
        self.number = self._free = number
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._closed = False

    def at_once(self) -> bool:
        """Take a place if there is one free; most often there is, and nothing need be awaited."""
        if self._free and not self._closed:
            self._free -= 1
            return True
        return False

    async def take(self) -> bool:
        """Wait for a place; False when there are none any more."""
        if self._closed:
            return False
        if self.at_once():
            return True
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Free the place for the next who waits."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(True)
                return
        self._free += 1

    def close(self) -> None:
        """Give no more places; who has one keeps it."""
        self._closed = True
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(False)
