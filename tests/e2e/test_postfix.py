"""The main job with a real Postfix: in, decided for each recipient, out; after the queue and before it."""

from __future__ import annotations

import contextlib
import email
import json
import os
import re
import shutil
import signal
import smtplib
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest

import sendswitch
from sendswitch.bench.measure import figure
from sendswitch.bench.peers import Node, Postfix, free_port, public_folder
from tests.conftest import need
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import until

pytestmark = pytest.mark.usefixtures("postfix_installed")

LISTS = '[[step]]\nuse = "lists"\ndeny = ["spam.example"]\n'


class Chain:
    """Postfix, two nodes (one for each mode) and Postfix again."""

    def __init__(self, folder: Path) -> None:
        self.filter = Node(folder / "filter", "127.0.0.1:1")
        self.proxy = Node(folder / "proxy", "127.0.0.1:1", mode="proxy", listener={"budget": "3s"})
        self.postfix = Postfix(folder / "postfix", content_filter=self.filter.port, proxy_filter=self.proxy.port)
        for node in (self.filter, self.proxy):
            text = node.config.read_text().replace('127.0.0.1:1"', f'127.0.0.1:{self.postfix.reinject}"')
            node.config.write_text(text + '[tags.subject]\nSPAM = "***SPAM*** "\n')

    def send(
        self, port: int, sender: str, to: list[str], message: bytes, **options: list[str]
    ) -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example.org") as client:
            return client.sendmail(sender, to, message, options.get("mail", []), options.get("rcpt", []))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:

    with public_folder("chain") as folder:
        chain = Chain(folder)
        slow = folder / "slow.py"
        slow.write_text(
            "import asyncio\nfrom sendswitch.mail.verdict import Verdict\n"
            "async def process(mail, context):\n    await asyncio.sleep(6)\n    return Verdict.tagged('SLOW')\n"
        )
        with chain.postfix, chain.filter, chain.proxy:
            for node in (chain.filter, chain.proxy):
                node.add_pipeline("ann@example.test", LISTS)
                node.add_pipeline("bob@example.test", '[[step]]\nuse = "tag"\ntags = ["SPAM"]\n')
                node.add_pipeline("carol@example.test", '[[step]]\nuse = "forward"\nto = ["dave@example.test"]\n')
                node.add_pipeline("quar@example.test", '[[step]]\nuse = "quarantine"\n')
                node.add_pipeline("slow@example.test", f'[[step]]\nuse = "python"\nfile = "{slow}"\n')
            yield chain


def body(subject: str, sender: str = "sender@example.test") -> bytes:
    return f"From: {sender}\r\nTo: someone@example.test\r\nSubject: {subject}\r\n\r\n.dot\r\nline\r\n".encode()


def of(messages: list[bytes], subject: str) -> list[bytes]:
    return [m for m in messages if f"Subject: {subject}\n".encode() in m.replace(b"\r\n", b"\n")]


def wait_of(postfix: Postfix, user: str, subject: str) -> bytes:
    count = 1
    while True:
        there = postfix.wait_for(user, count)
        if found := of(there, subject):
            return found[0]
        count = len(there) + 1


def test_each_recipient_meets_their_own_fate(chain: Chain) -> None:
    chain.send(
        chain.postfix.smtp,
        "sender@example.test",
        ["joe@example.test", "bob@example.test", "carol@example.test"],
        body("fates"),
    )
    plain = wait_of(chain.postfix, "joe", "fates")
    assert b"X-SendSwitch-Tags" not in plain
    assert plain.replace(b"\r\n", b"\n").endswith(b"\n\n.dot\nline\n")
    marked = wait_of(chain.postfix, "bob", "***SPAM*** fates")
    assert b"X-SendSwitch-Tags: SPAM" in marked
    forwarded = wait_of(chain.postfix, "dave", "fates")
    assert b"Delivered-To: carol@example.test" in forwarded
    assert not of(chain.postfix.messages("carol"), "fates")


def test_xforward_is_kept_end_to_end(chain: Chain) -> None:
    """The re-injecting Postfix must log the first client, not us."""
    with smtplib.SMTP("127.0.0.1", chain.postfix.proxy, local_hostname="helo.example.org") as client:
        client.ehlo()
        assert client.docmd("XCLIENT", "ADDR=192.0.2.77 NAME=client.example.org")[0] == 220
        client.ehlo("helo.example.org")
        client.sendmail("sender@example.test", ["joe@example.test"], body("xforward"))
    wait_of(chain.postfix, "joe", "xforward")
    lines = [line for line in chain.postfix.maillog.splitlines() if "reinject/smtpd" in line and "client=" in line]
    assert any("client.example.org[192.0.2.77]" in line for line in lines)


def test_a_denied_local_sender_gets_a_bounce(chain: Chain) -> None:
    chain.send(
        chain.postfix.smtp,
        "sender@example.test",
        ["ann@example.test"],
        body("denied", "x@spam.example"),
        mail=["RET=HDRS", "ENVID=id+2B1"],
    )
    report = email.message_from_bytes(wait_of(chain.postfix, "sender", "Undelivered mail returned to sender"))
    assert report.get_content_type() == "multipart/report"
    parts = [part for part in report.walk() if part.get_content_type() != "multipart/report"]
    text = "\n".join(str(part) for part in parts)
    returned = text[text.index("text/rfc822-headers") :]
    assert "Original-Envelope-Id: id+1" in text
    assert "Final-Recipient: rfc822; ann@example.test" in text
    assert "Action: failed" in text
    assert "Status: 5.7.1" in text
    assert "Subject: denied" in returned
    assert report["Return-Path"] == "<>"
    assert "deny list" not in report.as_string()


def test_a_denied_remote_sender_gets_none(chain: Chain) -> None:
    """The sender may be forged: the mail is put aside instead."""
    with smtplib.SMTP("127.0.0.1", chain.filter.port) as client:
        client.ehlo()
        client.docmd("XFORWARD", "ADDR=192.0.2.1 SOURCE=REMOTE")
        client.sendmail("sender@example.test", ["ann@example.test"], body("forged", "x@spam.example"))
    rows = wait_quarantined(chain.filter, "ann@example.test")
    assert "could go to a forged sender" in json.loads(rows)[0]["reply"]


def wait_quarantined(node: Node, user: str) -> str:
    for _ in range(60):
        out = node.run("quarantine", "list", "--user", user, "--json").stdout
        if user in out:
            return out
        time.sleep(0.05)
    raise AssertionError(node.log.read_text())


def test_release_from_quarantine_sticks(chain: Chain) -> None:
    chain.send(chain.postfix.smtp, "sender@example.test", ["quar@example.test"], body("aside"))
    wait_quarantined(chain.filter, "quar@example.test")
    (row,) = json.loads(chain.filter.run("quarantine", "list", "--user", "quar@example.test", "--json").stdout)
    assert row["sender"] == "sender@example.test"
    done = chain.filter.run("quarantine", "release", row["id"])
    assert "released" in done.stdout
    again = chain.filter.run("quarantine", "release", row["id"], check=False)
    assert again.returncode == 4
    assert chain.filter.run("quarantine", "delete", "0000000000000.0", check=False).returncode == 3
    assert wait_of(chain.postfix, "quar", "aside")
    assert len(of(chain.postfix.messages("quar"), "aside")) == 1


def test_before_the_queue_the_client_sees_the_refusal(chain: Chain) -> None:
    with pytest.raises(smtplib.SMTPDataError) as refused:
        chain.send(chain.postfix.proxy, "sender@example.test", ["ann@example.test"], body("no", "x@spam.example"))
    assert refused.value.smtp_code == 550
    assert b"5.7.1 Sender refused by the recipient" in refused.value.smtp_error
    assert chain.proxy.run("queue", "list", "--json").stdout.strip() == "[]"


def test_before_the_queue_what_passes_is_relayed(chain: Chain) -> None:
    with smtplib.SMTP("127.0.0.1", chain.proxy.port) as client:
        client.ehlo()
        client.mail("sender@example.test")
        client.rcpt("bob@example.test")
        code, text = client.data(body("relayed"))
    assert code == 250
    assert b"queued as" in text  # the next hop's own words: it has the message
    assert wait_of(chain.postfix, "bob", "***SPAM*** relayed")


def test_before_the_queue_mixed_fates_are_stored_and_each_is_met(chain: Chain) -> None:
    refused = chain.send(
        chain.postfix.proxy,
        "sender@example.test",
        ["joe@example.test", "ann@example.test"],
        body("mixed", "x@spam.example"),
    )
    assert refused == {}
    assert wait_of(chain.postfix, "joe", "mixed")


def test_before_the_queue_a_slow_pipeline_goes_on_after_it(chain: Chain) -> None:
    began = time.monotonic()
    chain.send(chain.postfix.proxy, "sender@example.test", ["slow@example.test", "joe@example.test"], body("slow"))
    assert 2 < time.monotonic() - began < 6  # the budget of 3 s ran out, the pipeline takes 6
    assert wait_of(chain.postfix, "joe", "slow")
    deadline = time.monotonic() + 20
    while '"SLOW"' not in chain.proxy.log.read_text():
        assert time.monotonic() < deadline, chain.proxy.log.read_text()
        time.sleep(0.1)
    assert chain.proxy.log.read_text().count('"action":"pass","tags":["SLOW"]') == 1  # no second scan


def test_swaks(chain: Chain) -> None:
    need("swaks", "swaks")
    line = ["swaks", "--server", f"127.0.0.1:{chain.postfix.smtp}", "--from", "sender@example.test"]
    line += ["--to", "joe@example.test", "--header", "Subject: swaks", "--body", "via swaks"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert wait_of(chain.postfix, "joe", "swaks")


def test_nothing_is_lost_or_left_over(chain: Chain) -> None:
    for node in (chain.filter, chain.proxy):
        done = node.run("audit", check=False)
        assert done.returncode == 0, done.stdout
        assert "Traceback" not in node.log.read_text()


def test_postfix_print_gives_lines_that_postfix_takes(chain: Chain, public: Path) -> None:
    """The printed entries replace ours in a second instance, and mail flows."""
    node = Node(public / "node", "127.0.0.1:1")
    postfix = Postfix(public / "postfix", content_filter=node.port)
    node.config.write_text(node.config.read_text().replace('127.0.0.1:1"', f'127.0.0.1:{postfix.reinject}"'))
    lines = node.run("postfix", "print").stdout
    assert f"content_filter=sendswitch:[127.0.0.1]:{node.port}" in lines
    with node:
        postfix.write_configuration()
        master = postfix.folder / "etc" / "master.cf"
        kept = [
            entry
            for entry in _entries(master.read_text())
            if not entry.startswith(("sendswitch ", f"127.0.0.1:{postfix.reinject} "))
        ]
        kept = [entry for entry in kept if not entry.startswith(f"127.0.0.1:{postfix.smtp} ")]
        printed = lines.replace("smtp inet", f"127.0.0.1:{postfix.smtp} inet", 1)
        master.write_text("\n".join(kept) + "\n" + printed)
        postfix.write_configuration = lambda: None  # type: ignore[method-assign]
        with postfix:
            chain.send(postfix.smtp, "sender@example.test", ["joe@example.test"], body("printed"))
            assert b"X-SendSwitch-Trace" in wait_of(postfix, "joe", "printed")


def _entries(text: str) -> list[str]:
    entries: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += "\n" + line
        elif line.strip():
            entries.append(line)
    return entries


class Beside:
    """A Postfix that knows nothing of us yet, and a node that will be put into it."""

    def __init__(self, folder: Path, mode: str, extra: str = "") -> None:
        self.back = free_port()
        self.node = Node(folder / "node", f"127.0.0.1:{self.back}", mode="proxy" if mode == "proxy" else "filter")
        self.postfix = Postfix(folder / "postfix", extra=extra)
        self.mode = mode

    def run(self, *arguments: str, code: int = 0) -> Any:
        done = self.node.run("postfix", *arguments, "--json", check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    @property
    def where(self) -> tuple[str, ...]:
        return ("--postfix-config", str(self.postfix.folder / "etc"))

    def reload(self) -> None:
        assert self.postfix.process is not None
        self.postfix.process.send_signal(signal.SIGHUP)

    def check(self, to: str, code: int, limit: str = "30s") -> Any:
        sender = "sender@example.test"
        return self.run(
            *("check", "--to", to, "--smtp", f"127.0.0.1:{self.postfix.plain}", "--from", sender, "--limit", limit),
            code=code,
        )


@pytest.mark.parametrize("mode", ["filter", "proxy"])
def test_postfix_is_changed_checked_and_changed_back(mode: str, public: Path) -> None:
    beside = Beside(public, mode)
    with beside.postfix as postfix, beside.node as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "tag"\ntags = ["SEEN"]\n')
        master = postfix.folder / "etc" / "master.cf"
        before = master.read_text()
        services, parameters = said(master, "-M"), said(master, "-P")
        service = f"127.0.0.1:{postfix.plain}/inet"
        found = beside.check("ann@example.test", 1, "2s")
        assert "look at `postqueue -p`" in found["trouble"]
        assert [stage["name"] for stage in found["stages"]] == [f"Postfix 127.0.0.1:{postfix.plain}"]
        line = ("apply", "--mode", mode, "--service", service, *beside.where, "--no-reload")
        assert "no service smtp/inet" in beside.run("apply", "--mode", mode, *beside.where, code=3)["errors"][0]
        assert not beside.run(*line, "--dry-run")["applied"]
        assert master.read_text() == before
        assert beside.run(*line)["applied"]
        assert f"127.0.0.1:{beside.back}" in master.read_text()
        assert "already" in beside.run(*line, code=4)["errors"][0]
        past = time.time() - 60
        os.utime(master, (past, past))  # Postfix waits where a file was changed this very second
        beside.reload()
        until_open(beside.back)
        found = beside.check("ann@example.test", 0)
        names = [stage["name"] for stage in found["stages"]]
        assert names[:2] == [f"Postfix 127.0.0.1:{postfix.plain}", "SendSwitch"]
        assert names[-1] == "next hop"
        assert re.search(r"250 2\.0\.0 Ok: .*queued as", found["stages"][-1]["said"])
        if mode == "filter":
            assert "from Postfix queue id" in found["stages"][1]["said"]
            assert names[2] == "pipeline of ann@example.test, version 1"
            assert found["stages"][2]["said"] == "pass"
        drawn = node.run(
            *("postfix", "check", "--to", "ann@example.test", "--from", "sender@example.test"),
            *("--smtp", f"127.0.0.1:{postfix.plain}"),
        ).stdout
        assert "──▶ SendSwitch" in drawn
        postfix.wait_for("ann", 3)
        probes = [message for message in postfix.messages("ann") if b"Subject: SendSwitch probe" in message]
        assert [b"X-SendSwitch-Tags: SEEN" in probe for probe in probes].count(True) == 2
        # The next hop goes away: it says so.
        text = node.config.read_text()
        node.config.write_text(text.replace(f":{beside.back}", f":{free_port()}"))
        node.run("reload")
        found = beside.check("ann@example.test", 1, "3s")
        assert (
            "is the re-injection service in master.cf" in found["trouble"]
            or "did not take the probe" in found["trouble"]
        )
        node.config.write_text(text)
        node.run("reload")
        assert "not of" in beside.run("remove", "--no-reload", code=4)["errors"][0]
        assert beside.run("remove", *beside.where, "--no-reload")["commands"]
        # postconf lays it out anew; what it says is the same.
        assert said(master, "-M") == services
        assert said(master, "-P") == parameters
        assert "has not been put" in beside.run("remove", *beside.where, code=3)["errors"][0]


def aliases(folder: Path) -> str:
    """An alias of two, and a copy of all mail."""
    (folder / "aliases").write_text("team@example.test ann@example.test, bob@example.test\n")
    return f"virtual_alias_maps = texthash:{folder}/aliases\nalways_bcc = dave@example.test\n"


RESTRICTIONS = ("smtpd_data_restrictions", "smtpd_end_of_data_restrictions", "smtpd_client_restrictions")


def test_what_comes_back_meets_no_restriction_a_second_time(chain: Chain, public: Path) -> None:
    """Restrictions of main.cf that let nothing through; the service that takes mail in has none of them."""
    beside = Beside(public, "filter", "".join(f"{name} = reject\n" for name in RESTRICTIONS))
    beside.postfix.write_configuration()
    etc = beside.postfix.folder / "etc"
    plain = f"127.0.0.1:{beside.postfix.plain}/inet"
    for name in RESTRICTIONS:
        subprocess.run(["postconf", "-c", str(etc), "-P", "-e", f"{plain}/{name}="], check=True)
    beside.node.data.mkdir()
    beside.run("apply", "--service", plain, *beside.where, "--no-reload")
    past = time.time() - 60
    os.utime(etc / "master.cf", (past, past))
    beside.postfix.write_configuration = lambda: None  # type: ignore[method-assign]
    with beside.node, beside.postfix as postfix:
        chain.send(postfix.plain, "sender@example.test", ["joe@example.test"], body("unrestricted"))
        assert b"X-SendSwitch-Trace" in wait_of(postfix, "joe", "unrestricted")


@pytest.mark.parametrize("mode", ["filter", "proxy", "both"])
def test_addresses_are_mapped_once(mode: str, chain: Chain, public: Path) -> None:
    beside = Beside(public, "proxy" if mode == "both" else mode, aliases(public))
    second = free_port()
    if mode == "both":
        with beside.node.config.open("a") as config:
            config.write(f'\n[[listener]]\nmode = "filter"\nbind = "127.0.0.1:{second}"\n')
    with beside.postfix as postfix, beside.node as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "tag"\ntags = ["SEEN"]\n')
        master = postfix.folder / "etc" / "master.cf"
        before = said(master, "-P")
        plain, other = f"127.0.0.1:{postfix.plain}/inet", f"127.0.0.1:{postfix.smtp}/inet"
        ports = {postfix.plain: "filter" if mode == "filter" else "proxy"}
        beside.run("apply", "--mode", ports[postfix.plain], "--service", plain, *beside.where, "--no-reload")
        if mode == "both":
            ports[postfix.smtp] = "filter"
            beside.run("apply", "--service", other, *beside.where, "--no-reload")
            assert f"{plain} already" in beside.run("apply", "--service", plain, *beside.where, code=4)["errors"][0]
        past = time.time() - 60
        os.utime(master, (past, past))
        beside.reload()
        until_open(beside.back)
        for n, port in enumerate(ports):
            chain.send(port, "sender@example.test", ["team@example.test"], body(f"mapped{n}"))
        for user in ("ann", "bob", "dave"):
            postfix.wait_for(user, len(ports))
        chain.send(postfix.plain, "sender@example.test", ["joe@example.test"], body("last"))
        wait_of(postfix, "joe", "last")
        for user in ("ann", "bob"):
            assert len(postfix.messages(user)) == len(ports), user
        assert len(postfix.messages("dave")) == len(ports) + 1
        # Aliases before the filter decide whose pipeline runs.
        assert any(b"X-SendSwitch-Tags: SEEN" in m for m in postfix.messages("ann")) is (mode == "filter")
        where = ("--smtp", f"127.0.0.1:{postfix.plain}", "--from", "sender@example.test", *beside.where)
        assert beside.run("check", "--to", "joe@example.test", *where)["ok"]
        # Both sides map, or none.
        back = f"127.0.0.1:{beside.back}/inet/receive_override_options"
        line = ["postconf", "-c", str(master.parent), "-P", "-e"]
        wrong = ("no_milters", "mapped twice") if mode == "filter" else ("no_address_mappings", "mapped neither")
        subprocess.run([*line, f"{back}={wrong[0]}"], check=True)
        assert wrong[1] in beside.run("check", "--to", "joe@example.test", *where, code=1)["trouble"]
        beside.run("remove", *beside.where, "--no-reload")
        assert said(master, "-P") == before


def test_another_filter_is_not_pushed_aside(public: Path) -> None:
    beside = Beside(public, "filter", "content_filter = amavis:[127.0.0.1]:10024\n")
    beside.postfix.write_configuration()
    beside.node.data.mkdir()
    master = beside.postfix.folder / "etc" / "master.cf"
    service = f"127.0.0.1:{beside.postfix.plain}/inet"
    line = ("apply", "--service", service, *beside.where, "--no-reload")
    before = said(master, "-M"), said(master, "-P")
    refused = beside.run(*line, code=4)["errors"][0]
    assert "content_filter = amavis:[127.0.0.1]:10024" in refused
    assert f"apply --service 127.0.0.1:{beside.postfix.reinject}/inet" in refused
    assert "--replace" in refused
    assert (said(master, "-M"), said(master, "-P")) == before
    # Behind it: its re-injection service. Addresses were mapped in front of both, whether it says so or not.
    behind = f"127.0.0.1:{beside.postfix.reinject}/inet"
    unmapped = f"{behind}/receive_override_options=no_address_mappings"
    subprocess.run(["postconf", "-c", str(master.parent), "-P", "-e", unmapped], check=True)
    before = said(master, "-M"), said(master, "-P")
    beside.run("apply", "--service", behind, *beside.where, "--no-reload")
    back = f"127.0.0.1:{beside.back}/inet/receive_override_options"
    assert any(text.startswith(back) and "no_address_mappings" in text for text in said(master, "-P"))
    beside.run("remove", *beside.where, "--no-reload")
    assert (said(master, "-M"), said(master, "-P")) == before
    # A port that somebody has.
    text = beside.node.config.read_text()
    beside.node.config.write_text(text.replace(f":{beside.back}", f":{beside.postfix.reinject}"))
    refused = beside.run("apply", "--service", f"127.0.0.1:{beside.postfix.smtp}/inet", *beside.where, code=4)
    assert f"a service at port {beside.postfix.reinject} already" in refused["errors"][0]
    # In its place, and back.
    beside.run(*line, "--replace")
    assert f"{service}/content_filter = sendswitch:[127.0.0.1]:{beside.node.port}" in said(master, "-P")
    beside.run("remove", *beside.where, "--no-reload")
    assert (said(master, "-M"), said(master, "-P")) == before


def said(master: Path, what: str) -> list[str]:
    line = ["postconf", "-c", str(master.parent), what]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()


def until_open(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < end
        time.sleep(0.05)


# pipe(8)


def piped(node: Node, message: bytes, *arguments: str) -> tuple[int, str]:
    line = node.line("pipe", *arguments)
    # Where Postfix puts it: the options of the program first.
    config = line.index("--config")
    line = [*line[:3], *line[config : config + 2], *line[3:config]]
    done = subprocess.run(line, input=message, capture_output=True, check=False)
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def test_pipe_has_the_codes_that_postfix_knows(tmp_path: Path) -> None:
    mail = b"From sender@example.org Sat Nov 21 2026\nSubject: piped\n\nline\n.\nend\n"
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", listener={"message_size": "20kB"}) as node:
        extra = (
            "--client-address",
            "192.0.2.7",
            "--client-name",
            "mx.example.org",
            "--helo",
            "mx",
            "--queue-id",
            "4XYZ",
        )
        code, said = piped(node, mail, *extra, "-f", "sender@example.org", "--", "ann@example.test", "-x@example.test")
        assert (code, said[:12]) == (0, "250 2.0.0 Ok"), said
        end = time.monotonic() + 10
        while not hop.parcels and time.monotonic() < end:
            time.sleep(0.02)
        (parcel,) = hop.parcels
        assert parcel.data.endswith(b"Subject: piped\r\n\r\nline\r\n.\r\nend\r\n")
        assert [r.address for r in parcel.envelope.recipients] == ["ann@example.test", "-x@example.test"]
        assert parcel.envelope.sender == "sender@example.org"
        rows = json.loads(node.run("message", "list", "ip:192.0.2.7", "queue-id:4XYZ", "--json").stdout)
        while len(rows) < 2 and time.monotonic() < end:
            rows = json.loads(node.run("message", "list", "ip:192.0.2.7", "queue-id:4XYZ", "--json").stdout)
        assert len(rows) == 2
        code, said = piped(node, mail + b"x" * 30_000, "-f", "", "--", "ann@example.test")
        assert (code, said[:9]) == (69, "552 5.3.4"), said
        # Whatever is wrong with how it is called, Postfix must keep the mail.
        assert piped(node, mail, "-f", "sender@example.org")[0] == 75
        assert piped(node, mail, "--no-such-option", "-f", "", "--", "ann@example.test")[0] == 75
    code, said = piped(node, mail, "-f", "", "--", "ann@example.test")
    assert code == 75, said
    node.config.write_text("[nodes]\n")
    code, said = piped(node, mail, "-f", "", "--", "ann@example.test")
    assert code == 75, said
    assert "unknown key" in said


def for_everybody(public: Path) -> str:
    """Return the command line of our program for any user, also where the checkout is root's alone (in /root)."""
    checkout, packages = Path(sendswitch.__file__).parents[1], Path(pydantic.__file__).parents[1]
    if all(folder.stat().st_mode & stat.S_IXOTH for place in (checkout, packages) for folder in place.parents):
        return f"{sys.executable} -m sendswitch.cli.main"
    copied = public / "packages"
    shutil.copytree(packages, copied, ignore=shutil.ignore_patterns("__pycache__", "mypy*", "ruff*"))
    shutil.copytree(checkout / "sendswitch", copied / "sendswitch")
    return f"/usr/bin/env PYTHONPATH={copied} {Path(sys.executable).resolve()} -m sendswitch.cli.main"


def test_mail_goes_through_pipe_of_a_real_postfix(public: Path) -> None:
    beside = Beside(public, "pipe")
    with beside.postfix as postfix, beside.node as node:
        text = node.run("postfix", "print", "--mode", "pipe").stdout
        assert "content_filter=sendswitch:" in text
        service = f"127.0.0.1:{postfix.plain}/inet"
        beside.run("apply", "--mode", "pipe", "--service", service, *beside.where, "--no-reload")
        master = postfix.folder / "etc" / "master.cf"
        # This machine has neither a user of ours nor the program where a package would put it.
        program = for_everybody(public)
        changed = master.read_text().replace("user=sendswitch", "user=nobody").replace("/usr/bin/sendswitch", program)
        master.write_text(changed)
        node.config.chmod(0o644)
        past = time.time() - 60
        os.utime(master, (past, past))
        beside.reload()
        until_open(beside.back)
        with smtplib.SMTP("127.0.0.1", postfix.plain) as client:
            client.sendmail("sender@example.test", ["joe@example.test", "ann@example.test"], body("through pipe"))
        assert b"X-SendSwitch-Trace" in wait_of(postfix, "joe", "through pipe")
        assert b"X-SendSwitch-Trace" in wait_of(postfix, "ann", "through pipe")


def test_a_bounce_of_forwarded_mail_finds_back(public: Path) -> None:
    """Away with a sender of ours, bounced by a real Postfix to that, and from there to who wrote the mail."""
    node = Node(public / "node", "127.0.0.1:1", settings={"forward": {"srs_domain": "srs.example.test"}})
    with NextHop() as friends:
        ways = {
            "srs.example.test": f"smtp:[127.0.0.1]:{node.port}",
            "friends.test": f"smtp:[127.0.0.1]:{friends.port}",
            "elsewhere.test": "error:5.1.1 no such user",
        }
        # As docs/processors/forward.md has it, with a cache in memory.
        extra = "relay_domains = srs.example.test\nunverified_recipient_reject_code = 550\naddress_verify_map =\n"
        extra += "smtpd_recipient_restrictions ="
        extra += " check_recipient_access inline:{srs.example.test=reject_unverified_recipient}\n"
        extra += "transport_maps = inline:{"
        extra += ", ".join(f"{{{domain} = {way}}}" for domain, way in ways.items()) + "}\n"
        with Postfix(public / "postfix", content_filter=node.port, extra=extra) as postfix:
            node.config.write_text(node.config.read_text().replace('127.0.0.1:1"', f'127.0.0.1:{postfix.reinject}"'))
            with node:
                node.add_pipeline("carol@example.test", '[[step]]\nuse = "forward"\nto = ["ann@elsewhere.test"]\n')
                with smtplib.SMTP("127.0.0.1", postfix.smtp) as client:
                    client.sendmail("friend@friends.test", ["carol@example.test"], body("gone", "friend@friends.test"))
                until(lambda: friends.parcels)
                with smtplib.SMTP("127.0.0.1", postfix.smtp) as client:
                    client.ehlo()
                    client.mail("forged@friends.test")
                    for address, code, why in (
                        ("SRS0=AAAAAAAA=AA=friends.test=anybody@srs.example.test", 550, b"was not made here"),
                        ("nobody@srs.example.test", 450, b"nobody has a mailbox at srs.example.test"),
                    ):
                        said = client.rcpt(address)
                        assert said[0] == code, said
                        assert why in said[1]
                asked = ("message", "list", "to:friend@friends.test", "--json")
                until(lambda: json.loads(node.run(*asked).stdout))
                (row,) = json.loads(node.run(*asked).stdout)
                story = node.run("message", "explain", row["id"]).stdout
    (parcel,) = friends.parcels
    assert parcel.envelope.sender == ""
    assert [recipient.address for recipient in parcel.envelope.recipients] == ["friend@friends.test"]
    assert b"Final-Recipient: rfc822; ann@elsewhere.test" in parcel.data
    assert re.search(r"It came for <SRS0=\S+=friends\.test=friend@srs\.example\.test>", story.replace("\n", ""))


def test_a_canary_flies_through_the_chain_and_is_missed_when_it_does_not(public: Path) -> None:
    beside = Beside(public, "filter")
    node, postfix = beside.node, beside.postfix
    flight = f'\n[canary]\nto = "joe@example.test"\nsmtp = "127.0.0.1:{postfix.smtp}"\ninterval = "1s"\nlimit = "3s"\n'
    node.config.write_text(node.config.read_text().replace(f":{beside.back}", f":{postfix.reinject}") + flight)
    postfix.content_filter = node.port
    with node:
        with postfix:
            until(lambda: figure(node, "sendswitch_canary_seconds") > 0, 60, node)
            assert healthy(node)["status"] == "healthy"
            assert b"Subject: SendSwitch probe" in postfix.wait_for("joe")[0]
        until(lambda: figure(node, "sendswitch_canary_failures_total") > 0, 60, node)
        assert healthy(node)["status"] == "degraded"
        assert "did not take it" in healthy(node)["cause"] or "run `sendswitch postfix check`" in healthy(node)["cause"]
        assert '"event":"canary_lost"' in node.log.read_text()


def healthy(node: Node) -> dict[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/healthz?check=canary", timeout=10) as answer:
        found: dict[str, str] = json.loads(answer.read())["checks"][0]
        return found
