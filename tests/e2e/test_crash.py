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


def test_killed_under_load(tmp_path: Path) -> None:
    kill_often(tmp_path, 8)


@pytest.mark.soak
def test_killed_a_hundred_times(tmp_path: Path) -> None:
    kill_often(tmp_path, 100)
