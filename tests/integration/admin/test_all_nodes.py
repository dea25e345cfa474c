"""Several nodes on one machine are like one to those who ask: here none of them runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sendswitch.admin import deliveries, hold, messages, node, quarantine, queue, rules, webhooks
from sendswitch.admin.base import Actor, Installation
from sendswitch.admin.hold import HeldAnswer
from sendswitch.admin.queue import By
from sendswitch.client import AllNodes, Client, InProcess, connect
from sendswitch.config.model import Config
from sendswitch.config.processes import folder_of
from sendswitch.errors import InvalidSearch, NotFound, Refused, Temporary
from sendswitch.mail.content import read_all
from sendswitch.mail.ids import Sequence, to_text
from sendswitch.processors.base import Notice
from sendswitch.spool.rules import Kind
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock
from sendswitch.webhooks.outbox import PLACE, Outbox
from tests.integration.admin.spools import keep

Run = Callable[[Any], Any]
ANN, BOB = "ann@example.test", "bob@example.org"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def put(run: Run, data: Path, clock: FakeClock) -> Callable[..., list[str]]:
    """Put one message into the spool of node 1, one into that of node 2, and so on in turns. Return their ids."""

    def fill(state: State, *to: str) -> list[str]:
        ids: list[str] = []
        for n, address in enumerate(to):
            clock.advance(1)
            ids += run(keep(folder_of(data, n % 2 + 1), clock, state, address))
        return ids

    return fill


@pytest.fixture
def client(data: Path) -> Callable[[], Client]:
    config = Config.model_validate({"node": {"data": data, "processes": 2}})
    return lambda: connect(Installation(lambda: config), Actor("me"))


Ask = Callable[[], Client]


def test_lists_have_one_order_and_one_cursor(put: Callable[..., list[str]], client: Ask) -> None:
    ids = put(State.QUARANTINED, *[ANN, BOB] * 4)
    call = client().call
    assert [one.id for one in call(quarantine.list_quarantine).items] == ids
    found, cursor = [], ""
    while True:
        page = call(quarantine.list_quarantine, limit=3, after=cursor)
        found += [one.id for one in page.items]
        cursor = page.next
        if not cursor:
            break
        assert len(page.items) == 3
    assert found == ids
    assert [one.id for one in call(quarantine.list_quarantine, search="to:ann").items] == ids[::2]


def test_each_message_is_found_where_it_is(put: Callable[..., list[str]], client: Ask) -> None:
    ids = put(State.HELD, ANN, BOB)
    call = client().call
    for id_ in ids:
        assert call(deliveries.show, id=id_).delivery.id == id_
        assert call(messages.history, id=id_).deliveries[0].id == id_
        assert read_all(call(messages.content, id=id_)).startswith(b"Subject: x")
    with pytest.raises(NotFound):
        call(deliveries.show, id="0000000000000.0")
    with pytest.raises(NotFound):
        call(deliveries.show, id="rubbish")


def test_what_is_named_is_changed_where_it_is(put: Callable[..., list[str]], client: Ask) -> None:
    first, second = put(State.QUARANTINED, ANN, BOB)
    call = client().call
    done = call(quarantine.release, ids=(second, "0000000000000.0", first))
    assert [(one.id, one.kind) for one in done.results] == [
        (second, ""),
        ("0000000000000.0", "not_found"),
        (first, ""),
    ]
    again = call(quarantine.release, ids=(first,))
    assert [one.kind for one in again.results] == ["refused"]


def test_what_is_found_is_changed_everywhere(put: Callable[..., list[str]], client: Ask) -> None:
    ids = put(State.HELD, ANN, BOB, ANN)
    call = client().call
    done = call(hold.answer, answer=HeldAnswer.DENY, search="to:example")
    assert sorted(one.id for one in done.results) == ids
    with pytest.raises(NotFound):
        call(hold.answer, answer=HeldAnswer.DENY, search="to:example")
    with pytest.raises(InvalidSearch):
        call(queue.flush, search="nonsense:1")


def test_groups_and_numbers_are_added(put: Callable[..., list[str]], client: Ask, clock: FakeClock) -> None:
    clock.advance(time.time() + 3600 - clock())  # it waits for its next attempt
    put(State.ACCEPTED, ANN, BOB, ANN, ANN, BOB)
    call = client().call
    groups = [(one.name, one.deliveries) for one in call(queue.top)]
    assert groups == [("example.test", 3), ("example.org", 2)]
    assert [one.name for one in call(queue.top, by=By.RECIPIENT, limit=1)] == [ANN]
    assert call(queue.flush) == 5


def test_a_rule_is_one_rule(put: Callable[..., list[str]], client: Ask, data: Path) -> None:
    put(State.ACCEPTED, ANN, BOB, ANN)
    call = client().call
    added = call(rules.add, kind=Kind.SUSPEND, search="to:example.test", seconds=60)
    assert (added.rule.id, added.deliveries) == (1, 2)
    assert call(rules.add, kind=Kind.SUSPEND, seconds=60).rule.id == 2
    assert [one.id for one in call(rules.list_rules)] == [1, 2]
    assert [one.id for one in call(rules.cancel, id=1).rules] == [1]
    with pytest.raises(NotFound):
        call(rules.cancel, id=1)
    assert [one.id for one in call(rules.resume).rules] == [2]
    assert call(rules.newest) == 2
    one_alone = InProcess(Installation(lambda: Config.model_validate({"node": {"data": data}})), Actor("me"))
    with pytest.raises(Refused, match="at the same time"):
        one_alone.call(rules.add, kind=Kind.SUSPEND, seconds=60, number=2)


def test_endpoints_have_numbers_of_their_own(put: Callable[..., list[str]], client: Ask, data: Path) -> None:
    put(State.ACCEPTED, ANN, BOB)
    for n, first in ((1, 1), (2, 10_001)):
        outbox = Outbox(folder_of(data, n) / PLACE, first=first)
        for path in ("a", "b"):
            url = f"https://x.example/{path}"
            outbox.put(Notice(f"msg_{n}{path}", url, ANN, (), "m", form=False, body="{}"), float(n))
        outbox.close()
    call = client().call
    assert [one.number for one in call(webhooks.endpoints)] == [1, 2, 10_001, 10_002]
    assert call(webhooks.events)[0].id.startswith("msg_2")
    assert {one.id for one in call(webhooks.events, endpoint=10_002)} == {"msg_2b"}
    assert call(webhooks.attempts, id="msg_2b") == ()
    call(webhooks.enable, number=10_002)
    with pytest.raises(NotFound):
        call(webhooks.enable, number=3)


def test_what_needs_a_running_node_says_so(put: Callable[..., list[str]], client: Ask) -> None:
    put(State.ACCEPTED, ANN, BOB)
    assert not client().running
    with pytest.raises(Temporary, match="no node runs"):
        client().call(node.status)


def test_the_node_that_made_an_id_is_asked_first() -> None:
    """Another one would answer from the journal, which may not have the last events yet."""

    class Asked:
        running = True

        def __init__(self, name: str) -> None:
            self.name = name

        def call(self, use_case: object, *none: object, **arguments: object) -> Any:
            return self.name

    one, two = Asked("one"), Asked("two")
    both = AllNodes([one, two], {6: one, 7: two})
    made = Sequence(7, time.time)
    assert both.call(messages.history, id=f"{to_text(made())}.0") == "two"  # type: ignore[comparison-overlap]
