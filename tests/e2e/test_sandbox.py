"""User code of a whole site in sandboxes, beside a node that has its own data."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node
from tests.conftest import need
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, send, until
from tests.e2e.test_systemd import told

JOE, ANN = "joe@example.test", "ann@example.test"
# What a program finds of the node's files, and of the processes around it.
PROGRAM = """
import os

def readable(path):
    try:
        return os.listdir(path) or open(path).read()
    except OSError:
        return []

def found():
    numbers = [name for name in os.listdir("/proc") if name.isdigit() and int(name) > 20]
    return sorted(map(str, [*readable({data!r}), *numbers]))
"""


@pytest.fixture(autouse=True)
def installed() -> None:
    need("bwrap", "bubblewrap")


def pipelines(node: Node) -> None:
    """Joe has a step of Python, and Ann a program."""
    code = PROGRAM.format(data=str(node.folder / "data"))
    joe, ann = node.folder / "joe.py", node.folder / "ann.py"
    process = (
        "async def process(mail, context):\n    return Verdict.tagged(*['FOUND'] * bool(found()), 'RAN', reason='x')"
    )
    joe.write_text(f"from sendswitch.mail.verdict import Verdict\n{code}\n{process}\n")
    ann.write_text(f'#!/usr/bin/python3\n{code}\nprint(\'{{"tags": ["RAN"]}}\' if not found() else "")\n')
    ann.chmod(0o755)
    node.add_pipeline(JOE, f"[[step]]\nuse = 'python'\nfile = '{joe}'\n")
    node.add_pipeline(ANN, f"[[step]]\nuse = 'exec'\ncommand = ['{ann}']\n")


def test_a_site_with_sandboxes(tmp_path: Path) -> None:
    settings: dict[str, Any] = QUICK | {"pipelines": {"sandbox": "bwrap"}, "worker": {"processes": 1}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        pipelines(node)
        large = b"x" * 70 + b"\r\n" + b"a line of a large message\r\n" * 100_000
        for recipient in (JOE, ANN):
            send(node.port, recipient)
            send(node.port, recipient, body=large)
        until(lambda: len(hop.parcels) == 4, node=node)
        assert all(b"RAN" in parcel.data for parcel in hop.parcels)
        assert not any(b"FOUND" in parcel.data for parcel in hop.parcels)
        (finding,) = [one for one in said(node, "doctor") if one["what"] == "sandbox"]
        assert finding["status"] == "ok"
        clean(node)


def test_a_worker_that_systemd_starts(tmp_path: Path) -> None:
    """Beside a node that only serves; it says that it is ready and lives."""
    settings: dict[str, Any] = QUICK | {"pipelines": {"sandbox": "bwrap"}}
    address = f"@sendswitch-worker-{os.getpid()}"
    with (
        NextHop() as hop,
        Node(tmp_path, f"127.0.0.1:{hop.port}", command="serve", settings=settings) as node,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line,
    ):
        line.bind("\0" + address[1:])
        line.settimeout(20)
        pipelines(node)
        send(node.port, ANN)
        words = [sys.executable, "-m", "sendswitch.cli.main", *node.line("work")[3:]]
        env = os.environ | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        with subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL) as worker:
            try:
                assert told(line, "READY=1")[-1] == "READY=1"
                assert told(line, "WATCHDOG=1")[-1] == "WATCHDOG=1"
                until(lambda: hop.parcels, node=node)
                assert b"RAN" in hop.parcels[0].data
                worker.send_signal(signal.SIGTERM)
                assert "STOPPING=1" in told(line, "STOPPING=1")
                assert worker.wait(20) == 0
            finally:
                worker.kill()
        clean(node)


@pytest.mark.parametrize("unit", ["sendswitch-worker@.service"])
def test_the_unit_of_workers_leaves_room_for_sandboxes(unit: str) -> None:
    """A part of /proc that is covered, and a namespace that is forbidden, would each make all of them fail."""
    text = (Path(__file__).parents[2] / "deploy" / unit).read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    forbidden = ("RestrictNamespaces", "ProtectKernelTunables", "ProtectKernelLogs", "ProtectHostname", "ProtectProc")
    assert not set(forbidden) & set(settings)
    assert "AF_NETLINK" in settings["RestrictAddressFamilies"]
    assert settings["NoNewPrivileges"] == "yes"
