"""What people find out about their mail with one command: `message list`, `timeline`, `explain`."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node, free_port
from sendswitch.reply import Reply
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, queue, send, until

LISTS = """
[[step]]
use = "tag"
tags = ["SEEN"]
[[step]]
use = "lists"
deny = ["spam.example"]
"""


def run(node: Node, *arguments: str) -> Any:
    done = node.run("message", *arguments, "--json", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def listed(node: Node, *words: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run(node, "list", *words)
    return rows


@pytest.fixture
def busy(tmp_path: Path, database: str) -> Iterator[Node]:
    """A node that has passed, denied, deferred and forwarded mail, its journal in each kind of database."""
    settings = QUICK | {"database": {"url": database}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        hop.refuse = {"later@example.test": Reply(450, "4.2.1", "busy")}
        node.add_pipeline("ann@example.test", LISTS)
        node.add_pipeline("carol@example.test", '[[step]]\nuse = "forward"\nto = ["dave@example.test"]\n')
        node.add_pipeline("quar@example.test", '[[step]]\nuse = "quarantine"\nreason = "looks odd"\n')
        send(node.port, "ann@example.test", "joe@example.test", subject="=?utf-8?q?Gr=C3=BC=C3=9Fe?=")
        send(node.port, "ann@example.test", subject="buy now", sender="loud@spam.example")
        send(node.port, "later@example.test", subject="patience")
        send(node.port, "carol@example.test", subject="round")
        send(node.port, "quar@example.test", subject="odd")
        until(lambda: len(listed(node)) >= 7, node=node)
        until(lambda: not listed(node, "state:accepted", "-to:later") and not listed(node, "state:decided"), node=node)
        yield node


def test_what_became_of_a_mail(busy: Node) -> None:
    (row,) = listed(busy, "to:ann", "subject:grüße")
    assert row["subject"] == "Grüße"
    assert (row["state"], row["verdict"], row["tags"]) == ("delivered", "pass", ["SEEN"])
    (denied,) = listed(busy, "from:spam.example", "verdict:deny")
    assert denied["state"] in ("bounced", "quarantined")
    assert denied["processor"] == "lists"
    assert "deny list" in denied["reason"]
    (waiting,) = listed(busy, "to:later")
    assert "4.2.1 busy" in waiting["last_answer"]
    assert {row["to"] for row in listed(busy, "subject:round", "state:delivered")} == {"dave@example.test"}
    assert [row["to"] for row in listed(busy, "tag:seen", "-verdict:deny")] == ["ann@example.test"]
    table = busy.run("message", "list", "subject:patience").stdout
    assert "later@example.test" in table

    (told,) = run(busy, "explain", denied["id"])
    words = " ".join(told["sentences"])
    assert "Accepted after the queue" in words
    assert "from <loud@spam.example>" in words
    assert "Step 1: tag" in words
    assert "Step 2: lists" in words
    assert "The verdict was DENY" in words
    assert [step["processor"] for step in told["steps"]] == ["tag", "lists"]
    text = busy.run("message", "explain", denied["id"]).stdout
    assert text.startswith(f"{denied['id']} for ann@example.test: {denied['state']}")

    message = waiting["id"].partition(".")[0]
    lines = run(busy, "timeline", message)
    assert lines[0]["event"] == "accepted"
    assert "450 4.2.1 busy" in lines[1]["text"]
    (moved,) = (one for one in run(busy, "explain", listed(busy, "to:dave")[0]["id"]))
    assert "came here by a forward" in " ".join(moved["sentences"])


@pytest.mark.parametrize("size", [100, 400_000], ids=["in memory", "in a file"])
def test_mail_is_found_by_what_stands_in_it(tmp_path: Path, size: int) -> None:
    mail = EmailMessage()
    mail["To"], mail["Cc"], mail["Reply-To"] = "Joe <joe@example.test>", "carol@example.org", "desk@example.org"
    mail.set_content("see the bill\n")
    mail.add_attachment(b"x" * size, "application", "pdf", filename="bill.pdf")
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        with smtplib.SMTP("127.0.0.1", node.port, timeout=20) as client:
            client.send_message(mail, "shop@example.org", ["joe@example.test", "blind@example.test"])
        send(node.port, subject="nothing attached")
        until(lambda: len(listed(node)) == 3, node=node)
        assert len(listed(node, "has:attachment", "cc:carol", "reply-to:desk")) == 2
        assert [row["to"] for row in listed(node, "bcc:example.test", "has:attachment")] == ["blind@example.test"]
        assert listed(node, "has:inline") == []


def test_a_person_s_doing_is_told(busy: Node) -> None:
    (row,) = listed(busy, "state:quarantined", "to:quar")
    assert busy.run("quarantine", "release", row["id"]).returncode == 0
    until(lambda: listed(busy, "to:quar", "state:delivered"), node=busy)
    words = " ".join(run(busy, "explain", row["id"])[0]["sentences"])
    assert "Quarantined: looks odd." in words
    assert "Released by" in words


def test_the_story_in_the_docs_is_what_the_command_tells(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()
    example = page.partition("$ sendswitch message explain")[2].partition("```")[0]
    line = [sys.executable, "-m", "sendswitch.cli.main"]
    demo = [*line, "demo", "--once", "--data", str(tmp_path)]
    subprocess.run(demo, check=True, capture_output=True)
    config = tmp_path / "sendswitch.toml"
    config.write_text(f'[node]\ndata = "{tmp_path}/data"\n')
    line += ["--config", str(config), "message"]
    found = subprocess.run([*line, "list", "from:win", "--json"], check=True, capture_output=True, text=True).stdout
    (row,) = json.loads(found)
    told = subprocess.run([*line, "explain", row["id"]], check=True, capture_output=True, text=True).stdout

    def comparable(text: str) -> list[str]:
        lines = [re.sub(r"\d+\.\d+ ms", "N ms", line) for line in text.splitlines()]
        return [line for line in lines if line.startswith("  ")]

    assert comparable(told) == comparable(example)


@pytest.mark.parametrize(
    ("what", "state"),
    [("pass", "delivered"), ("deny", "bounced"), ("quarantine", "quarantined"), ("discard", "discarded")],
)
def test_held_mail_is_answered_once(what: str, state: str, tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "tag"\ntags = ["T"]\n[[step]]\nuse = "hold"\n')

        def held() -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = json.loads(node.run("hold", "list", "--json").stdout)
            return rows

        send(node.port, "ann@example.test")
        until(held, node=node)
        id_ = held()[0]["id"]
        line = ("hold", "answer", what, id_, "0000000000000.0", "--reason", "seen it")
        done = node.run(*line, "--json", check=False)
        assert done.returncode == 3
        assert [row["result"] == "answered" for row in json.loads(done.stdout)] == [True, False]
        until(lambda: listed(node, f"id:{id_}", f"state:{state}"), node=node)
        assert node.run(*line, check=False).returncode == 4
        assert not held()
        words = " ".join(run(node, "explain", id_)[0]["sentences"])
        assert f"Answered {what.upper()} by" in words
        assert ", because seen it." in words
        if what == "pass":
            assert b"X-SendSwitch-Tags: T" in hop.parcels[0].data
        assert node.run("audit", check=False).returncode == 0


def test_without_the_database_the_spool_still_knows(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        send(node.port)
        until(lambda: not queue(node), node=node)
        (row,) = listed_when_there(node)
        node.kill()
        config = node.config.read_text()
        away = f'\n[database]\nurl = "postgresql+psycopg://x:y@127.0.0.1:{free_port()}/x"\n'
        node.config.write_text(config + away)
        done = node.run("message", "list", check=False)
        assert done.returncode == 75
        assert "cannot be opened" in done.stderr
        assert "x:y" not in done.stderr
        (told,) = run(node, "explain", row["id"])
        assert told["state"] == "delivered"


def listed_when_there(node: Node) -> list[dict[str, Any]]:
    until(lambda: listed(node), node=node)
    return listed(node)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("explain", "nonsense"), 3, "no message matches"),
        (("timeline", "nonsense"), 3, "no message id"),
        (("explain", "0000000000000"), 3, "nothing is known"),
        (("timeline", "0000000000000.x"), 3, "recipient's number"),
        (("list", "colour:red"), 2, "known are from"),
        (("list", "larger:huge"), 2, "is not a size"),
        (("list", "before:whenever"), 2, "is not a duration"),
        (("list", "id:zz"), 2, "no message id"),
    ],
)
def test_what_is_not_there_or_means_nothing(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    node = Node(tmp_path, "127.0.0.1:1")
    node.run("user", "add", "ann@example.test")  # makes the database
    done = node.run("message", *arguments, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr


def test_a_journal_with_nothing_in_it(tmp_path: Path) -> None:
    node = Node(tmp_path, "127.0.0.1:1")
    assert "is not there yet" in node.run("message", "list", check=False).stderr
    node.run("user", "add", "ann@example.test")
    assert "no mail yet" in node.run("message", "list").stdout
    assert "no message matches" in node.run("message", "list", "from:x").stdout
    assert run(node, "list", "from:x") == []


def test_a_message_is_shown_decoded(tmp_path: Path) -> None:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = (
        "J\u00f6rg <joerg@example.org>",
        "ann@example.test",
        "Gr\u00fc\u00dfe \u2603",
    )
    mail["X-Other"] = "more"
    mail.set_content("H\u00e4llo\x1b[2J\n\tAnn\n", cte="base64")
    mail.add_attachment(b"\0\1bill" * 500, "application", "pdf", filename="r\u00e4chnung.pdf")
    settings = {"recording": {"mail": "all"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        with smtplib.SMTP("127.0.0.1", node.port, timeout=20) as client:
            client.send_message(mail, "joerg@example.org", ["ann@example.test"])
        until(lambda: len(listed(node, "state:delivered")) == 1, node=node)
        (row,) = listed(node)
        shown = node.run("message", "show", row["id"]).stdout
        assert "Subject: Gr\u00fc\u00dfe \u2603\n" in shown
        assert "H\u00e4llo\N{REPLACEMENT CHARACTER}[2J\n        Ann\n" in shown
        assert "X-Other" not in shown
        assert "X-Other: more" in node.run("message", "show", row["id"], "--headers").stdout
        told = run(node, "show", row["id"])
        assert (told["text"], told["size"]) == ("H\u00e4llo\x1b[2J\n\tAnn\n", row["size"])
        (bill,) = told["attachments"]
        assert (bill["name"], bill["type"], bill["size"]) == ("r\u00e4chnung.pdf", "application/pdf", 3000)
        assert bill["sha256"] == hashlib.sha256(b"\0\1bill" * 500).hexdigest()
        assert f"1\tr\u00e4chnung.pdf\tapplication/pdf\t3000\t{bill['sha256']}" in shown
        file = tmp_path / "bill.pdf"
        for code in (0, 1):  # nothing is written over
            options = ("--attachment", "1", "--output", str(file))
            assert node.run("message", "show", row["id"], *options, check=False).returncode == code
            assert file.read_bytes() == b"\0\1bill" * 500
        for wrong in ((row["id"], "--attachment", "2"), ("0000000000000",), ("nonsense",)):
            assert node.run("message", "show", *wrong, check=False).returncode == 3


def test_changes_are_followed_as_they_happen(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        hop.refuse = {"ann@example.test": Reply(450, "4.2.1", "busy")}
        send(node.port, "ann@example.test", subject="patience")
        until(lambda: listed(node, "to:ann"), node=node)
        lines: dict[str, subprocess.Popen[str]] = {}
        for name, extra in (("text", ()), ("json", ("--json",)), ("other", ("to:nobody",))):
            line = node.line("message", "list", "--follow", *extra)
            lines[name] = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        # Who waits for a line that does not come reads the end instead.
        late = threading.Timer(60, lambda: [*map(subprocess.Popen.kill, lines.values())])
        late.start()
        try:
            text, told = lines["text"].stdout, lines["json"].stdout
            assert text is not None
            assert told is not None
            assert text.readline().split("\t")[2:6] == [
                "accepted",
                "sender@example.org",
                "ann@example.test",
                "patience",
            ]
            assert json.loads(told.readline())["state"] == "accepted"
            hop.refuse = {}
            assert text.readline().split("\t")[2] == "delivered"
            assert json.loads(told.readline())["state"] == "delivered"
            send(node.port, "joe@example.test", subject="second")
            until(lambda: "second\t" in text.readline(), node=node)
        finally:
            late.cancel()
            for process in lines.values():
                process.send_signal(signal.SIGINT)
            ends = {name: (process.wait(20), process.communicate()[0]) for name, process in lines.items()}
        assert ends["other"] == (0, "")
        assert all(code == 0 for code, _ in ends.values())
