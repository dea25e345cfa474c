"""Worker processes: killed, stopped and replaced under load, and the other users' mail meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from sendswitch.bench.peers import Node
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, Stream, clean, said, send, until

# A user's program: it runs in a process of a worker.
PROGRAM = """
import asyncio

async def process(mail, context):
    if "slow" in mail.subject:
        await asyncio.sleep(60)
    return None
"""
TWO = QUICK | {"worker": {"processes": 2}}


def workers(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = said(node, "worker", "list")
    return found


def connected(node: Node, number: int) -> list[dict[str, Any]]:
    until(lambda: len(workers(node)) == number, node=node)
    return workers(node)


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return False


def programmed(node: Node, address: str, extra: str = "") -> None:
    program = node.folder / "program.py"
    program.write_text(PROGRAM)
    node.add_pipeline(address, f"{extra}[[step]]\nuse = 'python'\nfile = '{program}'\n")


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]


def test_workers_are_killed_and_stopped_under_load_and_no_mail_is_lost(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=TWO) as node:
        programmed(node, "joe@example.test")
        first = connected(node, 2)
        assert {one["name"] for one in first} == {"worker 1", "worker 2"}
        with Stream(node.port) as stream:
            until(lambda: sum(one["done"] for one in workers(node)) > 20, node=node)
            programs = [pid for one in first for pid in children(one["pid"])]
            os.kill(first[0]["pid"], signal.SIGKILL)
            until(lambda: first[0]["pid"] not in [one["pid"] for one in connected(node, 2)], node=node)
            os.kill(first[1]["pid"], signal.SIGSTOP)
            until(lambda: '"event":"worker_hung"' in node.log.read_text(), node=node)
            until(lambda: first[1]["pid"] not in [one["pid"] for one in connected(node, 2)], node=node)
            before = stream.sent
            until(lambda: stream.sent > before + 20, node=node)
        until(lambda: len(hop.parcels) == stream.sent, node=node)
        until(lambda: not any(map(alive, programs)), node=node)
        assert said(node, "quarantine", "list") == []
        clean(node)


def test_the_workers_end_with_their_node_however_it_ends(tmp_path: Path) -> None:
    with NextHop() as hop:
        node = Node(tmp_path, f"127.0.0.1:{hop.port}", settings=TWO).start()
        programmed(node, "joe@example.test")
        send(node.port)
        until(lambda: hop.parcels, node=node)
        pids = [one["pid"] for one in connected(node, 2)]
        pids += [child for pid in pids for child in children(pid)]
        assert len(pids) > 2
        os.kill(pids[0], signal.SIGSTOP)
        node.kill()
        until(lambda: not any(map(alive, pids)))
        node.start()
        pids = [one["pid"] for one in connected(node, 2)]
        send(node.port)
        until(lambda: len(hop.parcels) == 2, node=node)
        os.kill(pids[0], signal.SIGSTOP)  # it cannot end by itself
        node.stop()
        assert not any(map(alive, pids))
        assert list((node.data / "worker-files").glob("*")) == []


def test_workers_beside_a_node_wait_for_it_and_hand_back_what_they_have(tmp_path: Path) -> None:
    with NextHop() as hop:
        node = Node(tmp_path, f"127.0.0.1:{hop.port}", command="serve", settings=QUICK).start()
        programmed(node, "joe@example.test")
        node.add_pipeline("ann@example.test", "[[step]]\nuse = 'tag'\ntags = ['LIGHT']\n")
        send(node.port, "ann@example.test")
        until(lambda: len(hop.parcels) == 1, node=node)  # the node runs what is light
        send(node.port, subject="one")
        assert workers(node) == []
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(node.line("work", "--name", "mine", "--places", "3"), stderr=log)
        try:
            until(lambda: len(hop.parcels) == 2, node=node)
            (mine,) = workers(node)
            assert (mine["name"], mine["pid"], mine["places"]) == ("mine", worker.pid, 3)
            node.stop()
            node.start()
            send(node.port, subject="two")
            until(lambda: len(hop.parcels) == 3, node=node)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0
            assert workers(node) == []
        finally:
            worker.kill()
            worker.wait()
        clean(node)
        node.stop()


def test_a_user_whose_mail_takes_the_whole_limit_delays_nobody(tmp_path: Path) -> None:
    settings = QUICK | {"worker": {"processes": 1, "concurrency": 10}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        programmed(node, "joe@example.test", "deadline = '50s'\n")
        programmed(node, "ann@example.test")
        for _ in range(30):
            send(node.port, "joe@example.test", subject="slow")
        until(lambda: [one["leased"] for one in workers(node)] == [7], node=node)
        for number in range(10):
            send(node.port, "ann@example.test", subject=f"quick {number}")
        until(lambda: len(hop.parcels) == 10, node=node)
        assert [one["leased"] for one in workers(node)] == [7]
        assert len([one for one in said(node, "queue", "list") if one["recipient"] == "joe@example.test"]) == 30
        node.kill()  # it would wait for the slow ones
