"""Next hops that are down, slow, choosy or rude; full or read-only disks. Never a 250 without a safe message."""

from __future__ import annotations

import json
import os
import smtplib
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sendswitch.bench.measure import figure
from sendswitch.bench.peers import Node, free_port
from sendswitch.reply import Reply
from tests.e2e.next_hop import NextHop, Rude
from tests.e2e.steps import QUICK, clean, queue, ready, send, until


def test_a_next_hop_that_is_down_then_up(tmp_path: Path) -> None:
    port = free_port()
    with Node(tmp_path, f"127.0.0.1:{port}", settings=QUICK) as node:
        send(node.port, subject="patience")
        until(lambda: "Cannot connect" in str(queue(node)), node=node)
        status, causes = ready(node)
        assert status == 503
        assert f"127.0.0.1:{port}" in causes["next_hop"]
        with NextHop(port) as hop:
            until(lambda: hop.parcels, node=node)
            assert ready(node)[0] == 200
            assert b"Subject: patience" in hop.parcels[0].data
        until(lambda: not queue(node))
        clean(node)


def test_flush_does_not_wait_for_the_backoff(tmp_path: Path) -> None:
    port = free_port()
    with Node(tmp_path, f"127.0.0.1:{port}", settings={"next_hop": {"first_retry": "1h"}}) as node:
        send(node.port)
        until(lambda: any(row["attempts"] for row in queue(node)), node=node)
        with NextHop(port) as hop:
            assert json.loads(node.run("queue", "flush", "--json").stdout) == {"flushed": 1, "node_told": True}
            until(lambda: hop.parcels, 5, node)
        clean(node)


def test_a_next_hop_that_refuses_some(tmp_path: Path) -> None:
    """Each recipient has their own outcome; what fails for good is reported to the sender once."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        hop.refuse = {
            "no@example.test": Reply(550, "5.1.1", "unknown"),
            "later@example.test": Reply(450, "4.2.1", "busy"),
        }
        send(node.port, "joe@example.test", "no@example.test", "later@example.test")
        until(lambda: len(hop.parcels) >= 2, node=node)
        report = next(p for p in hop.parcels if p.envelope.sender == "")
        assert report.envelope.recipients[0].address == "sender@example.org"
        assert b"Final-Recipient: rfc822; no@example.test" in report.data
        assert b"joe@example.test" not in report.data
        assert [row["recipient"] for row in queue(node)] == ["later@example.test"]
        hop.refuse = {}
        until(lambda: any(p.envelope.recipients[0].address == "later@example.test" for p in hop.parcels), node=node)
        first = [p for p in hop.parcels if p.envelope.recipients[0].address == "joe@example.test"]
        assert len(first) == 1
        until(lambda: not queue(node))
        clean(node)


def test_before_the_queue_the_next_hops_refusal_is_the_answer(tmp_path: Path) -> None:
    """All refused: the client reads the next hop's words. Some: stored, and the sender hears of those by a report."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", mode="proxy", settings=QUICK) as node:
        hop.refuse = {"no@example.test": Reply(550, "5.1.1", "unknown here")}
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(node.port, "no@example.test")
        assert refused.value.smtp_code == 550
        assert b"5.1.1 unknown here" in refused.value.smtp_error
        assert not hop.parcels
        send(node.port, "joe@example.test", "no@example.test", subject="both")
        until(lambda: len(hop.parcels) == 2, node=node)
        assert sorted(p.envelope.recipients[0].address for p in hop.parcels) == [
            "joe@example.test",
            "sender@example.org",
        ]
        hop.answer = lambda data: Reply(451, "4.3.0", "full")
        with pytest.raises(smtplib.SMTPDataError) as later:
            send(node.port, "joe@example.test")
        assert later.value.smtp_code == 451
        assert queue(node) == []
        clean(node)


def test_nobody_hears_of_a_null_senders_mail(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        hop.refuse = {"no@example.test": Reply(550, "5.1.1", "unknown")}
        send(node.port, "no@example.test", sender="")
        until(lambda: '"state":"failed"' in node.log.read_text(), node=node)
        assert not hop.parcels
        clean(node)


def test_what_cannot_be_delivered_in_time_is_bounced(tmp_path: Path) -> None:
    settings = QUICK | {"node": {"lifetime": "1s"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        hop.refuse = {"later@example.test": Reply(450, "4.2.1", "busy")}
        send(node.port, "later@example.test")
        until(lambda: hop.parcels, node=node)
        assert b"Status: 5.4.7" in hop.parcels[0].data
        clean(node)


def _greet(connection: socket.socket) -> None:
    connection.sendall(b"220 rude\r\n")
    connection.recv(1000)
    connection.sendall(b"250-rude\r\n250 PIPELINING\r\n")


def _hang_up_in_data(connection: socket.socket) -> None:
    _greet(connection)
    connection.recv(65536)
    connection.sendall(b"250 ok\r\n250 ok\r\n354 go\r\n")
    connection.recv(10)


def _lose_the_last_reply(connection: socket.socket) -> None:
    _greet(connection)
    connection.recv(65536)
    connection.sendall(b"250 ok\r\n250 ok\r\n354 go\r\n")
    data = b""
    while not data.endswith(b"\r\n.\r\n"):
        data += connection.recv(65536)


def _say_nothing(connection: socket.socket) -> None:
    connection.recv(1000)
    time.sleep(5)


def _junk(connection: socket.socket) -> None:
    connection.sendall(b"\x00\xff" * 5000)


@pytest.mark.parametrize("script", [_hang_up_in_data, _lose_the_last_reply, _say_nothing, _junk])
def test_a_rude_next_hop_loses_nothing(tmp_path: Path, script: Callable[[socket.socket], None]) -> None:
    with Rude(script) as rude, Node(tmp_path, f"127.0.0.1:{rude.port}", settings=QUICK) as node:
        # Too large for the buffers between us: who hangs up early has not seen the end of it.
        send(node.port, body=(b"x" * 70 + b"\r\n") * (300_000 if script is _hang_up_in_data else 1))
        until(lambda: rude.connections >= 2, node=node)  # it is tried again
        (row,) = queue(node)
        assert row["state"] == "accepted"
        told = "may have been delivered" in str(row["reply"])
        assert told == (script is _lose_the_last_reply)
        clean(node)


def test_a_slow_next_hop_does_not_stop_intake(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}") as node:
        hop.delay = 0.5
        began = time.monotonic()
        for _ in range(20):
            send(node.port)
        assert time.monotonic() - began < 9
        until(lambda: len(hop.parcels) == 20, node=node)
        clean(node)


def test_idle_connections_are_given_back(tmp_path: Path) -> None:
    """Postfix's re-injection service has few processes; an idle pool would starve it."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings={"next_hop": {"idle": "1s"}}) as node:
        for _ in range(5):
            send(node.port)
        until(lambda: len(hop.parcels) == 5, node=node)
        until(lambda: not _connections(hop.port), 4, node)


def _connections(port: int) -> list[str]:
    wanted = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return [line for line in lines if line.split()[2] == wanted and line.split()[3] == "01"]


def test_a_full_disk_is_a_451_and_everything_promised_arrives(tmp_path: Path, small_disk: Path) -> None:
    with NextHop() as hop:
        hop.delay = 0.1
        settings = QUICK | {"node": {"data": str(small_disk), "min_free": 0}}
        with Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
            node.data = small_disk
            filler = small_disk / "filler"
            filler.write_bytes(b"x" * (small_disk_free(small_disk) - 1_000_000))
            promised, refused = 0, []
            for size in [100_000] * 15 + [3_000_000] * 2:
                try:
                    send(
                        node.port,
                        subject=f"n{promised}",
                        body=b"z" * 70 + b"\r\n" + (b"z" * 70 + b"\r\n") * (size // 72),
                    )
                    promised += 1
                except smtplib.SMTPDataError as error:
                    refused.append(error.smtp_code)
                except smtplib.SMTPServerDisconnected:
                    refused.append(421)
            assert refused
            assert set(refused) <= {421, 451, 452}
            filler.unlink()
            until(lambda: len({p.data for p in hop.parcels}) == promised, node=node)
            assert ready(node)[0] == 200
            send(node.port, subject="after")
            until(lambda: any(b"Subject: after" in p.data for p in hop.parcels), node=node)
            done = node.run("audit", check=False)
            assert done.returncode == 0, done.stdout


def test_room_is_kept_for_what_is_here(tmp_path: Path, small_disk: Path) -> None:
    with NextHop() as hop:
        settings = {"node": {"data": str(small_disk), "min_free": 2_000_000}}
        with Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
            send(node.port)
            filler = small_disk / "filler"
            filler.write_bytes(b"x" * (small_disk_free(small_disk) - 1_000_000))
            until(lambda: _mail(node.port) == 452, 5, node)
            status, causes = ready(node)
            assert status == 503
            assert "node.min_free" in causes["spool"]
            filler.unlink()
            until(lambda: _mail(node.port) == 250, 5, node)
            send(node.port)
            assert ready(node)[0] == 200


def _mail(port: int) -> int:
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo()
        return client.mail("a@example.org")[0]


def small_disk_free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_bsize


def test_a_read_only_spool_says_so(tmp_path: Path, small_disk: Path) -> None:
    with (
        NextHop() as hop,
        Node(tmp_path, f"127.0.0.1:{hop.port}", settings={"node": {"data": str(small_disk), "min_free": 0}}) as node,
    ):
        send(node.port, subject="before")
        until(lambda: hop.parcels, node=node)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=False)
        os.chmod(tmp_path, 0o755)
        if subprocess.run(["touch", small_disk / "x"], capture_output=True, check=False).returncode == 0:
            pytest.skip("this kernel does not remount a file system that is in use")
        with pytest.raises(smtplib.SMTPDataError) as refused:
            send(node.port)
        assert refused.value.smtp_code in (451, 452)
        assert ready(node)[0] == 503
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        send(node.port, subject="again")
        until(lambda: len(hop.parcels) == 2, node=node)


def test_a_data_folder_that_cannot_be_written_is_told_at_start(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    node = Node(tmp_path / "node", "127.0.0.1:1", settings={"node": {"data": str(blocked / "data")}})
    done = node.run("serve", check=False)
    assert done.returncode == 75
    assert "node.data" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_nodes_cannot_share_a_spool(tmp_path: Path) -> None:
    with Node(tmp_path, "127.0.0.1:1") as node:
        done = node.run("serve", check=False)
        assert done.returncode == 75
        assert "in use by another node" in done.stderr


def test_a_busy_port_names_its_key(tmp_path: Path) -> None:
    with Node(tmp_path / "one", "127.0.0.1:1") as node:
        other = Node(tmp_path / "two", "127.0.0.1:1", listener={"bind": f"127.0.0.1:{node.port}"})
        done = other.run("serve", check=False)
        assert done.returncode == 75
        assert "listener.bind 127.0.0.1" in done.stderr
        assert "choose another address" in done.stderr


def test_a_loop_is_ended(tmp_path: Path) -> None:
    """The next hop is our own listener, behind another name: the mail must not go round for ever."""
    node = Node(tmp_path, "127.0.0.1:1")
    node.config.write_text(node.config.read_text().replace('127.0.0.1:1"', f'localhost:{node.port}"'))
    with node:
        send(node.port)
        until(lambda: '"event":"refused"' in node.log.read_text(), node=node)
        until(lambda: not queue(node), node=node)
        assert node.log.read_text().count('"event":"accepted"') < 20


def test_the_ledger_is_a_metric_that_must_be_0(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        send(node.port)
        until(lambda: hop.parcels, node=node)
        until(lambda: not queue(node), node=node)
        assert figure(node, "sendswitch_unaccounted_recipients") == 0
        node.stop()
        with closing(sqlite3.connect(node.data / "spool" / "spool.db")) as connection, connection:
            connection.execute("DELETE FROM outbox WHERE event = 'delivered'")
        node.start()
        until(lambda: figure(node, "sendswitch_unaccounted_recipients") > 0, node=node)
        assert '"event":"unaccounted"' in node.log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/healthz?check=ledger", timeout=10) as answer:
            assert json.loads(answer.read())["status"] == "degraded"
        done = node.run("audit", check=False)
        assert done.returncode == 1
        assert "a final delivery has one end" in done.stdout


def test_data_is_the_node_s_alone_whatever_modes_it_had(tmp_path: Path) -> None:
    """After a copy or a restore with other modes, of every file that the node has by then."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}") as node:
        send(node.port, body=b"x" * 400_000)
        until(lambda: hop.parcels, node=node)
    (node.data / "sendswitch.db.0001").write_text("a copy from before an upgrade")
    for path in (node.data, *node.data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with node:
        seen = [path for path in (node.data, *node.data.rglob("*")) if not path.is_socket()]
        assert len(seen) > 6
        assert [path for path in seen if path.stat().st_mode & 0o077] == []
