"""A running node is told what to do: reload, drain, log level, trace; and what happens when that is wrong."""

from __future__ import annotations

import json
import resource
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sendswitch.admin import node as admin_node
from sendswitch.admin.base import Actor
from sendswitch.bench.peers import Node, free_port
from sendswitch.client import OverSocket
from tests.e2e.next_hop import NextHop, Rude
from tests.e2e.steps import QUICK, Stream, overloaded, queue, ready, said, send, until


def health(node: Node, check: str) -> dict[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/healthz?check={check}", timeout=10) as answer:
        found: dict[str, str] = json.loads(answer.read())["checks"][0]
        return found


def test_a_reload_takes_everything_over_and_drops_no_connection(tmp_path: Path) -> None:
    with NextHop() as old, NextHop() as new, Node(tmp_path, f"127.0.0.1:{old.port}", settings=QUICK) as node:
        node.add_pipeline("slow@example.test", "[[step]]\nuse = 'hold'\n")
        text = node.config.read_text()
        with Stream(node.port) as stream, socket.create_connection(("127.0.0.1", node.port)) as idle:
            assert idle.recv(100).startswith(b"220")
            until(lambda: stream.sent > 20)
            extra = free_port()
            changed = text.replace(f":{old.port}", f":{new.port}")
            changed += f'\n[[listener]]\nbind = "127.0.0.1:{extra}"\nmessage_size = "20kB"\n'
            changed += '[hold]\nexpires = "1s"\nthen = "pass"\n'
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


def test_an_edited_file_is_read_again_where_that_was_asked_for(tmp_path: Path) -> None:
    with NextHop() as hop:
        node = Node(tmp_path, f"127.0.0.1:{hop.port}", options=("--reload",))
        with node:
            text = node.config.read_text()
            node.config.write_text(text + "[tags]\nsubject = { SPAM = '[S] ' }\n[nonsense]\n")
            until(lambda: "nonsense" in node.log.read_text(), node=node)
            (tmp_path / "conf.d").mkdir()
            (tmp_path / "conf.d" / "more.toml").write_text("[tags]\nsubject = { SPAM = '[S] ' }\n")
            node.config.write_text(text)
            node.add_pipeline("joe@example.test", "[[step]]\nuse = 'tag'\ntags = ['SPAM']\n")
            until(lambda: '"event":"configured"' in node.log.read_text(), node=node)
            send(node.port, "joe@example.test", subject="hello")
            until(lambda: hop.parcels, node=node)
            assert b"Subject: [S] hello" in hop.parcels[0].data


def test_ready_waits_and_says_why_not(tmp_path: Path) -> None:
    with NextHop() as hop:
        node = Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK)
        assert "web.bind" in said(node, "node", "ready", code=75)["errors"][0]
        waiting = subprocess.Popen(node.line("node", "ready", "--wait", "20s"), stdout=subprocess.PIPE)
        with node:
            assert waiting.communicate(timeout=30)[0] == b"ready\n"
            assert said(node, "node", "ready") == {"ready": True}
    # Somebody else has the port.
    with socket.create_server(("127.0.0.1", node.web)) as other:

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 503 No\r\n\r\n<html>")

        answering = threading.Thread(target=answer)
        answering.start()
        assert "not ready" in said(node, "node", "ready", code=75)["errors"][0]
        answering.join()


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
    patient = {"next_hop": QUICK["next_hop"] | {"command_timeout": "20s", "content_timeout": "20s"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=patient) as node:
        hop.delay = 4.0
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
        with smtplib.SMTP("127.0.0.1", node.port) as client:
            client.ehlo("c")
            with overloaded(node):
                code, words = client.mail("a@example.org")
                assert (code, words[:5]) == (421, b"4.3.2")
                with pytest.raises(smtplib.SMTPConnectError, match="too much to do"):
                    send(node.port)
                with pytest.raises(urllib.error.HTTPError) as answer:
                    urllib.request.urlopen(f"http://127.0.0.1:{node.web}/readyz", timeout=10)
                with answer.value as refused:
                    assert (refused.code, refused.headers["Retry-After"]) == (503, "10")
                assert "node.max_memory = 1000000" in ready(node)[1]["load"]
        send(node.port)
        until(lambda: hop.parcels, node=node)


def test_what_works_beside_the_mail_is_begun_again(tmp_path: Path) -> None:
    """Without file descriptors the watcher of the load cannot look; with them it must be there again."""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        assert node.process is not None
        before = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        until(lambda: '"event":"background_failed","part":"overload"' in node.log.read_text(), node=node)
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, before)
        with overloaded(node):
            pass
        send(node.port)
        until(lambda: hop.parcels, node=node)
        found = health(node, "background")
        assert "overload: OSError" in found["cause"]
        with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/metrics", timeout=10) as answer:
            assert b'sendswitch_background_failures_total{part="overload"}' in answer.read()


def test_the_control_socket_is_private_and_takes_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        path = node.data / "control"
        assert path.stat().st_mode & 0o777 == 0o600
        monkeypatch.chdir(node.data)  # where its name is short enough for a socket
        post = b"POST /api/v1/queue:flush HTTP/1.1\r\nHost: x\r\nContent-Length: "
        for rubbish in (b"", b"\n", b"\xff\n", b"x" * 2_000_000, post + b"3\r\n\r\n[1]", post + b"1\r\n\r\n{"):
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(5)
                line.connect("control")
                try:
                    line.sendall(rubbish)
                    line.shutdown(socket.SHUT_WR)
                    answer = line.recv(10_000)
                except OSError:
                    answer = b""
                assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 422"), answer
        assert said(node, "node", "status")["connections"] == 0


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
            answered = b""
            while b"250 2.1.0" not in answered:  # in one piece or in two
                piece = early.recv(1000)
                assert piece
                answered += piece
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
    asking = OverSocket(node.data, Actor("test"))
    before = asking.call(admin_node.trace)
    with smtplib.SMTP("127.0.0.1", node.port) as client:
        client.ehlo("x")
        client.mail("joe@probe")
    return before != asking.call(admin_node.trace)
