"""Queues with and without workers, and the mail that waits for workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from sendswitch import logs
from sendswitch.routing import is_own

Key = tuple[int, int]

# Seconds between two looks.
LOOK = 0.5
# Most deliveries of a queue that are remembered. The others come back at the time of their next attempt.
MOST = 100_000
# Most tasks that wait for one user's own workers at once, so that a slow one leaves room for the mail of others.
OWN_WAITING = 500
# The same for all users, so that half of the active queue is left for other mail.
ALL_WAITING = 5_000


class Presence:
    """The workers of queues, and the tasks that wait for those of users' own. `absent` returns for how many seconds a
    queue has had none; `offline_after` is in seconds.
    """

    def __init__(self, absent: Callable[[str], float], offline_after: float) -> None:
        self._absent, self._offline_after = absent, offline_after
        self._began = time.monotonic()  # workers have time to connect again after a start
        self._offline: set[str] = set()
        self._put_off: dict[str, set[Key]] = {}
        self._waiting: Counter[str] = Counter()
        self._all_waiting = 0

    def enter(self, queue: str) -> bool:
        """Count a task that waits for a user's own workers until `leave`. Return False when too many wait already."""
        if self._waiting[queue] >= OWN_WAITING or self._all_waiting >= ALL_WAITING:
            return False
        self._waiting[queue] += 1
        self._all_waiting += 1
        return True

    def leave(self, queue: str) -> None:
        """Count a task no more."""
        self._all_waiting -= 1
        self._waiting[queue] -= 1
        if not self._waiting[queue]:
            del self._waiting[queue]

    def look(self, queues: Iterable[str]) -> tuple[set[str], Sequence[Key]]:
        """Look at some queues, and at those that mail was put off for.

        Return those that have had no worker for too long, and deliveries that need not wait any more.
        """
        back: list[Key] = []
        for queue in {*queues, *self._put_off}:
            absent = min(self._absent(queue), time.monotonic() - self._began)
            if not absent:
                back += self._come(queue)
            elif queue not in self._offline and absent >= self._offline_after:
                self._offline.add(queue)
                logs.workers_offline(queue, after=self._offline_after)
            elif absent < self._offline_after:
                self._offline.discard(queue)  # one came and went
        return self._offline, back

    def _come(self, queue: str) -> Sequence[Key]:
        """Return the deliveries that were put off for a queue which has a worker, as many as there is room for."""
        keys = self._put_off.get(queue, set())
        if queue in self._offline:
            self._offline.discard(queue)
            logs.workers_online(queue, waiting=len(keys))
        room = OWN_WAITING - self._waiting[queue] if is_own(queue) else MOST
        back = [keys.pop() for _ in range(min(room, len(keys)))]
        if not keys:
            self._put_off.pop(queue, None)
        return back

    def put_off(self, queue: str, key: Key) -> None:
        """Remember a delivery that waits for a worker of a queue."""
        keys = self._put_off.setdefault(queue, set())
        if len(keys) < MOST:
            keys.add(key)
