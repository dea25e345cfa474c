"""What strangers do to a mail server: too many recipients, endless junk, connections that never say anything."""

from __future__ import annotations

import smtplib
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import clean, queue, send, until

MIB = 1024 * 1024


def resident(node: Node) -> int:
    """Bytes of memory the node has."""
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


@pytest.mark.parametrize("limit", [1000, 10_000])
def test_ten_thousand_recipients(limit: int, tmp_path: Path) -> None:
    """Each is answered; those that were accepted get the mail, each once."""
    wire = b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n" + b"".join(
        b"RCPT TO:<r%d@c.example>\r\n" % n for n in range(10_000)
    )
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", listener={"recipients": limit}) as node:
        with socket.create_connection(("127.0.0.1", node.port), timeout=60) as client, client.makefile("rb") as said:
            client.sendall(wire + b"DATA\r\n")
            lines = []
            while not (line := said.readline()).startswith(b"354"):
                lines.append(line)
            assert sum(line.startswith(b"250 2.1.5") for line in lines) == limit
            assert sum(line.startswith(b"452 4.5.3") for line in lines) == 10_000 - limit
            client.sendall(b"Subject: many\r\n\r\nx\r\n.\r\nQUIT\r\n")
            assert said.readline().startswith(b"250")
        until(lambda: not queue(node), 60, node)
        arrived = [to.address for parcel in hop.parcels for to in parcel.envelope.recipients]
        assert len(arrived) == len(set(arrived)) == limit
        clean(node)


def junk() -> Iterator[bytes]:
    """Every kind of rubbish, some of it endless."""
    yield b"\x00" * 100_000
    yield b"\xff\xfe\r\n" * 20_000
    yield b"A" * MIB
    yield b"NOOP\r\n" * 50_000
    yield b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + b"x" * 3 * MIB  # cut off in the middle
    yield b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 2000000\r\n" + b"y" * MIB
    yield b"EHLO x\r\n" + b"MAIL FROM:<a@b>\r\nRSET\r\n" * 20_000
    yield b"\x16\x03\x01\x02\x00\x01" * 1000  # TLS where none was asked for
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_junk_leaves_nothing_behind(tmp_path: Path) -> None:
    """After a hundred megabytes of rubbish the node has the memory it had after the first five, and takes mail."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}") as node:

        def throw() -> None:
            for rubbish in junk():
                with (
                    suppress(ConnectionError),
                    socket.create_connection(("127.0.0.1", node.port), timeout=30) as client,
                ):
                    client.sendall(rubbish)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass

        for _ in range(3):
            throw()
        before = resident(node)
        for _ in range(17):
            throw()
        assert resident(node) - before < 16 * MIB
        send(node.port, subject="still there")
        until(lambda: hop.parcels, node=node)
        assert not list((node.data / "spool" / "content").iterdir())  # nor half a message on disk
        clean(node)


def test_those_who_say_nothing_are_sent_away_and_stop_nobody(tmp_path: Path) -> None:
    limits = {"idle_timeout": "2s", "transaction_timeout": "3s", "connections": 60}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", listener=limits) as node, ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=20))

        silent = [connect() for _ in range(20)]
        half_open = [connect() for _ in range(20)]
        for client in half_open:
            client.shutdown(socket.SHUT_WR)
        slow = [connect() for _ in range(10)]
        for client in slow:
            client.sendall(b"EHLO x\r\nMAIL FROM:<a@b>\r\n")
        began = time.monotonic()
        send(node.port)
        assert time.monotonic() - began < 1.9
        while time.monotonic() - began < 5:
            for client in slow:  # a byte now and then keeps the idle limit away, not the transaction's
                with suppress(OSError):
                    client.sendall(b"X")
            time.sleep(0.2)
        for clients, last in ((silent, b"421 4.4.2"), (slow, b"421 4.4.2"), (half_open, b"220 ")):
            for client in clients:
                said = b""
                while piece := client.recv(65536):
                    said += piece
                assert last in said
        send(node.port)
        until(lambda: len(hop.parcels) == 2, node=node)
        clean(node)


def test_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with NextHop() as hop:
        node = Node(tmp_path, f"127.0.0.1:{hop.port}")
        node.config.write_text(node.config.read_text().replace(f"127.0.0.1:{node.port}", f"[::1]:{node.port}"))
        node.host = "::1"
        with node, smtplib.SMTP("::1", node.port, timeout=20) as client:
            client.sendmail("a@b.example", ["joe@example.test"], "Subject: six\r\n\r\nx\r\n")
            until(lambda: hop.parcels, node=node)
        assert b"[IPv6:::1]" in hop.parcels[0].data
