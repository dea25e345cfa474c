"""A running node is told what to do: reload, drain, orders on the queue; and what happens when that is wrong."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node, free_port
from sendswitch.reply import Reply
from sendswitch.switch import control
from tests.e2e.next_hop import NextHop, Rude
from tests.e2e.test_faults import QUICK, queue, ready, send, until

PATIENT = {"next_hop": {"first_retry": "1h"}}


def said(node: Node, *arguments: str, code: int = 0) -> Any:
    done = node.run(*arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def health(node: Node, check: str) -> dict[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/healthz?check={check}", timeout=10) as answer:
        found: dict[str, str] = json.loads(answer.read())["checks"][0]
        return found


class Stream:
    """Mail without end over one connection, to see whether anything disturbs it."""

    def __init__(self, port: int) -> None:
        self._port, self.sent, self.trouble = port, 0, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with smtplib.SMTP("127.0.0.1", self._port, timeout=20) as client:
                while not self._stop.is_set():
                    client.sendmail("a@example.org", ["joe@example.test"], b"Subject: x\r\n\r\ntext\r\n")
                    self.sent += 1
        except (OSError, smtplib.SMTPException) as error:
            self.trouble = repr(error)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self.trouble, self.trouble


def test_a_reload_takes_everything_over_and_drops_no_connection(tmp_path: Path) -> None:
    with NextHop() as old, NextHop() as new, Node(tmp_path, f"127.0.0.1:{old.port}", settings=QUICK) as node:
        node.add_pipeline("slow@example.test", "[[step]]\nuse = 'hold'\n")
        text = node.config.read_text()
        with Stream(node.port) as stream, socket.create_connection(("127.0.0.1", node.port)) as idle:
            assert idle.recv(100).startswith(b"220")
            until(lambda: stream.sent > 20)
            extra = free_port()
            changed = text.replace(f":{old.port}", f":{new.port}")
            changed += f'\n[[listener]]\nbind = "127.0.0.1:{extra}"\nmessage_size = "20kB"\n[hold]\nexpires = "1s"\n'
            node.config.write_text(changed)
            for _ in range(20):
                assert said(node, "reload") == {"restart": []}
            until(lambda: len(new.parcels) > 20, node=node)
            send(extra, subject="second listener")
            with pytest.raises(smtplib.SMTPSenderRefused), smtplib.SMTP("127.0.0.1", extra) as client:
                client.sendmail("a@b", ["c@d"], b"x" * 30_000)
            send(node.port, "slow@example.test", subject="held shortly")
            until(lambda: any(b"held shortly" in parcel.data for parcel in new.parcels), node=node)
            before = stream.sent
            until(lambda: stream.sent > before + 20)
            idle.sendall(b"NOOP\r\n")
            assert idle.recv(100).startswith(b"250")
            # And back: the second listener goes, what is under way there ends first.
            node.config.write_text(text)
            assert node.process is not None
            node.process.send_signal(signal.SIGHUP)
            until(lambda: node.log.read_text().count('"event":"configured"') == 21, node=node)
            until(lambda: not _open(extra))
        until(lambda: not queue(node), node=node)
        # The idle session and the other listener's were told; nothing was lost on the way.
        assert len(old.parcels) + len(new.parcels) == stream.sent + 2
        assert node.run("audit", check=False).returncode == 0


def _open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_wrong_configuration_changes_nothing_and_is_seen(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        text = node.config.read_text()
        assert health(node, "configuration")["status"] == "healthy"
        node.config.write_text(text + "\n[nodes]\n")
        assert "did you mean 'node'" in said(node, "reload", code=2)["errors"][0]
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        until(lambda: '"event":"configuration_refused"' in node.log.read_text(), node=node)
        found = health(node, "configuration")
        assert found["status"] == "degraded"
        assert "did you mean 'node'" in found["cause"]
        # A port that somebody else has: all or nothing.
        with socket.create_server(("127.0.0.1", free_port())) as taken:
            bind = f"127.0.0.1:{taken.getsockname()[1]}"
            free = free_port()
            node.config.write_text(text + f'[[listener]]\nbind = "127.0.0.1:{free}"\n[[listener]]\nbind = "{bind}"\n')
            assert "choose another address" in said(node, "reload", code=75)["errors"][0]
            assert not _open(free)
        send(node.port)
        until(lambda: hop.parcels, node=node)
        node.config.write_text(text + f'[database]\nurl = "sqlite:///{tmp_path}/other.db"\n')
        assert said(node, "reload") == {"restart": ["database.url"]}
        assert health(node, "configuration")["status"] == "healthy"


def test_the_log_level_changes_and_comes_back(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node, Stream(node.port) as stream:
        assert said(node, "node", "log-level", "error", "--for", "1s") == {"was": "info", "level": "error"}
        quiet = node.log.read_text()
        until(lambda: '"now":"info"' in node.log.read_text(), node=node)
        after = node.log.read_text().partition('"now":"info"')[0].removeprefix(quiet)
        assert '"accepted"' not in after
        before = stream.sent
        until(lambda: stream.sent > before + 10)
        until(lambda: '"accepted"' in node.log.read_text().partition('"now":"info"')[2], node=node)
        assert "none of debug" in said(node, "node", "log-level", "loud", code=4)["errors"][0]


def test_a_node_is_drained_and_takes_mail_again(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        hop.delay = 1.0
        send(node.port)
        assert said(node, "node", "drain") == {"on_the_way": 1}
        assert not _open(node.port)
        status, causes = ready(node)
        assert status == 503
        assert "node resume" in causes["intake"]
        assert said(node, "node", "drain", "--wait", "20s") == {"on_the_way": 0}
        assert len(hop.parcels) == 1
        told = said(node, "node", "status")
        assert told["draining"]
        assert told["listening"].keys() == {"web"}
        said(node, "node", "resume")
        send(node.port)
        until(lambda: len(hop.parcels) == 2, node=node)
        assert ready(node)[0] == 200
        assert "smtp filter" in node.run("node", "status").stdout


def test_no_node_runs(tmp_path: Path) -> None:
    node = Node(tmp_path, "127.0.0.1:1")
    for line in (("reload",), ("node", "status"), ("node", "drain")):
        assert "no node runs" in said(node, *line, code=75)["errors"][0]


def test_too_much_memory_and_a_spool_that_does_not_move(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        text = node.config.read_text()
        with smtplib.SMTP("127.0.0.1", node.port) as client:
            client.ehlo("c")
            node.config.write_text(text.replace("[node]", '[node]\nmax_memory = "1MB"'))
            said(node, "reload")
            until(lambda: '"event":"overloaded"' in node.log.read_text(), node=node)
            code, words = client.mail("a@example.org")
            assert (code, words[:5]) == (421, b"4.3.2")
        with pytest.raises(smtplib.SMTPConnectError, match="too much to do"):
            send(node.port)
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"http://127.0.0.1:{node.web}/readyz", timeout=10)
        with answer.value as refused:
            assert (refused.code, refused.headers["Retry-After"]) == (503, "10")
        assert "node.max_memory = 1000000" in ready(node)[1]["load"]
        node.config.write_text(text)
        said(node, "reload")
        until(lambda: '"event":"overload_over"' in node.log.read_text(), node=node)
        send(node.port)
        until(lambda: hop.parcels, node=node)


def test_the_control_socket_is_private_and_takes_rubbish(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        path = node.data / "control"
        assert path.stat().st_mode & 0o777 == 0o600
        os.chdir(node.data)
        for rubbish in (b"", b"\n", b"[]\n", b"{}\n", b'{"do": "nothing"}\n', b"\xff\n", b"x" * 2_000_000):
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(5)
                line.connect("control")
                try:
                    line.sendall(rubbish)
                    line.shutdown(socket.SHUT_WR)
                    answer = line.recv(10_000)
                except OSError:
                    answer = b""
                assert b'"error"' in answer or not answer
        os.chdir("/")
        assert said(node, "node", "status")["connections"] == 0


# Orders


def state(node: Node, word: str) -> list[str]:
    rows = said(node, "message", "list", word)
    return [row["state"] for row in rows]


def test_mail_is_suspended_and_goes_on(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        told = said(node, "queue", "suspend", "to:ann@", "--reason", "full disk", "--ttl", "1h")
        assert (told["order"], told["deliveries"], told["node_told"]) == (1, 0, True)
        until(lambda: node.log.read_text().count('"event":"reloaded"') >= 1, node=node)
        send(node.port, "ann@example.test", "bob@example.test")
        until(lambda: len(hop.parcels) == 1, node=node)
        assert [r.address for r in hop.parcels[0].envelope.recipients] == ["bob@example.test"]
        until(lambda: queue(node) and queue(node)[0]["reply"], node=node)
        (row,) = queue(node)
        assert row["reply"] == "suspended by order 1: full disk"
        assert row["attempts"] == 0
        (order,) = said(node, "queue", "orders")
        assert (order["kind"], order["words"], order["reason"]) == ("suspend", "to:ann@", "full disk")
        node.stop()
        node.start()  # it holds over a restart
        send(node.port, "ann@example.test")
        until(lambda: len([row for row in queue(node) if row["reply"]]) == 2, node=node)
        assert said(node, "queue", "cancel", "1") == {"ended": [1], "resumed": 2, "node_told": True}
        until(lambda: len(hop.parcels) == 3, node=node)
        assert "no order 1" in said(node, "queue", "cancel", "1", code=3)["errors"][0]
        words = node.run("message", "explain", str(row["id"])).stdout
        assert "with order 1, because full disk." in words
        # One that nobody ends, ends.
        said(node, "queue", "suspend", "--ttl", "2s")
        until(lambda: node.log.read_text().count('"event":"reloaded"') >= 3, node=node)
        send(node.port, "ann@example.test")
        assert said(node, "queue", "resume", "--json")["ended"] in ([2], [])
        until(lambda: len(hop.parcels) == 4, node=node)
        assert node.run("audit", check=False).returncode == 0


def test_mail_is_bounced_and_dropped(tmp_path: Path) -> None:
    with (
        NextHop() as hop,
        Node(tmp_path, f"127.0.0.1:{hop.port}", settings={"next_hop": {"first_retry": "1h"}}) as node,
    ):
        hop.answer = lambda data: Reply(450, "4.2.1", "busy") if b"report" not in data else Reply(250, "2.0.0", "Ok")
        for to in ("ann@example.test", "bob@example.test", "carol@example.test"):
            send(node.port, to)
        until(lambda: all(row["attempts"] for row in queue(node)) and len(queue(node)) == 3, node=node)
        would = said(node, "queue", "drop", "to:bob", "--reason", "spam run", "--dry-run")
        assert [row["recipient"] for row in would] == ["bob@example.test"]
        assert said(node, "queue", "orders") == []
        assert said(node, "queue", "drop", "to:bob", "--reason", "spam run")["deliveries"] == 1
        assert said(node, "queue", "bounce", "to:ann", "--reason", "no such office")["deliveries"] == 1
        until(lambda: [row["recipient"] for row in queue(node)] == ["carol@example.test"], node=node)
        (report,) = hop.parcels
        assert b"no such office" in report.data
        until(lambda: state(node, "to:bob@") == ["discarded"], node=node)
        until(lambda: state(node, "to:ann@") == ["bounced"], node=node)
        # They hold for what comes, until their time is over.
        send(node.port, "bob@example.test")
        until(lambda: state(node, "to:bob@") == ["discarded"] * 2, node=node)
        # Too much was dropped: it comes back.
        dropped = said(node, "message", "list", "to:bob@")[0]["id"]
        for order in said(node, "queue", "orders"):
            said(node, "queue", "cancel", str(order["order"]))
        hop.answer = lambda data: Reply(250, "2.0.0", "Ok")
        assert said(node, "message", "requeue", dropped, "--reason", "a mistake")[0]["result"] == "requeued"
        until(lambda: len(hop.parcels) == 2, node=node)
        assert hop.parcels[1].envelope.recipients[0].address == "bob@example.test"
        words = node.run("message", "explain", dropped).stdout
        assert "Dropped by" in words
        assert "because a mistake" in words
        assert said(node, "queue", "flush", "to:carol")["flushed"] == 1
        until(lambda: len(hop.parcels) == 3, node=node)
        assert node.run("queue", "drop", "--reason", "x", check=False).returncode == 2
        assert "subject" in said(node, "queue", "drop", "subject:x", "--reason", "x", code=2)["errors"][0]
        assert node.run("audit", check=False).returncode == 0


def test_what_is_in_the_queue_can_be_seen(tmp_path: Path) -> None:
    with (
        NextHop() as hop,
        Node(tmp_path, f"127.0.0.1:{hop.port}", settings={"next_hop": {"first_retry": "1h"}}) as node,
    ):
        hop.answer = lambda data: Reply(450, "4.2.1", "busy")
        for n in range(3):
            send(node.port, f"ann{n}@one.example", subject=f"number {n}")
        send(node.port, "bob@two.example", subject="other")
        until(lambda: all(row["attempts"] for row in queue(node)) and len(queue(node)) == 4, node=node)
        top = said(node, "queue", "top")
        assert [(row["domain"], row["deliveries"]) for row in top] == [("one.example", 3), ("two.example", 1)]
        assert said(node, "queue", "top", "--by", "answer")[0]["deliveries"] == 4
        assert node.run("queue", "top", "--by", "colour", check=False).returncode == 2
        (row,) = said(node, "queue", "list", "subject:number 1")
        shown = said(node, "queue", "show", row["id"])
        assert shown["recipient"] == "ann1@one.example"
        assert "450 4.2.1 busy" in shown["timeline"][-1]["text"]
        assert "450 4.2.1 busy" in node.run("queue", "show", row["id"]).stdout
        assert said(node, "queue", "show", "0000000000000.0", code=3)


def test_a_message_can_be_had_sent_again_and_sent_on(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "lists"\ndeny = ["spam.example"]\n')
        body = b"x" * 400_000 + b"\r\n"
        send(node.port, "ann@example.test", sender="joe@spam.example", subject="large", body=body)
        send(node.port, "plain@example.test", subject="not recorded")
        until(lambda: state(node, "to:ann@") == ["bounced"] and state(node, "to:plain") == ["delivered"], node=node)
        (row,) = said(node, "message", "list", "to:ann@")
        raw = node.run("message", "raw", row["id"]).stdout
        assert raw.startswith("Subject: large")
        assert len(raw) > 400_000
        target = tmp_path / "out.eml"
        assert said(node, "message", "raw", row["id"], "--output", str(target))["size"] == target.stat().st_size
        count = len(hop.parcels)
        assert said(node, "message", "requeue", row["id"])[0]["result"] == "requeued"
        until(lambda: state(node, "to:ann@") == ["bounced"] * 2, node=node)  # its pipeline was asked again
        assert said(node, "message", "requeue", row["id"], "--unfiltered")[0]["result"] == "requeued"
        until(lambda: sorted(state(node, "to:ann@")) == ["bounced", "bounced", "delivered"], node=node)
        assert said(node, "message", "forward", row["id"], "--to", "boss@example.test", "--reason", "look")
        until(lambda: state(node, "to:boss") == ["delivered"], node=node)
        assert len(hop.parcels) == count + 3  # a report, and two with the content
        assert hop.parcels[-1].data.endswith(body)
        (plain,) = said(node, "message", "list", "to:plain")
        assert "not kept" in said(node, "message", "raw", plain["id"], code=3)["errors"][0]
        assert "not kept" in said(node, "message", "requeue", plain["id"], code=3)[0]["result"]
        assert said(node, "message", "requeue", "0000000000000.0", code=3)
        assert "no mail address" in said(node, "message", "forward", row["id"], "--to", "x", code=2)["errors"][0]
        assert node.run("audit", check=False).returncode == 0


def test_much_is_released_deleted_and_answered_at_once(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "quarantine"\n')
        node.add_pipeline("bob@example.test", '[[step]]\nuse = "hold"\n')
        for n in range(6):
            send(node.port, "ann@example.test", "bob@example.test", subject=f"{'shop' if n % 2 else 'friend'} {n}")
        until(lambda: len(said(node, "quarantine", "list")) == 6 == len(said(node, "hold", "list")), node=node)
        would = said(node, "quarantine", "release", "--where", "subject:friend", "--dry-run")
        assert len(would) == 3
        assert not hop.parcels
        assert len(said(node, "quarantine", "release", "--where", "subject:friend")) == 3
        assert {row["result"] for row in said(node, "quarantine", "delete", "--where", "subject:shop")} == {"deleted"}
        assert len(said(node, "hold", "answer", "pass", "--where", "subject:friend", "--reason", "known")) == 3
        until(lambda: len(hop.parcels) == 6, node=node)
        assert said(node, "quarantine", "list") == []
        assert len(said(node, "hold", "list", "subject:shop")) == 3
        for line in (("release",), ("release", "0000000000000.0", "--where", "x")):
            assert node.run("quarantine", *line, check=False).returncode == 2
        assert said(node, "quarantine", "release", "--where", "subject:none") == []
        # What was deleted can be had back.
        (deleted, *_) = said(node, "message", "list", "user:ann@example.test", "state:discarded")
        assert said(node, "message", "requeue", deleted["id"], "--unfiltered")[0]["result"] == "requeued"
        until(lambda: len(hop.parcels) == 7, node=node)
        assert node.run("audit", check=False).returncode == 0


def test_two_people_at_once(tmp_path: Path) -> None:
    """Of two who release the same mail one does, and there is one copy."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "quarantine"\n')
        send(node.port, "ann@example.test")
        until(lambda: said(node, "quarantine", "list"), node=node)
        id_ = said(node, "quarantine", "list")[0]["id"]
        lines = [node.line("quarantine", "release", id_) for _ in range(3)] + [node.line("quarantine", "delete", id_)]
        processes = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for line in lines]
        codes = sorted(process.wait(30) for process in processes)
        assert codes == [0, 4, 4, 4]
        until(lambda: not said(node, "quarantine", "list") and not queue(node), node=node)
        assert len(hop.parcels) <= 1
        assert node.run("audit", check=False).returncode == 0


# What a hostile reading found once


def test_an_order_is_about_what_it_said(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=PATIENT) as node:
        hop.answer = lambda data: Reply(450, "4.2.1", "busy")
        for subject in ("one", "two", "three"):
            send(node.port, "bob@example.test", subject=subject)
        until(lambda: len(queue(node)) == 3 and all(row["attempts"] for row in queue(node)), node=node)
        ids = {str(row["subject"]): str(row["id"]) for row in queue(node)}
        line = ("queue", "drop", "--reason", "x")
        assert "say where to look" in said(node, *line, "-one", code=2)["errors"][0]
        assert "about all mail" in said(node, *line, "", code=4)["errors"][0]
        assert said(node, *line, f"id:{ids['one']}")["deliveries"] == 1
        until(lambda: len(queue(node)) == 2, node=node)
        assert said(node, *line, "to:bob", f"-id:{ids['two']}")["deliveries"] == 1
        until(lambda: [row["subject"] for row in queue(node)] == ["two"], node=node)
        said(node, "queue", "flush")
        until(lambda: queue(node)[0]["attempts"] == 2, node=node)


def test_an_order_holds_for_what_is_in_hand_however_long_that_takes(tmp_path: Path) -> None:
    settings = {"next_hop": {"first_retry": "1s", "last_retry": "1s", "content_timeout": "60s", "connections": 1}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        hop.delay, hop.answer = 4.0, lambda data: Reply(450, "4.2.1", "busy")
        for n in range(3):
            send(node.port, f"bob{n}@example.test", "same@example.test")
        until(lambda: len(queue(node)) == 6, node=node)
        said(node, "queue", "drop", "to:bob", "--reason", "x", "--ttl", "1s")
        until(lambda: all("same" in str(row["recipient"]) for row in queue(node)), 40, node)
        until(lambda: said(node, "queue", "orders") == [], node=node)


def test_a_cancelled_order_holds_nothing_back(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=PATIENT) as node:
        with Stream(node.port) as stream:
            for number in (1, 2, 3):
                said(node, "queue", "suspend", "--ttl", "5d", "--reason", "full")
                before = stream.sent
                until(lambda: stream.sent > before + 100)  # noqa: B023
                said(node, "queue", "cancel", str(number))
        until(lambda: not queue(node), node=node)
        assert len(hop.parcels) == stream.sent


def test_one_report_for_all_recipients_of_a_message(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=PATIENT) as node:
        hop.answer = lambda data: Reply(250, "2.0.0", "Ok") if b"report" in data else Reply(450, "4.2.1", "busy")
        send(node.port, *(f"u{n}@example.test" for n in range(5)))
        until(lambda: len(queue(node)) == 5 and all(row["attempts"] for row in queue(node)), node=node)
        said(node, "queue", "bounce", "to:u", "--reason", "closed")
        until(lambda: not queue(node), node=node)
        (report,) = hop.parcels
        assert report.data.count(b"Final-Recipient") == 5


def test_what_was_dropped_can_be_had_back_whoever_ended_later(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=PATIENT) as node:
        hop.answer = lambda data: Reply(450, "4.2.1", "busy")
        send(node.port, "ann@example.test", "bob@example.test")
        until(lambda: len(queue(node)) == 2 and all(row["attempts"] for row in queue(node)), node=node)
        said(node, "queue", "drop", "to:ann@", "--reason", "mistake")
        until(lambda: len(queue(node)) == 1, node=node)
        hop.answer = lambda data: Reply(250, "2.0.0", "Ok")
        said(node, "queue", "flush")
        until(lambda: not queue(node), node=node)
        for order in said(node, "queue", "orders"):
            said(node, "queue", "cancel", str(order["order"]))
        (row,) = said(node, "message", "list", "to:ann@")
        assert said(node, "message", "requeue", row["id"])[0]["result"] == "requeued"
        until(lambda: len(hop.parcels) == 2, node=node)
        until(lambda: not queue(node), node=node)
        # Nobody gets it a second time by mistake.
        assert "--again" in said(node, "message", "requeue", row["id"], code=4)[0]["result"]
        assert said(node, "message", "requeue", row["id"], "--again")[0]["result"] == "requeued"
        until(lambda: len(hop.parcels) == 3, node=node)
        assert node.run("audit", check=False).returncode == 0


def test_orders_hold_before_the_queue_too(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", mode="proxy", settings=QUICK) as node:
        said(node, "queue", "suspend", "to:joe@", "--reason", "full")
        send(node.port, "joe@example.test")
        send(node.port, "bob@example.test")
        until(lambda: queue(node) and queue(node)[0]["reply"], node=node)
        assert [parcel.envelope.recipients[0].address for parcel in hop.parcels] == ["bob@example.test"]


def test_a_reload_saves_mail_from_a_broken_next_hop(tmp_path: Path) -> None:
    """A next hop that says nothing keeps its connections for their timeouts; what waits goes to the new one at once."""
    settings = {"next_hop": {"command_timeout": "60s", "connections": 2}}

    def silent(connection: socket.socket) -> None:
        connection.sendall(b"220 hi\r\n")
        while connection.recv(4096):
            pass

    with Rude(silent) as bad, NextHop() as good, Node(tmp_path, f"127.0.0.1:{bad.port}", settings=settings) as node:
        for n in range(60):
            send(node.port, subject=f"number {n}")
        until(lambda: bad.connections == 2, node=node)
        node.config.write_text(node.config.read_text().replace(f":{bad.port}", f":{good.port}"))
        said(node, "reload")
        until(lambda: len(good.parcels) >= 58, 20, node)
        node.kill()


def test_a_message_that_is_coming_in_is_finished_before_the_listener_goes(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        client = smtplib.SMTP("127.0.0.1", node.port)
        client.ehlo("c")
        client.mail("a@example.org")
        client.rcpt("joe@example.test")
        client.docmd("DATA")
        client.send(b"Subject: half\r\n\r\n")
        said(node, "node", "drain")
        client.send(b"and the rest\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert client.getreply()[0] == 421
        client.close()
        until(lambda: any(b"and the rest" in parcel.data for parcel in hop.parcels), node=node)
        # A port that somebody took meanwhile: the node says that it takes no mail.
        with socket.create_server(("127.0.0.1", node.port)):
            assert "choose another address" in said(node, "node", "resume", code=75)["errors"][0]
            assert said(node, "node", "status")["draining"]
            assert ready(node)[0] == 503
        said(node, "node", "resume")
        assert ready(node)[0] == 200


def test_commands_from_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        gone = tmp_path / "gone"
        gone.mkdir()
        script = f"import os, subprocess, sys\nos.chdir({str(gone)!r})\nos.rmdir({str(gone)!r})\n"
        script += f"sys.exit(subprocess.call({node.line('node', 'status')!r}))\n"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_dialog_is_shown_and_its_content_is_not(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as early:
            assert early.recv(100)
            line = node.line("message", "trace", "--from", "joe@", "--for", "4s", "--json")
            tracing = subprocess.Popen(line, stdout=subprocess.PIPE)
            until(lambda: _traced(node), node=node)
            send(node.port, sender="joe@example.org", body=b"a secret\r\n")
            send(node.port, sender="ann@example.org")
            early.sendall(b"EHLO early\r\nMAIL FROM:<joe@early.example>\r\n")
            assert b"250 2.1.0" in early.recv(1000) + early.recv(1000)
            out, _ = tracing.communicate(timeout=30)
        lines = json.loads(out)
        said_by = [f"{line['who']}: {line['text']}" for line in lines]
        assert "S: 220 switch.example.test ESMTP SendSwitch" in said_by
        assert "C: MAIL FROM:<JOE@EXAMPLE.ORG>" in [text.upper().partition(" SIZE=")[0] for text in said_by]
        assert any(text.startswith("S: 250 2.0.0 Ok: queued as") for text in said_by)
        assert "C: MAIL FROM:<joe@early.example>" in said_by
        assert "secret" not in str(lines)
        assert "ann@" not in str(lines)
        assert len({line["session"] for line in lines}) >= 2
        assert "no listener" in said(node, "message", "trace", "--listener", "127.0.0.1:1", code=3)["errors"][0]


def _traced(node: Node) -> bool:
    """Whether somebody listens: a session's line is told then."""
    told = control.ask(node.data, "trace")
    with smtplib.SMTP("127.0.0.1", node.port) as client:
        client.ehlo("x")
        client.mail("joe@probe")
    after = control.ask(node.data, "trace")
    return told != after
