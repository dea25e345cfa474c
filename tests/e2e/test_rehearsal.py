"""Pipelines tried before they go live: `try` on a file, `replay` on mail that came."""

from __future__ import annotations

import asyncio
import json
import signal
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sendswitch.accounts.users import get_pipeline
from sendswitch.bench.measure import figure
from sendswitch.bench.peers import Node, Sink
from sendswitch.bootstrap.parts import make_trial
from sendswitch.config.load import load
from sendswitch.db.connect import open_database
from sendswitch.mail.verdict import Verdict
from sendswitch.pipeline import recording as record
from sendswitch.pipeline.trial import replay_each
from sendswitch.spool import admin
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, queue, send, until

# More than one verdict of each kind, decided by envelope, header, body, attempt and tags.
PROGRAM = """
from sendswitch.mail.verdict import Verdict
async def process(mail, context):
    number = int(mail.subject.split()[-1])
    if number % 7 == 0:
        return Verdict.quarantine(f"{number} is divided by seven")
    if number % 11 == 0:
        return Verdict.forwarded("else@example.test", keep_copy=number % 2 == 0)
    if "secret" in mail.text:
        return Verdict.pending("secret", hold=3600)
    if number % 13 == 0:
        1 / 0
    return Verdict.tagged("EVEN" if number % 2 == 0 else "ODD")
"""
PIPELINE = """
on_timeout = "quarantine"
[[step]]
use = "lists"
allow = ["sender7@example.org"]
deny = ["*@spam.example"]
[[step]]
use = "python"
file = "{program}"
on_error = "deny"
[[step]]
use = "tag"
tags = ["SEEN"]
"""
COUNT = 3000


def replay(node: Node, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = node.run("replay", "--json", *arguments, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that has judged some thousands of different messages."""
    folder = tmp_path_factory.mktemp("lively")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    with Sink() as sink, Node(folder / "node", f"127.0.0.1:{sink.port}", settings={"log": {"level": "error"}}) as node:
        node.add_pipeline("ann@example.test", PIPELINE.format(program=program))
        with smtplib.SMTP("127.0.0.1", node.port) as client:
            client.ehlo("client.example")
            for n in range(COUNT):
                domain = "spam.example" if n % 17 == 0 else "example.org"
                body = "secret" if n % 19 == 0 else "x" * (n % 300)
                client.sendmail(
                    f"sender{n % 23}@{domain}",
                    ["ann@example.test", "plain@example.test"],
                    f"Subject: number {n}\r\nFrom: a@example.org\r\n\r\n{body}\r\n",
                )
        until(lambda: not [row for row in queue(node) if row["state"] != "held"], 60, node)
        yield node


def test_an_unchanged_pipeline_gives_the_same_verdicts(lively: Node) -> None:
    """Every part of thousands of verdicts but the times in the trace, and through the command."""
    config = load(lively.config)
    connection = admin.open_files(config.node.data)
    stored = get_pipeline(open_database(config.database_url), "ann@example.test")

    async def compare() -> int:
        trial = make_trial(config, stored.owner, stored.version, stored.text)
        cases = [case for found in record.cases(connection, config.node.data, 0, 1 << 62) for case in found]
        compared = 0
        async for case, answer in replay_each((case, trial) for case in cases if case.verdict is not None):
            assert isinstance(answer, Verdict)
            assert case.verdict is not None
            assert _comparable(answer) == _comparable(case.verdict)
            compared += 1
        await trial.close()
        return compared

    assert asyncio.run(compare()) == COUNT
    found = replay(lively)
    assert (found["total"], found["differing"], found["differences"]) == (COUNT, 0, [])
    actions = {row["was"] for row in found["actions"]}
    assert actions == {"pass", "deny", "quarantine", "forward", "pending"}
    assert lively.run("audit", check=False).returncode == 0


def _comparable(verdict: Verdict) -> dict[str, Any]:
    told = verdict.to_json()
    for step in told["trace"]:
        del step["seconds"]
    return told


def test_a_changed_pipeline_tells_who_and_why(lively: Node, tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    new.write_text('[[step]]\nuse = "lists"\ndeny = ["sender3@example.org"]\n[[step]]\nuse = "pass"\n')
    found = replay(lively, "--pipeline", str(new), "--limit", "5")
    assert found["total"] == COUNT
    assert len(found["differences"]) == 5
    one = replay(lively, "--pipeline", str(new), "--where", 'subject:"number 1015"', "--where", "to:ann")
    assert one["total"] == 1
    (difference,) = one["differences"]
    assert (difference["was"], difference["now"], difference["sender"]) == ("quarantine", "deny", "sender3@example.org")
    assert "deny list (sender3@example.org)" in difference["why"]
    assert difference["step"] == "lists"
    table = lively.run("replay", "--pipeline", str(new), "--where", 'subject:"number 1015"').stdout
    assert "1 of 1 would be treated differently" in table
    assert "quarantine\tdeny" in table
    # Mail of somebody who had no pipeline is replayed only when asked for by name.
    assert replay(lively, "--pipeline", str(new), "--user", "plain@example.test")["total"] == COUNT
    assert (
        replay(lively, "--pipeline", str(new), "--user", "@example.test")["total"] > 2 * COUNT
    )  # with what was forwarded
    assert replay(lively, "--pipeline", str(new), "--user", "nobody@example.test")["total"] == 0
    assert replay(lively, "--since", "2h", "--until", "1h")["total"] == 0
    assert "no recorded message" in lively.run("replay", "--since", "2h", "--until", "1h").stdout


def test_a_candidate_that_crashes_is_told(lively: Node, tmp_path: Path) -> None:
    program = tmp_path / "crash.py"
    program.write_text("import os\nasync def process(mail, context):\n    os._exit(1)\n")
    new = tmp_path / "new.toml"
    new.write_text(f'[[step]]\nuse = "python"\nfile = "{program}"\n')
    found = replay(lively, "--pipeline", str(new), "--where", 'subject:"number 1100"')
    (row,) = found["differences"]
    assert row["now"] == "defer"
    assert "the process ended 3 times" in row["why"]
    new.write_text('[[step]]\nuse = "pyton"\n')
    assert lively.run("replay", "--pipeline", str(new), check=False).returncode == 2


def test_a_replay_that_is_interrupted_goes_on(lively: Node, tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        "import asyncio\nfrom sendswitch.mail.verdict import Verdict\n"
        "async def process(mail, context):\n    await asyncio.sleep(0.02)\n    return Verdict.tagged('SLOW')\n"
    )
    new, state = tmp_path / "new.toml", tmp_path / "state"
    new.write_text(f'[[step]]\nuse = "python"\nfile = "{program}"\n')
    line = ("replay", "--json", "--pipeline", str(new), "--since", "1h", "--state", str(state), "--limit", "100000")
    process = subprocess.Popen(lively.line(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(state.exists)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert b"interrupted; the same command goes on" in said
    part = json.loads(out)
    assert 0 < part["total"] < COUNT
    other = lively.run("replay", "--state", str(state), check=False)
    assert other.returncode == 4
    assert "state of another replay" in other.stderr
    whole = replay(lively, *line[2:])
    assert whole["total"] == COUNT
    assert len({row["id"] for row in whole["differences"]}) == len(whole["differences"]) == whole["differing"]
    state.write_text("{}")
    assert lively.run(*line, check=False).returncode == 4


def test_try_has_no_effect(tmp_path: Path) -> None:
    file = tmp_path / "mail.eml"
    file.write_text("From: a@example.org\nSubject: hi\n\nhello\n")
    with NextHop() as hop, Node(tmp_path / "n", f"127.0.0.1:{hop.port}") as node:
        node.config.write_text(node.config.read_text() + '\n[tags.subject]\nSPAM = "*** "\n')
        node.add_pipeline(
            "ann@example.test",
            '[[step]]\nuse = "lists"\ndeny = ["spam.example"]\n[[step]]\nuse = "tag"\ntags = ["SPAM"]\n',
        )

        def tried(*arguments: str, code: int = 0) -> Any:
            done = node.run("try", str(file), "--json", *arguments, check=False)
            assert done.returncode == code, done.stdout + done.stderr
            return json.loads(done.stdout)

        passed = tried("--to", "ann+news@example.test")
        assert passed["verdict"]["action"] == "pass"
        assert passed["effect"] == "It would be delivered."
        assert passed["added"] == ["X-SendSwitch-Tags: SPAM", "Subject: *** hi"]
        remote = tried("--to", "ann@example.test", "--from", "a@spam.example")
        assert remote["verdict"]["action"] == "deny"
        assert "quarantine" in remote["effect"]
        local = tried("--to", "ann@example.test", "--from", "a@spam.example", "--source", "LOCAL")
        assert "sent a report: 550 5.7.1" in local["effect"]
        assert "no pipeline" in tried("--to", "joe@example.test", code=3)["errors"][0]
        assert "no mail address" in tried("--to", "joe x@y", code=2)["errors"][0]
        new = tmp_path / "new.toml"
        new.write_text('[[step]]\nuse = "forward"\nto = ["x@example.test"]\n')
        other = tried("--to", "joe@example.test", "--pipeline", str(new))
        assert other["effect"] == "It would be forwarded to x@example.test."
        for on_error, then in (("skip", "verdict"), ("defer", "deferred")):
            new.write_text(f'[[step]]\nuse = "clamav"\naddress = "127.0.0.1:1"\non_error = "{on_error}"\n')
            failed = tried("--to", "joe@example.test", "--pipeline", str(new), code=1)
            assert then in failed
            assert failed["steps"][0]["outcome"] == "error"
        text = node.run("try", str(file), "--to", "ann@example.test").stdout
        assert "Step 1: lists (version 1)" in text
        assert "With the field X-SendSwitch-Tags: SPAM" in text
        assert node.run("try", str(tmp_path / "none"), "--to", "ann@example.test", check=False).returncode == 3
        assert not hop.parcels
        assert not queue(node)


def test_explain_says_what_would_have_changed_it(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "lists"\ndeny = ["other.example", "spam.example"]\n')
        send(node.port, "ann@example.test", sender="joe@spam.example")
        until(lambda: not queue(node), node=node)
        until(lambda: json.loads(node.run("message", "list", "to:ann", "--json").stdout), node=node)
        rows = json.loads(node.run("message", "list", "to:ann", "--json").stdout)
        text = node.run("message", "explain", rows[0]["id"]).stdout
        assert "Without 'spam.example' in deny of step 1 (lists) it would have been PASS" in text
        told = json.loads(node.run("message", "explain", rows[0]["id"], "--json").stdout)
        assert told[0]["change"]["then"].startswith("PASS")
        # A later version does not change what the story tells of this one.
        node.add_pipeline("ann@example.test", "")
        assert node.run("message", "explain", rows[0]["id"]).stdout == text
        node.run("user", "rm", "ann@example.test", "--yes")
        assert "Without" not in node.run("message", "explain", rows[0]["id"]).stdout


CANDIDATES = {
    "differs": '[[step]]\nuse = "lists"\ndeny = ["spam.example"]\n[[step]]\nuse = "tag"\ntags = ["LIVE"]\n',
    "crashes": '[[step]]\nuse = "python"\nfile = "{program}"\n',
}


@pytest.mark.parametrize("mode", ["filter", "proxy"])
def test_a_candidate_runs_beside_the_live_pipeline(tmp_path: Path, mode: str) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK, mode=mode) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "tag"\ntags = ["LIVE"]\n')
        new = tmp_path / "new.toml"
        new.write_text(CANDIDATES["differs"])

        def pipeline(*arguments: str, code: int = 0) -> Any:
            done = node.run("pipeline", *arguments, "--json", check=False)
            assert done.returncode == code, done.stdout + done.stderr
            return json.loads(done.stdout)

        assert pipeline("compare", "ann@example.test", code=3)
        assert pipeline("candidate", "ann@example.test", str(new))["version"] == 2
        until(lambda: node.log.read_text().count('"event":"reloaded"') >= 2, node=node)
        for sender in ("joe@example.org", "loud@spam.example"):
            send(node.port, "ann@example.test", sender=sender)
        until(lambda: pipeline("compare", "ann@example.test")["total"] == 2, node=node)
        found = pipeline("compare", "ann@example.test")
        (row,) = found["differences"]
        assert (row["from"], row["was"], row["would_be"]) == ("loud@spam.example", "pass [LIVE]", "deny")
        assert "deny list" in row["because"]
        assert len(hop.parcels) == 2
        assert all(b"X-SendSwitch-Tags: LIVE" in parcel.data for parcel in hop.parcels)
        assert "agreed on 1 of 2" in node.run("pipeline", "compare", "ann@example.test").stdout
        words = node.run("message", "explain", row["id"]).stdout
        assert "The candidate, version 2, would have been deny" in words
        diff = node.run("pipeline", "diff", "ann@example.test", "1", "2").stdout
        assert '+deny = ["spam.example"]' in diff
        assert pipeline("promote", "ann@example.test") == {"candidate": 2, "version": 3, "node_told": True}
        roles = [(row["version"], row["role"]) for row in pipeline("history", "ann@example.test")]
        assert roles == [(3, "live"), (2, "retired"), (1, "earlier")]
        until(lambda: _refused(node), node=node)
        assert pipeline("rollback", "ann@example.test")["old"] == 1
        until(lambda: not _refused(node), node=node)
        assert node.run("audit", check=False).returncode == 0


def _refused(node: Node) -> bool:
    """Whether the deny list is live: before the queue the sender reads it, after it the log tells."""
    before = node.log.read_text().count('"action":"deny"')
    try:
        send(node.port, "ann@example.test", sender="loud@spam.example")
    except smtplib.SMTPDataError:
        return True
    until(lambda: not queue(node), node=node)
    return node.log.read_text().count('"action":"deny"') > before


def test_a_candidate_that_hangs_or_dies_harms_nobody(tmp_path: Path) -> None:
    program = tmp_path / "bad.py"
    program.write_text(
        "import os, time\nasync def process(mail, context):\n"
        "    assert context.rehearsal\n"
        "    if 'die' in mail.subject: os._exit(1)\n    time.sleep(3600)\n"
    )
    with NextHop() as hop, Node(tmp_path / "n", f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", 'deadline = "2s"\n[[step]]\nuse = "tag"\ntags = ["LIVE"]\n')
        new = tmp_path / "new.toml"
        new.write_text(CANDIDATES["crashes"].format(program=program))
        assert node.run("pipeline", "candidate", "ann@example.test", str(new)).returncode == 0
        for n in range(40):
            send(node.port, "ann@example.test", subject="die" if n % 2 else "hang")
        until(lambda: len(hop.parcels) == 40, node=node)
        until(lambda: not queue(node), node=node)
        assert figure(node, 'sendswitch_candidates_total{outcome="left out"}') > 0
        assert figure(node, "sendswitch_deadlines_missed_total") == 0
        assert figure(node, 'sendswitch_verdicts_total{action="pass"}') == 40
        assert node.run("audit", check=False).returncode == 0
