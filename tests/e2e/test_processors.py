"""Processors in a running node: conditions, and what services say, from the mail to its story."""

from __future__ import annotations

import json
import re
import smtplib
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node, free_port
from sendswitch.bench.scanners import EICAR, clamd
from tests.conftest import need
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, send, until
from tests.receiver import receiver

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_about_conditions(tmp_path: Path) -> None:
    page = (DOCS / "conditions.md").read_text()
    pipeline = re.findall(r"```toml\n(.*?)```", page, re.S)[0]
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("joe@example.test", pipeline)
        send(node.port, subject="You are the winner", sender="a@partner.example", body=b"x" * 70 + b"\r\n" * 600)
        send(node.port, subject="You are the winner", sender="a@else.example", body=b"x" * 70 + b"\r\n" * 600)
        send(node.port, subject="Lunch?")
        until(lambda: len(hop.parcels) == 2 and len(said(node, "message", "list")) == 3, node=node)
        (kept,) = said(node, "quarantine", "list")
        assert (kept["sender"], kept["reply"]) == ("a@else.example", "large spam of strangers")
        story = node.run("message", "explain", "from:partner").stdout
        told = re.findall(r"```\n(Step.*?)```", page, re.S)[0]
        for line in told.splitlines():
            assert re.sub(r"\d\.\d ms", "N ms", line) in re.sub(r"\d\.\d ms", "N ms", story), story
        clean(node)


def test_mail_that_is_delayed_is_asked_about_again(tmp_path: Path) -> None:
    later = "[[step]]\nuse = 'delay'\ntime = '2s'\n[[step]]\nuse = 'tag'\ntags = ['OLD']\n"
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("joe@example.test", later)
        node.add_pipeline("ann@example.test", later.replace("2s", "1h"))
        send(node.port, subject="patience")
        rows: list[Any] = []

        def held() -> bool:  # it is for two seconds, so what is seen is kept
            rows[:] = said(node, "hold", "list")
            return bool(rows)

        until(held, node=node)
        (row,) = rows
        assert row["reply"] == "it waits 2 s before it goes on"
        assert not hop.parcels
        until(lambda: len(hop.parcels) == 1, node=node)
        assert hop.parcels[0].data.count(b"X-SendSwitch-Tags: OLD\r\n") == 1
        story = node.run("message", "explain", row["id"]).stdout
        assert "The delay was over; the pipeline is asked again." in story
        assert "tag (version 1) took" in story
        # Who cannot wait lets it go.
        send(node.port, "ann@example.test", subject="now")
        until(lambda: said(node, "hold", "list"), node=node)
        node.run("hold", "answer", "pass", said(node, "hold", "list")[0]["id"])
        until(lambda: len(hop.parcels) == 2, node=node)
        clean(node)


def test_a_delay_without_end_ends_with_the_time_of_the_mail(tmp_path: Path) -> None:
    program = tmp_path / "filter.py"
    program.write_text(
        "from sendswitch.mail.verdict import Verdict\n"
        "async def process(mail, context):\n    return Verdict.pending('again', hold=0.2, then='ask')\n"
    )
    settings = QUICK | {"node": {"lifetime": "2s"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        node.add_pipeline("joe@example.test", f"[[step]]\nuse = 'python'\nfile = '{program}'\n")
        send(node.port, subject="again and again")
        until(lambda: "held until it expired" in node.run("quarantine", "list").stdout, node=node)
        assert not hop.parcels
        clean(node)


def test_a_part_is_taken_out_on_the_way(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("joe@example.test", "[[step]]\nuse='attachment'\nnames=['*.exe']\naction='strip'\n")
        for filler in (b"", b"x" * 70 + b"\r\n"):
            body = b'--b\r\n\r\nhello\r\n--b\r\nContent-Type: application/x-dos; name="a.exe"\r\n\r\nMZ\r\n--b--\r\n'
            send(
                node.port,
                subject="programs",
                body=body + filler * 5000,
                headers=b'Content-Type: multipart/mixed; boundary="b"\r\n',
            )
        until(lambda: len(hop.parcels) == 2, node=node)
        for parcel in hop.parcels:
            assert b"hello\r\n--b\r\n" in parcel.data
            assert b"MZ" not in parcel.data
            assert b"The attachment 'a.exe' was removed: has such a name." in parcel.data
            assert b"X-SendSwitch-Tags: ATTACHMENT" in parcel.data
        clean(node)


def test_lists_that_are_kept_count_at_once(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("joe@example.test", "deny = 'quarantine'\n[[step]]\nuse = 'lists'\n")
        send(node.port, subject="first", sender="a@loud.example")
        until(lambda: len(hop.parcels) == 1, node=node)
        node.run("list", "add", "deny", "loud.example", "--reason", "too loud")
        reason = "envelope sender <a@loud.example> is on the deny list of the site (loud.example): too loud"

        def put_aside() -> bool:
            send(node.port, subject="second", sender="a@loud.example")
            return any(row["reply"].startswith(reason) for row in said(node, "quarantine", "list"))

        until(put_aside, node=node)
        node.run("list", "add", "allow", "a@loud.example", "--for", "joe@example.test", "--expires", "30d")
        shown = said(node, "list", "show")
        assert [(row["for"], row["list"], row["entry"]) for row in shown] == [
            ("the site", "deny", "loud.example"),
            ("joe@example.test", "allow", "a@loud.example"),
        ]
        asked = node.run("list", "test", "a@loud.example", "--to", "joe+x@example.test").stdout
        assert asked.strip() == "a@loud.example on the allow list of joe@example.test"
        passed = len(hop.parcels)
        until(lambda: send(node.port, sender="a@loud.example") and len(hop.parcels) > passed, node=node)
        many = tmp_path / "many"
        many.write_text("# from elsewhere\n" + "".join(f"d{n}.example  # why\n" for n in range(3000)))
        added = node.run("list", "add", "deny", "--file", str(many)).stdout
        assert "3000 new on the deny list of the site" in added
        many.write_text("good.example\ntwo words\n")
        wrong = node.run("list", "add", "deny", "--file", str(many), check=False)
        assert (wrong.returncode, f"{many}:2: 'two words' is no address" in wrong.stderr) == (2, True)
        node.run("list", "rm", str(shown[1]["number"]))
        assert node.run("list", "test", "nobody@else.example", "--to", "joe@example.test", check=False).returncode == 3
        node.run("list", "add", "deny", "198.51.100.0/24", "--expires", "2099-01-31")
        asked = node.run("list", "test", "198.51.100.7", "--to", "nobody@example.test").stdout
        assert "nobody@example.test has no pipeline, so that no list is asked" in asked
        node.add_pipeline("ann@example.test", "[[step]]\nuse = 'pass'\n")
        asked = node.run("list", "test", "198.51.100.7", "--to", "ann@example.test").stdout
        assert "the pipeline of ann@example.test has no step that uses lists" in asked
        assert said(node, "list", "show")[-1]["until"].startswith("2099-01-3")
        wrong = node.run("list", "add", "deny", "x.example", "--expires", "tomorrow", check=False)
        assert (wrong.returncode, "write for how long, such as 30d, or a day" in wrong.stderr) == (2, True)
        clean(node)


def test_a_webhook_hears_of_mail_after_an_outage_and_a_crash(tmp_path: Path) -> None:
    secret = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
    settings = QUICK | {"webhooks": {"allow": ["127.0.0.1"]}}
    with receiver() as hook, NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        url = f"http://127.0.0.1:{hook.port}/hook"
        node.add_pipeline("joe@example.test", f"[[step]]\nuse = 'notify'\nurl = '{url}'\nsecret = '{secret}'\n")
        hook.answers = [(500, b"not now", {})]
        for n in range(3):
            send(node.port, subject=f"number {n}")
        until(lambda: len(hop.parcels) == 3 and len(hook.requests) >= 3, node=node)  # the mail does not wait
        node.kill()
        node.start()
        (endpoint,) = said(node, "webhook", "list")
        assert (endpoint["url"], endpoint["waiting"]) == (url, 3)
        hook.answers = [(204, b"", {})]
        hook.requests.clear()
        assert "3 sent again" in node.run("webhook", "resend", "--endpoint", "1").stdout
        until(lambda: len(hook.requests) >= 3, node=node)
        told = {json.loads(request.body)["data"]["subject"] for request in hook.requests}
        assert told == {"number 0", "number 1", "number 2"}
        until(lambda: all(row["state"] == "delivered" for row in said(node, "webhook", "events")), node=node)
        shown = said(node, "webhook", "show", said(node, "webhook", "events")[0]["id"])
        assert (shown[-1]["status"], secret in json.dumps(shown)) == (204, False)
        until(lambda: len(said(node, "message", "list")) == 3, node=node)
        story = node.run("message", "explain", said(node, "message", "list")[0]["id"]).stdout
        assert "notify (version 1) took" in story
        assert secret not in node.log.read_text()
        clean(node)


def test_a_sender_is_answered_once(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("joe@example.test", "[[step]]\nuse = 'reply'\ntext = 'I am away.'\n")
        node.add_pipeline("friend@example.org", "[[step]]\nuse = 'reply'\ntext = 'Me too.'\n")  # no loop comes of it
        to_joe = b"To: joe@example.test\r\nMessage-ID: <1@example.org>\r\n"
        send(node.port, subject="Are you there?", sender="friend@example.org", headers=to_joe)
        until(lambda: len(hop.parcels) == 2, node=node)
        node.kill()
        node.start()
        send(node.port, subject="Hello?", sender="Friend@example.org", headers=to_joe)
        until(lambda: len(hop.parcels) == 3, node=node)
        answers = [parcel for parcel in hop.parcels if b"I am away." in parcel.data]
        (answer,) = answers
        assert (answer.envelope.sender, [r.address for r in answer.envelope.recipients]) == ("", ["friend@example.org"])
        assert b"Auto-Submitted: auto-replied\r\n" in answer.data
        assert b"In-Reply-To: <1@example.org>\r\n" in answer.data
        until(lambda: len(said(node, "message", "list")) == 3, node=node)
        assert any(
            "was answered before" in node.run("message", "explain", row["id"]).stdout
            for row in said(node, "message", "list")
        )
        clean(node)


@pytest.mark.parametrize("mode", ["filter", "proxy"])
def test_what_a_script_throws_away_nobody_hears_of(mode: str, tmp_path: Path) -> None:
    script = """
require ["fileinto", "reject"];
if header :contains "subject" "bargain" { discard; }
elsif header :contains "subject" "duck" { reject "No ducks."; }
elsif header :contains "subject" "shop" { fileinto "Shopping"; }
"""
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", mode=mode, settings=QUICK) as node:
        node.add_pipeline("joe@example.test", f"[[step]]\nuse = 'sieve'\nscript = '''{script}'''\n")
        assert b"queued as" in send(node.port, subject="A bargain")
        assert send(node.port, subject="The shop")
        if mode == "proxy":
            with pytest.raises(smtplib.SMTPDataError, match="No ducks"):
                send(node.port, subject="duck")
        until(lambda: {row["state"] for row in said(node, "message", "list")} >= {"discarded", "delivered"}, node=node)
        (gone,) = said(node, "message", "list", "state:discarded")
        assert "line 2: discard" in node.run("message", "explain", gone["id"]).stdout
        (parcel,) = hop.parcels
        assert b"X-SendSwitch-Tags: Shopping\r\n" in parcel.data
        assert b"X-SendSwitch-Folder: Shopping\r\n" in parcel.data
        clean(node)


def test_a_virus_is_put_aside_and_an_outage_lets_nothing_in(tmp_path: Path, public: Path) -> None:
    need("clamd", "clamav-daemon")
    port = free_port()
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("joe@example.test", f"[[step]]\nuse = 'clamav'\naddress = '127.0.0.1:{port}'\n")
        send(node.port, subject="virus", body=EICAR.encode() + b"\r\n")
        send(node.port, subject="clean")
        until(lambda: node.log.read_text().count('"action":"defer"') >= 2, node=node)
        assert not hop.parcels
        with clamd(public / "clamd", port=port):
            until(lambda: len(hop.parcels) == 1 and said(node, "quarantine", "list"), node=node)
            assert b"Subject: clean" in hop.parcels[0].data
            (row,) = said(node, "quarantine", "list")
            assert (row["subject"], row["tags"]) == ("virus", ["VIRUS"])
            story = node.run("message", "explain", row["id"]).stdout
            assert f"clamd at 127.0.0.1:{port} cannot be reached" in story
            assert "said quarantine: virus Eicar-Test-Signature" in story
        # What was said is on record: a replay asks nobody.
        assert "0 of 2 would be treated differently" in node.run("replay", "--since", "1d").stdout
        clean(node)
