"""kill -9 at any moment: what got a 250 is delivered, at most what was on the wire comes twice, nothing is invented."""

from __future__ import annotations

import contextlib
import random
import re
import smtplib
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import said, send

CONNECTIONS = 10
SENDERS = 8
_ID = re.compile(rb"^Subject: id-(\S+)\r$", re.M)


class Load:
    """Senders that never stop: each notes what it offered and what was promised."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.offered: set[str] = set()
        self.promised: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(SENDERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _send(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            with (
                contextlib.suppress(OSError, smtplib.SMTPException),
                smtplib.SMTP("127.0.0.1", self.port, timeout=10) as client,
            ):
                client.ehlo("load.example")
                while not self._stop.is_set():
                    count += 1
                    self._one(client, f"{number}.{count}", random.Random(count * 31 + number))
            time.sleep(0.02)

    def _one(self, client: smtplib.SMTP, name: str, dice: random.Random) -> None:
        to = dice.choice(("joe@example.test", "ann@example.test", "bob@example.test"))
        size = 400_000 if dice.random() < 0.02 else dice.randrange(10, 8000)
        self.offered.add(name)
        client.mail("sender@example.org")
        client.rcpt(to)
        line = b"y" * 70 + b"\r\n"
        code, _ = client.data(f"Subject: id-{name}\r\n\r\n".encode() + line * (size // 72 + 1))
        if code == 250:
            self.promised.add(name)


def arrived(hop: NextHop) -> Counter[str]:
    names: Counter[str] = Counter()
    for parcel in list(hop.parcels):
        found = _ID.search(parcel.data)
        assert found, parcel.data[:200]
        names[found[1].decode()] += 1
    return names


def kill_often(folder: Path, kills: int) -> None:
    dice = random.Random(kills)
    with NextHop() as hop:
        hop.delay = 0.002
        node = Node(
            folder, f"127.0.0.1:{hop.port}", settings={"next_hop": {"connections": CONNECTIONS, "first_retry": "1s"}}
        )
        node.start()
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "tag"\ntags = ["SEEN"]\n')
        node.add_pipeline("bob@example.test", '[[step]]\nuse = "lists"\nallow = ["nobody@nowhere.example"]\n')
        load = Load(node.port)
        load.start()
        for _ in range(kills):
            time.sleep(dice.uniform(0.05, 0.8))
            node.kill()
            node.start()
        time.sleep(0.5)
        load.stop()
        deadline = time.monotonic() + 60
        while load.promised - set(arrived(hop)) and time.monotonic() < deadline:
            time.sleep(0.2)
        names = arrived(hop)
        lost = load.promised - set(names)
        assert not lost, f"{len(lost)} of {len(load.promised)} lost: {sorted(lost)[:5]}"
        assert not set(names) - load.offered
        # A transaction can be repeated when its final reply was lost with us: one a connection and kill at most.
        twice = [name for name, count in names.items() if count > 1]
        assert len(twice) <= kills * CONNECTIONS, f"{len(twice)} came twice"
        assert len(load.promised) > kills * 5
        node.stop()
        done = node.run("audit", check=False)
        assert done.returncode == 0, done.stdout
        print(f"{kills} kills, {len(load.promised)} promised, {sum(names.values())} arrived, {len(twice)} twice")


KILLER = """#!/bin/sh
# Waits until all are in the spool, and kills its worker, or the node, for one of them.
mail=$(cat)
until [ -e {folder}/go ]; do sleep 0.02; done
worker=$(ps -o ppid= $PPID)
case $mail in *id-killer*) kill -9 {victim} ;; esac
"""


@pytest.mark.parametrize("victim", ["worker", "node"])
def test_one_message_that_kills_is_put_aside_and_the_others_are_delivered(tmp_path: Path, victim: str) -> None:
    program = tmp_path / "program"
    whom = "$worker" if victim == "worker" else "$(ps -o ppid= $worker)"
    program.write_text(KILLER.format(folder=tmp_path, victim=whom))
    program.chmod(0o755)
    with NextHop() as hop:
        node = Node(
            tmp_path, f"127.0.0.1:{hop.port}", settings={"next_hop": {"first_retry": "0.2s", "last_retry": "1s"}}
        )
        node.start()
        node.add_pipeline("joe@example.test", f'[[step]]\nuse = "exec"\ncommand = ["{program}"]\nat_once = 8\n')
        names = [f"{n}" for n in range(99)]
        names.insert(40, "killer")
        for name in names:
            send(node.port, subject=f"id-{name}")
        (tmp_path / "go").touch()
        deaths, deadline = 0, time.monotonic() + 120.0
        while (gone := node.process is not None and node.process.poll() is not None) or not queue_is_empty(node):
            assert time.monotonic() < deadline, node.log.read_text()[-3000:]
            deaths += gone
            if gone:
                node.start()
            time.sleep(0.1)
        assert set(arrived(hop)) == set(names) - {"killer"}  # one on the wire when the node dies may come twice
        killed = len(re.findall(r'"event":"worker_replaced".*"why":"it ended with SIGKILL"', node.log.read_text()))
        assert (3 <= deaths <= 5) if victim == "node" else (deaths == 0 and 3 <= killed <= 5)
        (row,) = said(node, "quarantine", "list")
        assert row["reply"].startswith("poison")
        assert '"event":"poison"' in node.log.read_text()
        assert "poison" in node.run("doctor", check=False).stdout
        node.stop()


def queue_is_empty(node: Node) -> bool:
    done = node.run("queue", "list", "--json", check=False)
    return done.returncode == 0 and done.stdout.strip() == "[]"


def test_killed_under_load(tmp_path: Path) -> None:
    kill_often(tmp_path, 8)


@pytest.mark.soak
def test_killed_a_hundred_times(tmp_path: Path) -> None:
    kill_often(tmp_path, 100)
