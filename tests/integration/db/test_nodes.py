"""The nodes of a database: numbers that no two have, and heartbeats."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from sendswitch.db import nodes
from sendswitch.db.nodes import GONE, NodeFacts
from sendswitch.errors import NotFound, Refused, Temporary

FACTS = NodeFacts(
    7, "mx1", "/var", 1, "0.1", "http://x", 5.0, draining=False, queued=1, held=2, quarantined=3, workers=4
)


def test_no_two_nodes_have_one_number(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: nodes.register(engine, f"spool {n}", 7, 1.0), range(8)))
    assert sorted(found) == list(range(7, 15))
    assert nodes.register(engine, "spool 3", 900, 2.0) == found[3]  # it is known again, whatever it wants


def test_the_numbers_go_round_and_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "NODES", 3)
    assert [nodes.register(engine, str(n), 2, 1.0) for n in range(3)] == [2, 0, 1]
    with pytest.raises(Temporary, match="node forget"):
        nodes.register(engine, "one more", 2, 1.0)


def test_a_heartbeat_is_seen(engine: Engine) -> None:
    number = nodes.register(engine, "a", 7, 1.0)
    assert [(one.facts.number, one.ended) for one in nodes.known(engine)] == [(number, 1.0)]
    nodes.tell(engine, "a", FACTS, 10.0)
    (known,) = nodes.known(engine)
    assert (known.facts, known.seen, known.ended) == (FACTS, 10.0, None)
    nodes.tell(engine, "a", replace(FACTS, queued=9), 20.0, ended=True)
    (known,) = nodes.known(engine)
    assert (known.facts.queued, known.ended) == (9, 20.0)


def test_one_node_alone_adopts_a_spool(engine: Engine) -> None:
    assert not nodes.claim(engine, "a", "b")
    nodes.register(engine, "a", 7, 1.0)
    assert nodes.adopter_of(engine, "a") == ""
    assert nodes.claim(engine, "a", "b")
    assert nodes.claim(engine, "a", "b")
    assert not nodes.claim(engine, "a", "c")
    assert nodes.adopter_of(engine, "a") == "b"
    nodes.tell(engine, "a", FACTS, 10.0)  # it runs, in its new place
    assert nodes.adopter_of(engine, "a") == ""


def test_only_what_is_gone_is_forgotten(engine: Engine) -> None:
    nodes.register(engine, "a", 7, 1.0)
    nodes.tell(engine, "a", FACTS, 10.0)
    with pytest.raises(Refused, match="5 seconds ago"):
        nodes.forget(engine, 7, 15.0)
    nodes.forget(engine, 7, 10.0 + GONE)
    with pytest.raises(NotFound, match="node list"):
        nodes.forget(engine, 7, 10.0 + GONE)
    # It was only cut off: it comes back with its number, unless that is another's by now.
    nodes.tell(engine, "a", FACTS, 20.0)
    nodes.tell(engine, "a", FACTS, 21.0, ended=True)
    nodes.forget(engine, 7, 22.0)
    assert nodes.register(engine, "b", 7, 23.0) == 7
    with pytest.raises(Refused, match="restart it"):
        nodes.tell(engine, "a", FACTS, 24.0)
