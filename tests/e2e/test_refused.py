"""Mail that was not taken is found by its sender and its recipients, with what the client was told."""

from __future__ import annotations

import contextlib
import smtplib
import socket
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node
from sendswitch.spool.admin import open_files
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, overloaded, said, send, until


def spoken(port: int, *lines: str) -> str:
    """What is answered to commands that go out at once, as Postfix sends them."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall("".join(f"{line}\r\n" for line in ("EHLO c", *lines, "QUIT")).encode())
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    return answer.decode()


def refused(node: Node, *words: str, count: int = 1) -> list[dict[str, str]]:
    """The rows of a search among refused mail, once there are so many."""
    rows: list[dict[str, str]] = []

    def there() -> bool:
        rows[:] = said(node, "message", "list", "state:refused", *words)
        return len(rows) == count

    until(there, node=node)
    return rows


SMALL = {"message_size": "20kB"}
TWO = ("RCPT TO:<ann@example.test>", "RCPT TO:<bob@example.test> NOTIFY=NEVER", "DATA")


def test_no_room_and_too_much_to_do(tmp_path: Path) -> None:
    settings = QUICK | {"node": {"min_free": "1000000GB"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        for _ in range(3):  # one is enough to know
            assert "452 4.3.1" in spoken(node.port, "MAIL FROM:<a@example.org>", *TWO)
        assert "452 4.3.1" in spoken(node.port, "MAIL FROM:<b@example.org>")  # and nobody named
        (row,) = refused(node, "from:a@example.org", "to:bob@example.test")
        assert row["last_answer"].startswith("452 4.3.1 Error: insufficient system storage")
        assert len(refused(node, "from:b@example.org")) == 1
        refused(node, count=3)
        story = node.run("message", "explain", row["id"]).stdout
        assert "Refused after the queue (content filter) from c [127.0.0.1]: from <a@example.org>" in story
        assert "The sender was told: 452 4.3.1" in story
        with smtplib.SMTP("127.0.0.1", node.port) as client:
            client.ehlo("c")
            with overloaded(node):
                client.send("MAIL FROM:<late@example.org>\r\nRCPT TO:<ann@example.test>\r\n")
                assert client.getreply()[0] == 421
        (row,) = refused(node, "from:late@example.org", "to:ann@example.test")
        assert row["last_answer"].startswith("421 4.3.2")
        node.config.write_text(node.config.read_text().replace("1000000GB", "1MB"))
        said(node, "reload")
        send(node.port)
        until(lambda: hop.parcels, node=node)
        clean(node)


def test_what_a_listener_before_the_queue_does_not_take(tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {"node": {"max_hops": 5}, "recording": {"mail": "all"}}
    with (
        NextHop() as hop,
        Node(tmp_path, f"127.0.0.1:{hop.port}", mode="proxy", settings=settings, listener=SMALL) as node,
    ):
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "clamav"\naddress = "127.0.0.1:1"\n')
        with pytest.raises(smtplib.SMTPDataError, match=r"4\.7\.1"):
            send(node.port, "ann@example.test", sender="a@example.org")
        (row,) = refused(node, "from:a@example.org", "to:ann@example.test")
        assert row["last_answer"].startswith("451 4.7.1")
        with pytest.raises(smtplib.SMTPDataError, match=r"5\.4\.6"):
            send(node.port, sender="b@example.org", headers=b"Received: x\r\n" * 6)
        (row,) = refused(node, "from:b@example.org", "to:joe@example.test")
        assert "6 Received fields, more than max_hops = 5" in node.run("message", "explain", row["id"]).stdout
        assert "504 5.5.2" in spoken(node.port, "MAIL FROM:<c@example.org>", "RCPT TO:<joe>")
        with pytest.raises(smtplib.SMTPDataError, match=r"5\.3\.4"):
            send(node.port, "ann@example.test", sender="d@example.org", body=b"x" * 30_000)
        (row,) = refused(node, "from:d@example.org", "to:ann@example.test")
        assert row["last_answer"].startswith("552 5.3.4")
        with contextlib.closing(open_files(node.data)) as spool:  # there is nothing to replay
            assert spool.execute("SELECT count(*) FROM recorded").fetchone()[0] == 0
        (row,) = refused(node, "from:c@example.org")
        assert row["to"] == "joe"
        clean(node)
