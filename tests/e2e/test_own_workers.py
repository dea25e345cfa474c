"""Workers of users' own, as on a laptop: over the web port with a key, and mail while they are away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sendswitch.bench.peers import Node
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, send, until

JOE, ANN = "joe@example.test", "ann@example.test"
# A user's program, which no machine of the site has.
PROGRAM = """
import asyncio

from sendswitch.mail.verdict import Verdict

async def process(mail, context):
    if "slow" in mail.subject:
        await asyncio.sleep(60)
    return Verdict.tagged("SEEN", reason=f"{mail.size} bytes")
"""
SETTINGS = QUICK | {"worker": {"processes": 1, "offline_after": "1.5s"}}


class Laptop:
    """A worker of a user's own in a folder of its own."""

    def __init__(self, node: Node, key: str, *options: str, name: str = "laptop") -> None:
        self.log = node.folder / f"{name}.log"
        line = [sys.executable, "-m", "sendswitch.cli.main", "work", "--url", f"http://127.0.0.1:{node.web}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*line, "--name", name, *options],
                env=os.environ | {"SENDSWITCH_TOKEN": key},
                cwd=node.folder,
                stdout=log,
                stderr=log,
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def laptop(node: Node, key: str, *options: str, name: str = "laptop") -> Iterator[Laptop]:
    one = Laptop(node, key, *options, name=name)
    try:
        until(lambda: name in names(node), node=node)
        yield one
    finally:
        one.stop(signal.SIGKILL)


def names(node: Node) -> list[str]:
    return [one["name"] for one in said(node, "worker", "list")]


def own(node: Node, address: str, when_offline: str = "pass") -> str:
    """Have a user's mail go to workers of the user's own; return a key for them."""
    node.run("user", "add", address, check=False)
    said(node, "route", "set", address, "--run-by", "own", "--when-offline", when_offline)
    made: dict[str, Any] = said(node, "key", "add", address, "--name", "laptop")
    return str(made["key"])


def subjects(hop: NextHop) -> int:
    """Return how many different messages have arrived."""
    return len({line for parcel in hop.parcels for line in parcel.data.split(b"\r\n") if line.startswith(b"Subject:")})


def program(node: Node, text: str = PROGRAM) -> Path:
    (node.folder / "program.py").write_text(text)
    file = node.folder / "own.toml"
    file.write_text(f"[[step]]\nuse = 'python'\nfile = '{node.folder}/program.py'\n")
    return file


def story(node: Node, number: int = 0) -> str:
    """Return the story of the message of this number, the newest first."""
    listed = said(node, "message", "list")
    return node.run("message", "explain", listed[number]["id"]).stdout if len(listed) > number else ""


def test_a_laptop_runs_its_own_pipeline(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=SETTINGS) as node:
        key, file = own(node, JOE), program(node)
        with laptop(node, key, "--pipeline", str(file), "--reload") as worker:
            send(node.port)
            send(node.port, body=b"x" * 70 + b"\r\n" + b"long line\r\n" * 300_000)  # too large to come with the task
            until(lambda: len(hop.parcels) == 2, node=node)
            assert all(b"SEEN" in parcel.data for parcel in hop.parcels)
            until(lambda: "laptop" in story(node), node=node)
            assert f"The worker laptop of {JOE} ran a pipeline from a file, digest " in story(node)
            (one,) = [one for one in said(node, "worker", "list") if one["name"] == "laptop"]
            assert (one["queues"], one["done"]) == ([f"tasks.{JOE}"], 2)
            file.write_text("[[step]]\nuse = 'quarantine'\n")
            until(lambda: "pipeline_read" in worker.log.read_text())
            send(node.port)
            until(lambda: said(node, "quarantine", "list"), node=node)
            file.write_text("[[step]]\nuse = 'quarantin'\n")
            until(lambda: "did you mean 'quarantine'" in worker.log.read_text())
            assert worker.stop() == 0
        clean(node)


def test_a_worker_runs_the_pipeline_that_the_node_has(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=SETTINGS) as node:
        key = own(node, JOE)
        with laptop(node, key):
            send(node.port)
            until(lambda: "start the worker with --pipeline" in node.log.read_text(), node=node)
            said(node, "list", "add", "deny", "sender@example.org", "--for", JOE)
            node.add_pipeline(JOE, "deny = 'quarantine'\n[[step]]\nuse = 'lists'\n")
            until(lambda: said(node, "quarantine", "list"), node=node)
            until(lambda: "ran version 1 of the pipeline" in story(node), node=node)


def test_mail_of_a_worker_that_went_never_passes(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=SETTINGS) as node:
        key, file = own(node, JOE, "pass"), program(node)
        with laptop(node, key, "--pipeline", str(file)) as worker:
            send(node.port, subject="slow")
            until(lambda: any(one["leased"] for one in said(node, "worker", "list")), node=node)
            worker.stop(signal.SIGKILL)
        # What comes while nobody is there passes, as configured; what the worker had waits.
        until(lambda: '"event":"workers_offline"' in node.log.read_text(), node=node)
        send(node.port, subject="quick")
        until(lambda: hop.parcels, node=node)
        until(lambda: f"no worker of {JOE} is online, and when_offline is pass" in story(node), node=node)
        node.kill()  # and it still does after a restart
        node.start()
        until(lambda: node.log.read_text().count('"event":"workers_offline"') == 2, node=node)
        send(node.port, subject="quick")
        until(lambda: len(hop.parcels) == 2, node=node)
        assert [row["recipient"] for row in said(node, "queue", "list")] == [JOE]
        program(node, PROGRAM.replace("60", "0"))
        with laptop(node, key, "--pipeline", str(file)):
            until(lambda: len(hop.parcels) == 3, node=node)
        assert [b"slow" in parcel.data for parcel in hop.parcels] == [False, False, True]
        clean(node)


def test_deferred_mail_comes_as_soon_as_the_laptop_is_open(tmp_path: Path) -> None:
    settings = SETTINGS | {"next_hop": {"first_retry": "1h", "last_retry": "2h"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        key, file = own(node, JOE, "defer"), program(node)
        for _ in range(5):
            send(node.port)
        until(lambda: node.log.read_text().count('"event":"deferred"') == 5, node=node)
        send(node.port, ANN)  # nobody else waits
        until(lambda: len(hop.parcels) == 1, node=node)
        with laptop(node, key, "--pipeline", str(file)):
            until(lambda: len(hop.parcels) == 6, node=node)
        clean(node)


def test_a_key_lets_its_user_in_until_it_is_removed(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=SETTINGS) as node:
        key, file = own(node, JOE), program(node)
        wrong = Laptop(node, "ssk_" + "x" * 43, "--pipeline", str(file), name="wrong")
        assert wrong.process.wait(30) != 0
        assert "this key is not valid" in wrong.log.read_text()
        with laptop(node, key, "--pipeline", str(file)) as worker:
            (one,) = said(node, "key", "list")
            assert (one["address"], one["scope"], one["name"]) == (JOE, "work", "laptop")
            assert key not in node.run("key", "list", "--json").stdout + node.log.read_text() + worker.log.read_text()
            said(node, "key", "rm", str(one["number"]))
            until(lambda: "laptop" not in names(node), node=node)
            until(lambda: "this key is not valid" in worker.log.read_text())
            assert worker.process.poll() is None  # it waits for its key to come back
            send(node.port)
            until(lambda: hop.parcels, node=node)


def test_a_node_and_its_workers_lose_each_other(tmp_path: Path) -> None:
    settings = SETTINGS | {"worker": {"offline_after": "60s"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        key, file = own(node, JOE), program(node)
        with laptop(node, key, "--pipeline", str(file)):
            for number in range(4):
                node.kill()
                node.start()
                for n in range(5):
                    send(node.port, subject=f"message {number}.{n}")
                # One whose reply was lost with the node may come twice.
                until(lambda number=number: subjects(hop) == 5 * number + 5, node=node)  # type: ignore[misc]
        assert said(node, "quarantine", "list") == []
        clean(node)
