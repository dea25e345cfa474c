"""Mail through workers behind RabbitMQ, and RabbitMQ failing under load."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node
from sendswitch.bench.rabbitmq import RABBITMQ, RabbitMQ
from tests.conftest import missing
from tests.e2e.cut import Network
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, Stream, clean, programmed, queue, ready, said, send, until


def settings(server: RabbitMQ, **worker: Any) -> dict[str, dict[str, Any]]:
    return QUICK | {"broker": {"urls": [server.url]}, "worker": {"processes": 2} | worker}


@pytest.fixture
def own_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A RabbitMQ that the test may kill."""
    if not RABBITMQ.exists():
        missing("RabbitMQ is missing; as root: apt-get install rabbitmq-server")
    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    server.start()
    yield server
    server.kill()


def test_mail_goes_on_when_rabbitmq_and_workers_are_killed(tmp_path: Path, own_rabbit: RabbitMQ) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings(own_rabbit)) as node:
        programmed(node, "joe@example.test", "deadline = '5s'\n")
        node.add_pipeline("ann@example.test", "[[step]]\nuse = 'tag'\ntags = ['LIGHT']\n")
        with Stream(node.port) as stream:
            until(lambda: len(hop.parcels) > 20, node=node)
            # They are known by name only.
            until(lambda: {one["pid"] for one in said(node, "worker", "list")} == {0}, node=node)
            own_rabbit.kill()
            before = stream.sent
            until(lambda: stream.sent > before + 20, node=node)
            until(lambda: "broker_away" in node.log.read_text(), node=node)
            send(node.port, "ann@example.test", subject="light")
            until(lambda: any(b"Subject: light" in parcel.data for parcel in hop.parcels), node=node)
            own_rabbit.start()
            until(lambda: len(hop.parcels) > before + 20, node=node)
            os.kill(node.worker_pids()[0], signal.SIGSTOP)
            until(lambda: "no sign of life" in node.log.read_text(), node=node)
        until(lambda: len(hop.parcels) == stream.sent + 1, node=node)
        assert said(node, "quarantine", "list") == []
        until(lambda: not queue(node), node=node)
        clean(node)


def test_mail_waits_while_rabbitmq_has_no_memory(tmp_path: Path, own_rabbit: RabbitMQ) -> None:
    """RabbitMQ then reads nothing from those who publish (an alarm): neither tasks nor answers."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings(own_rabbit)) as node:
        programmed(node, "joe@example.test")
        with Stream(node.port) as stream:
            until(lambda: len(hop.parcels) > 20, node=node)
            own_rabbit.control("set_vm_memory_high_watermark", "absolute", "1MB")
            taken = stream.sent
            until(lambda: stream.sent > taken + 200, node=node)
            assert len(hop.parcels) < stream.sent - 50
            assert ready(node)[0] == 200
            own_rabbit.control("set_vm_memory_high_watermark", "absolute", "2GB")
            until(lambda: len(hop.parcels) > taken + 200, node=node)
        _all_came_once(node, hop, stream)


@pytest.mark.parametrize("forgotten", [False, True], ids=["late", "lost"])
def test_the_network_to_rabbitmq_is_cut(tmp_path: Path, own_rabbit: RabbitMQ, *, forgotten: bool) -> None:
    """For a moment, after which everything arrives; or until all know that nobody answers."""
    network = Network(own_rabbit.port)
    through: dict[str, Any] = {"urls": [f"amqp://guest:guest@127.0.0.1:{network.port}/"]}
    with (
        NextHop() as hop,
        Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings(own_rabbit) | {"broker": through}) as node,
    ):
        programmed(node, "joe@example.test")
        with Stream(node.port, 0.02) as stream:
            until(lambda: len(hop.parcels) > 20, node=node)
            network.cut()
            taken = stream.sent
            until(lambda: stream.sent > taken + 100, node=node)
            assert len(hop.parcels) < stream.sent - 20
            if forgotten:
                until(lambda: "broker_away" in node.log.read_text(), 60, node)
            network.heal(forgotten=forgotten)
            until(lambda: len(hop.parcels) > taken + 100, 60, node)
        _all_came_once(node, hop, stream)
        assert ("broker_away" in node.log.read_text()) is forgotten
    network.close()


def _all_came_once(node: Node, hop: NextHop, stream: Stream) -> None:
    until(lambda: len(hop.parcels) == stream.sent, 60, node)
    until(lambda: not queue(node), node=node)
    assert len({parcel.data for parcel in hop.parcels}) == stream.sent
    assert said(node, "quarantine", "list") == []
    clean(node)


def test_a_worker_of_the_site_elsewhere(tmp_path: Path, rabbit: RabbitMQ) -> None:
    with NextHop() as hop:
        node = Node(tmp_path, f"127.0.0.1:{hop.port}", command="serve", settings=settings(rabbit)).start()
        assert said(node, "broker", "install") == {"installed": True}
        assert said(node, "broker", "check") == {"well": True}
        programmed(node, "joe@example.test")
        for number in range(10):
            send(node.port, subject=f"early {number}")
        assert hop.parcels == []
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        with (tmp_path / "worker.log").open("wb") as log:
            line = [*node.line("work")[:3], "work", "--broker", rabbit.url, "--name", "laptop", "--places", "5"]
            worker = subprocess.Popen(line, stderr=log, cwd=elsewhere)
        try:
            until(lambda: len(hop.parcels) == 10, node=node)
            until(lambda: [one["name"] for one in said(node, "worker", "list")] == ["laptop"], node=node)
            large = b"x" * 70 + b"\r\n"
            send(node.port, subject="large", body=large * 40_000)
            until(lambda: len(hop.parcels) == 11, node=node)
            assert hop.parcels[-1].data.endswith(large * 3)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0, (tmp_path / "worker.log").read_text()
        finally:
            worker.kill()
            worker.wait()
        until(lambda: said(node, "worker", "list") == [], node=node)
        clean(node)
        node.stop()


def test_a_node_without_rabbitmq_says_so_and_takes_mail(tmp_path: Path) -> None:
    nowhere: dict[str, dict[str, Any]] = QUICK | {"broker": {"urls": ["amqp://guest:secret@127.0.0.1:1/"]}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", command="serve", settings=nowhere) as node:
        programmed(node, "joe@example.test")
        send(node.port, subject="waits")
        assert ready(node)[0] == 200
        done = node.run("broker", "check", check=False)
        assert done.returncode == 75
        assert "amqp://127.0.0.1:1/: nothing listens there" in done.stderr
        assert "secret" not in node.log.read_text() + done.stdout + done.stderr
        (row,) = queue(node)
        assert row["state"] == "accepted"
        node.kill()  # it would wait for the answer
