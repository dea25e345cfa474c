"""Queues with and without workers, and the mail that waits for workers to come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from sendswitch import logs

Key = tuple[int, int]

# Seconds between two looks.
LOOK = 0.5
# Most deliveries of a queue that are remembered. The others come back at the time of their next attempt.
MOST = 100_000


class Presence:
    """The workers of queues. `online` returns whether a queue has one now; `offline_after` is in seconds."""

    def __init__(self, online: Callable[[str], bool], offline_after: float) -> None:
        self._online, self._offline_after = online, offline_after
        self._began = time.monotonic()  # workers have time to connect again after a start
        self._seen: dict[str, float] = {}
        self._offline: set[str] = set()
        self._put_off: dict[str, set[Key]] = {}

    def look(self, queues: Iterable[str]) -> tuple[set[str], Sequence[Key]]:
        """Look at some queues, and at those that mail was put off for.

        Return those that have had no worker for too long, and the deliveries that need not wait any more.
        """
        now, back = time.monotonic(), list[Key]()
        for queue in {*queues, *self._put_off}:
            if self._online(queue):
                self._seen[queue] = now
                keys = self._put_off.pop(queue, set())
                back += keys
                if queue in self._offline:
                    self._offline.discard(queue)
                    logs.workers_online(queue, waiting=len(keys))
            elif queue not in self._offline and now - self._seen.get(queue, self._began) >= self._offline_after:
                self._offline.add(queue)
                self._seen.pop(queue, None)
                logs.workers_offline(queue, after=self._offline_after)
        return self._offline, back

    def put_off(self, queue: str, key: Key) -> None:
        """Remember a delivery that waits for a worker of a queue."""
        keys = self._put_off.setdefault(queue, set())
        if len(keys) < MOST:
            keys.add(key)
