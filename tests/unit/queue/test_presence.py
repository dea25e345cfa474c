"""Queues with and without workers: when one is offline, and which mail comes back."""

from __future__ import annotations

import pytest

from sendswitch.queue import presence
from sendswitch.queue.presence import Presence
from sendswitch.routing import POOL, own_queue

ANN, BOB = own_queue("ann@example.test"), own_queue("bob@example.test")


class Queues(dict[str, float]):
    """For how long each queue has had no worker."""

    def absent(self, queue: str) -> float:
        return self.get(queue, 0.0)


def test_after_a_start_workers_have_time_to_connect() -> None:
    """However long a queue may have been without one before."""
    assert Presence(Queues({ANN: 1e9}).absent, 60.0).look([ANN]) == (set(), [])
    assert Presence(Queues({ANN: 1e9}).absent, 0.0).look([ANN]) == ({ANN}, [])


def test_one_that_came_and_went_begins_the_time_anew() -> None:
    queues = Queues({ANN: 1e9})
    seen = Presence(queues.absent, 1e-9)
    assert seen.look([ANN])[0] == {ANN}
    queues[ANN] = 1e-12
    assert seen.look([ANN])[0] == set()


def test_mail_that_was_put_off_comes_back_with_a_worker() -> None:
    queues = Queues({ANN: 1e9, POOL: 1e9})
    seen = Presence(queues.absent, 0.0)
    seen.put_off(ANN, (1, 0))
    seen.put_off(POOL, (2, 0))
    assert seen.look([]) == ({ANN, POOL}, [])
    queues[POOL] = 0.0
    assert seen.look([]) == ({ANN}, [(2, 0)])
    queues[ANN] = 0.0
    assert seen.look([]) == (set(), [(1, 0)])
    assert seen.look([]) == (set(), [])


def test_as_much_comes_back_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "OWN_WAITING", 3)
    seen = Presence(Queues().absent, 60.0)
    for number in range(10):
        seen.put_off(ANN, (number, 0))
        seen.put_off(POOL, (number + 100, 0))
    assert seen.enter(ANN)
    back = seen.look([])[1]
    assert len([key for key in back if key[0] < 100]) == 2
    assert len([key for key in back if key[0] >= 100]) == 10  # the site's workers take what they can
    seen.leave(ANN)
    assert len(seen.look([])[1]) == 3


def test_tasks_for_users_own_workers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "OWN_WAITING", 3)
    monkeypatch.setattr(presence, "ALL_WAITING", 4)
    seen = Presence(Queues().absent, 60.0)
    assert [seen.enter(ANN) for _ in range(4)] == [True, True, True, False]
    assert [seen.enter(BOB) for _ in range(2)] == [True, False]
    seen.leave(ANN)
    assert [seen.enter(BOB), seen.enter(ANN)] == [True, False]


def test_the_deliveries_that_are_remembered_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "MOST", 2)
    seen = Presence(Queues().absent, 60.0)
    for number in range(5):
        seen.put_off(POOL, (number, 0))
    assert len(seen.look([])[1]) == 2
