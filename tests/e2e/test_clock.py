"""A clock that jumps under a running node: mail is taken, moves on, and the log says what happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node, free_port
from tests.conftest import need
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import clean, queue, said, send, until

LIBRARY = "faketime/libfaketimeMT.so.1"
DAYS = 86400
# Retries so slow that nothing of a test waits for them, and a clock that is days off makes them days.
SLOW = {"next_hop": {"first_retry": "100s", "last_retry": "100s"}, "node": {"lifetime": "60d"}}


@pytest.fixture
def set_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Puts the clock of the programs started here forward by so many seconds, as they run."""
    need("faketime", "faketime")
    (library,) = Path("/usr/lib").glob(f"*/{LIBRARY}")
    offset = tmp_path / "clock"
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    # As on a real machine, where setting the clock leaves the time since the start alone.
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")

    def set_to(seconds: int) -> None:
        new = offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(offset)

    set_to(0)
    return set_to


def test_a_clock_set_back_keeps_no_mail_waiting(tmp_path: Path, set_clock: Callable[[int], None]) -> None:
    set_clock(20 * DAYS)
    port = free_port()
    with Node(tmp_path, f"127.0.0.1:{port}", settings=SLOW) as node:
        node.add_pipeline("held@example.test", "[[step]]\nuse = 'hold'\n")
        send(node.port, subject="put off by a clock that is wrong")
        send(node.port, "held@example.test", subject="held")
        until(lambda: len(queue(node)) == 2 and '"event":"deferred"' in node.log.read_text(), node=node)
        said(node, "queue", "suspend", "to:kept", "--reason", "not now", "--ttl", "30d")
        send(node.port, "kept@example.test", subject="suspended")
        until(lambda: '"event":"suspended"' in node.log.read_text() or len(queue(node)) == 3, node=node)
        with NextHop(port) as hop:
            set_clock(0)
            said(node, "reload")
            until(lambda: len(hop.parcels) == 1, node=node)
            send(node.port, subject="new")
            until(lambda: len(hop.parcels) == 2, node=node)
            assert b"put off" in hop.parcels[0].data
            log = node.log.read_text()
            assert '"event":"clock_set","seconds":-17280' in log or '"event":"clock_set","seconds":-1727999' in log, log
            assert '"hurried":1' in log
            assert len(queue(node)) == 2
        until(lambda: len(said(node, "message", "list")) == 4, node=node)
        clean(node)


def test_mail_put_off_before_a_restart_with_the_right_clock(tmp_path: Path, set_clock: Callable[[int], None]) -> None:
    set_clock(20 * DAYS)
    port = free_port()
    with Node(tmp_path, f"127.0.0.1:{port}", settings=SLOW) as node:
        send(node.port)
        until(lambda: '"event":"deferred"' in node.log.read_text(), node=node)
        node.stop()
        set_clock(0)
        with NextHop(port) as hop:
            node.start()
            until(lambda: len(hop.parcels) == 1, node=node)
        clean(node)


def test_a_shorter_delay_after_a_restart_is_no_wrong_clock(tmp_path: Path) -> None:
    with Node(tmp_path, f"127.0.0.1:{free_port()}", settings={"next_hop": {"first_retry": "1h"}}) as node:
        send(node.port)
        until(lambda: '"event":"deferred"' in node.log.read_text(), node=node)
        node.stop()
        node.config.write_text(
            node.config.read_text().replace('first_retry = "1h"', 'first_retry = "1s"\nlast_retry = "5s"')
        )
        node.start()
        (row,) = queue(node)
        assert row["attempts"] == 1
        assert "clock_set" not in node.log.read_text()


def test_a_clock_set_forward_loses_nothing(tmp_path: Path, set_clock: Callable[[int], None]) -> None:
    port = free_port()
    with Node(tmp_path, f"127.0.0.1:{port}", settings=SLOW) as node:
        send(node.port, subject="put off")
        until(lambda: '"event":"deferred"' in node.log.read_text(), node=node)
        with NextHop(port) as hop:
            set_clock(3 * DAYS)
            said(node, "reload")
            send(node.port, subject="new")
            until(lambda: len(hop.parcels) == 2, node=node)
            assert '"event":"clock_set","seconds":259' in node.log.read_text()
        # Ids go on rising, so that the queue keeps its order.
        until(lambda: len(said(node, "message", "list")) == 2, node=node)
        assert [row["subject"] for row in said(node, "message", "list")] == ["new", "put off"]
        clean(node)
