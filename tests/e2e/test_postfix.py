"""The main job with a real Postfix: in, decided for each recipient, out; after the queue and before it."""

from __future__ import annotations

import email
import json
import smtplib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node, Postfix, public_folder
from tests.conftest import need

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
        found = of(postfix.wait_for(user, count), subject)
        if found:
            return found[0]
        count = len(postfix.messages(user)) + 1


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
        postfix._write()
        master = postfix.folder / "etc" / "master.cf"
        kept = [
            entry
            for entry in _entries(master.read_text())
            if not entry.startswith(("sendswitch ", f"127.0.0.1:{postfix.reinject} "))
        ]
        kept = [entry for entry in kept if not entry.startswith(f"127.0.0.1:{postfix.smtp} ")]
        printed = lines.replace("smtp      inet", f"127.0.0.1:{postfix.smtp} inet", 1)
        master.write_text("\n".join(kept) + "\n" + printed)
        postfix._write = lambda: None  # type: ignore[method-assign]
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
