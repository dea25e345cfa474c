"""A listener that asks who is there: SMTP AUTH from the command that gives a password to the mail's story."""

from __future__ import annotations

import base64
import smtplib
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node
from sendswitch.smtp.server import LOGINS
from sendswitch.smtp.session import WRONG_PASSWORD
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, until


def test_only_who_logs_in_sends_and_only_as_who_it_is(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    listener = {"auth": "require", "tls_certificate": str(cert), "tls_key": str(key)}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK, listener=listener) as node:
        for user in ("joe@example.test", "joe+boss@example.test"):
            node.run("user", "add", user)
        password = said(node, "user", "password", "joe@example.test")["password"]
        with smtplib.SMTP("127.0.0.1", node.port, timeout=20) as client:
            client.starttls(context=ssl.create_default_context(cafile=str(cert)))
            with pytest.raises(smtplib.SMTPSenderRefused, match="Authentication required"):
                client.sendmail("joe@example.test", ["ann@example.test"], b"Subject: no login\r\n\r\n")
            begin = time.monotonic()
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("joe@example.test", "guess")
            assert time.monotonic() - begin >= WRONG_PASSWORD
            client.login("joe@example.test", password)
            with pytest.raises(smtplib.SMTPSenderRefused, match="not owned by user joe@"):
                client.sendmail("boss@example.test", ["ann@example.test"], b"Subject: forged\r\n\r\n")
            with pytest.raises(smtplib.SMTPSenderRefused, match="not owned by user joe@"):
                client.sendmail("joe+boss@example.test", ["ann@example.test"], b"Subject: somebody else's\r\n\r\n")
            for sender in ("joe@example.test", "Joe+shop@example.test", ""):
                client.sendmail(sender, ["ann@example.test"], b"Subject: mine\r\n\r\nx\r\n")
        until(lambda: len(hop.parcels) == 3, node=node)
        assert all(b"with ESMTPSA id " in parcel.data for parcel in hop.parcels)
        until(lambda: len(said(node, "message", "list", "-state:refused")) == 3, node=node)
        until(lambda: len(said(node, "message", "list", "state:refused", "from:boss@example.test")) == 2, node=node)
        one = said(node, "message", "list", "from:joe@example.test")[0]["id"]
        story = node.run("message", "explain", one).stdout
        assert "as joe@example.test" in story, story
        log = node.log.read_text()
        assert '"event":"login_refused","client":"127.0.0.1","user":"joe@example.test"' in log
        assert password not in log
        assert "guess" not in log
        node.run("user", "password", "joe@example.test", "--remove")
        with smtplib.SMTP("127.0.0.1", node.port, timeout=20) as client, pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("joe@example.test", password)
        done = subprocess.run(
            node.line("user", "password", "joe@example.test", "--stdin"),
            input="my own\n",
            capture_output=True,
            text=True,
        )
        assert (done.returncode, "my own" in done.stdout) == (0, False)
        with smtplib.SMTP("127.0.0.1", node.port, timeout=20) as client:
            client.login("joe@example.test", "my own")
        assert "my own" not in node.log.read_text()
        clean(node)


def test_many_logins_from_one_address_keep_nobody_else_waiting_and_no_line_is_forged(tmp_path: Path) -> None:
    listener, settings = {"auth": "may"}, QUICK | {"log": {"format": "text"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings, listener=listener) as node:
        evil = "x\n2026-01-01T00:00:00.000Z warning login_refused client=198.51.100.7 user=victim"
        wrong = b"AUTH PLAIN " + base64.b64encode(f"\0{evil}\0x".encode()) + b"\r\n"
        crowd = [socket.create_connection(("127.0.0.1", node.port), timeout=20) for _ in range(LOGINS + 5)]
        for one in crowd:
            one.sendall(b"EHLO x\r\n" + wrong * 4 + b"QUIT\r\n")
        said = [b"".join(iter(lambda one=one: one.recv(4096), b"")) for one in crowd]  # type: ignore[misc]
        assert sum(b"\r\n454 " in answer for answer in said) >= 5
        assert all(answer.count(b"\r\n535 ") <= 3 for answer in said)
        for one in crowd:
            one.close()
        log = node.log.read_text()
        assert "login_refused" in log
        assert not [line for line in log.splitlines() if line.startswith("2026-01-01")]
        assert "client=198.51.100.7 user=victim\n" not in log
