"""The node as systemd starts it: it says when it is ready, that it lives, and when it stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node, free_port
from sendswitch.config.environment import taken_from_systemd

# States that a node may have sent before it hung.
MOST = 200


def told(line: socket.socket, state: str) -> list[str]:
    """Return the states that systemd hears until this one."""
    heard: list[str] = []
    while state not in heard:
        assert len(heard) < MOST, heard
        heard.append(line.recv(1024).decode())
    return heard


def until_silent(line: socket.socket) -> int:
    """Return how many states come until none comes for a second."""
    for count in range(MOST):
        try:
            line.recv(1024)
        except TimeoutError:
            return count
    return MOST


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_systemd_hears_of_the_node_s_life(tmp_path: Path, abstract: bool) -> None:
    node = Node(tmp_path, f"127.0.0.1:{free_port()}")
    address = f"@sendswitch-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("\0" + address[1:] if abstract else address)
        line.settimeout(20)
        env = os.environ | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        with subprocess.Popen(node.line("run"), env=env, stderr=subprocess.DEVNULL) as process:
            try:
                assert told(line, "READY=1") == ["READY=1"]
                assert node.run("node", "status").returncode == 0
                began = time.monotonic()
                for _ in range(4):
                    assert line.recv(1024) == b"WATCHDOG=1"
                assert time.monotonic() - began < 5
                process.send_signal(signal.SIGSTOP)  # a loop that hangs is silent
                line.settimeout(1)
                assert until_silent(line) < MOST
                process.send_signal(signal.SIGCONT)
                line.settimeout(20)
                process.send_signal(signal.SIGTERM)
                assert "STOPPING=1" in told(line, "STOPPING=1")
                assert process.wait(20) == 0
            finally:
                process.kill()


def test_a_systemd_that_does_not_listen_stops_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path, f"127.0.0.1:{free_port()}")
    env = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"}
    with subprocess.Popen(node.line("run"), env=env, stderr=subprocess.DEVNULL) as process:
        try:
            assert node.run("node", "ready", "--wait", "20s", check=False).returncode in (0, 75)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_the_watchdog_is_of_the_process_it_names() -> None:
    """And what systemd gave is gone afterwards, so that no program of a pipeline speaks for the node."""
    for given, found in (
        ({}, ("", 0.0)),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}, ("/run/x", 30.0)),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, ("/run/x", 1.5)),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, ("", 0.0)),
        ({"WATCHDOG_USEC": "soon"}, ("", 0.0)),
    ):
        environment = {"PATH": "/bin", **given}
        assert taken_from_systemd(environment, 7) == found
        assert environment == {"PATH": "/bin"}
