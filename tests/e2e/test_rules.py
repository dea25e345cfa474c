"""Rules for the queue, mail that is sent again, and much decided at once."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from sendswitch.bench.peers import Node
from sendswitch.reply import Reply
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, Stream, queue, said, send, until

PATIENT = {"next_hop": {"first_retry": "1h"}}


def state(node: Node, word: str) -> list[str]:
    rows = said(node, "message", "list", word)
    return [row["state"] for row in rows]


def test_a_dry_run_refuses_what_the_rule_would_refuse(tmp_path: Path) -> None:
    with Node(tmp_path, "127.0.0.1:1", settings=QUICK) as node:
        for dry in ((), ("--dry-run",)):
            done = node.run("queue", "drop", "subject:x", "--reason", "x", *dry, check=False)
            assert done.returncode == 2, done.stdout


def test_mail_is_suspended_and_goes_on(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        told = said(node, "queue", "suspend", "to:ann@", "--reason", "full disk", "--ttl", "1h")
        assert (told["rule"], told["deliveries"], told["node_told"]) == (1, 0, True)
        send(node.port, "ann@example.test", "bob@example.test")
        until(lambda: len(hop.parcels) == 1, node=node)
        assert [r.address for r in hop.parcels[0].envelope.recipients] == ["bob@example.test"]
        until(lambda: queue(node) and queue(node)[0]["reply"], node=node)
        (row,) = queue(node)
        assert row["reply"] == "suspended by rule 1: full disk"
        assert row["attempts"] == 0
        (rule,) = said(node, "queue", "rules")
        assert (rule["kind"], rule["search"], rule["reason"]) == ("suspend", "to:ann@", "full disk")
        node.stop()
        node.start()  # it holds over a restart
        send(node.port, "ann@example.test")
        until(lambda: len([row for row in queue(node) if row["reply"]]) == 2, node=node)
        assert said(node, "queue", "cancel", "1") == {"cancelled": [1], "resumed": 2, "node_told": True}
        until(lambda: len(hop.parcels) == 3, node=node)
        assert "no rule 1" in said(node, "queue", "cancel", "1", code=3)["errors"][0]
        words = node.run("message", "explain", str(row["id"])).stdout
        assert "with rule 1, because full disk." in words
        # One that nobody ends, ends.
        said(node, "queue", "suspend", "--ttl", "2s")
        send(node.port, "ann@example.test")
        assert said(node, "queue", "resume", "--json")["cancelled"] in ([2], [])
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
        assert said(node, "queue", "rules") == []
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
        for rule in said(node, "queue", "rules"):
            said(node, "queue", "cancel", str(rule["rule"]))
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
        assert "not a mail address" in said(node, "message", "forward", row["id"], "--to", "x", code=2)["errors"][0]
        assert node.run("audit", check=False).returncode == 0


def test_what_was_forwarded_is_sent_again_with_the_same_sender(tmp_path: Path) -> None:
    settings = QUICK | {"forward": {"srs_domain": "srs.example.test"}, "recording": {"mail": "all"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "forward"\nto = ["far@example.net"]\n')
        send(node.port, "ann@example.test")
        until(lambda: state(node, "to:far@") == ["delivered"], node=node)
        (row,) = said(node, "message", "list", "to:far@")
        for way in ((), ("--unfiltered", "--again")):
            assert said(node, "message", "requeue", row["id"], *way)[0]["result"] == "requeued"
        until(lambda: len(hop.parcels) == 3, node=node)
        assert len({parcel.envelope.sender for parcel in hop.parcels}) == 1
        assert hop.parcels[0].envelope.sender.endswith("=example.org=sender@srs.example.test")


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
        nothing = said(node, "quarantine", "release", "--where", "subject:none", code=3)
        assert nothing["errors"] == ["no quarantined delivery matches"]
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
        until(lambda: said(node, "queue", "rules") == [], node=node)


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
        for rule in said(node, "queue", "rules"):
            said(node, "queue", "cancel", str(rule["rule"]))
        (row,) = said(node, "message", "list", "to:ann@")
        assert said(node, "message", "requeue", row["id"])[0]["result"] == "requeued"
        until(lambda: len(hop.parcels) == 2, node=node)
        until(lambda: not queue(node), node=node)
        # Nobody gets it a second time by mistake.
        assert "--again" in said(node, "message", "requeue", row["id"], code=4)[0]["result"]
        assert said(node, "message", "requeue", row["id"], "--again")[0]["result"] == "requeued"
        until(lambda: len(hop.parcels) == 3, node=node)
        assert node.run("audit", check=False).returncode == 0


def test_rules_apply_before_the_queue_too(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", mode="proxy", settings=QUICK) as node:
        said(node, "queue", "suspend", "to:joe@", "--reason", "full")
        send(node.port, "joe@example.test")
        send(node.port, "bob@example.test")
        until(lambda: queue(node) and queue(node)[0]["reply"], node=node)
        assert [parcel.envelope.recipients[0].address for parcel in hop.parcels] == ["bob@example.test"]


def test_what_was_let_go_by_mistake_comes_back(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=PATIENT) as node:
        hop.answer = lambda data: Reply(450, "4.2.1", "busy")
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "quarantine"\n')
        node.add_pipeline("bob@example.test", '[[step]]\nuse = "hold"\n')
        for to in ("ann@example.test", "bob@example.test", "carol@example.test"):
            send(node.port, to)
        until(lambda: said(node, "quarantine", "list") and said(node, "hold", "list"), node=node)
        (ann,), (bob,) = said(node, "quarantine", "list"), said(node, "hold", "list")
        said(node, "quarantine", "release", ann["id"])
        said(node, "hold", "answer", "pass", bob["id"])
        until(lambda: [row["attempts"] for row in queue(node)] == [1, 1, 1], node=node)
        for row in (ann, bob):
            ordered = said(node, "queue", "quarantine", f"id:{row['id']}", "--reason", "not that one")
            assert ordered["deliveries"] == 1
        until(lambda: len(said(node, "quarantine", "list")) == 2, node=node)
        assert [row["recipient"] for row in queue(node)] == ["carol@example.test"]
        # What comes meanwhile and is like that is put aside too, and the reason is told.
        said(node, "queue", "quarantine", "to:carol@", "--reason", "is this real?", "--ttl", "1h")
        send(node.port, "carol@example.test")
        until(lambda: len(said(node, "quarantine", "list", "to:carol@")) == 2, node=node)
        (first, _) = said(node, "quarantine", "list", "to:carol@")
        assert "with rule 3, because is this real?." in node.run("message", "explain", first["id"]).stdout
        assert first["reply"] == "quarantined by rule 3: is this real?"
        since, due = (datetime.fromisoformat(first[name]) for name in ("since", "due"))
        assert due - since > timedelta(days=29)
        assert not hop.parcels
        # Who releases it afterwards has the last word, although the rules still apply.
        hop.answer = lambda data: Reply(250, "2.0.0", "Ok")
        assert len(said(node, "queue", "rules")) == 3
        assert len(said(node, "quarantine", "release", "--where", "larger:0")) == 4
        until(lambda: len(hop.parcels) == 4 and not queue(node), node=node)
        send(node.port, "carol@example.test", subject="more of it")
        until(lambda: len(said(node, "quarantine", "list", "to:carol@")) == 1, node=node)
        # An answer that threw mail away.
        send(node.port, "bob@example.test")
        until(lambda: said(node, "hold", "list"), node=node)
        (row,) = said(node, "hold", "list")
        said(node, "hold", "answer", "discard", row["id"])
        until(lambda: state(node, f"id:{row['id']}") == ["discarded"], node=node)
        said(node, "message", "requeue", row["id"], "--unfiltered")
        until(lambda: len(hop.parcels) == 5, node=node)
        assert node.run("audit", check=False).returncode == 0
