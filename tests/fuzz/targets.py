"""What is fuzzed: whatever strangers send is refused or read, never raises, and costs little.

A target takes bytes and raises when something is wrong. `make fuzz` runs each of them (`tests.fuzz`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sendswitch.mail import address, results, xtext
from sendswitch.mail.address_list import addresses
from sendswitch.mail.content import InMemory
from sendswitch.mail.edits import MarkSubject, RemoveHeader
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.headers import dispositions, edit, glance, unfinished, without_own
from sendswitch.mail.message import LARGE_HEADER, Mail
from sendswitch.processors.attachment import Attachment, AttachmentOptions
from sendswitch.sieve.grammar import Spent
from sendswitch.sieve.script import Script
from sendswitch.smtp.protocol import replies
from sendswitch.smtp.protocol.client import ClientConnection, ClientState, SendContent
from sendswitch.smtp.protocol.client import StartTls as ClientStartTls
from sendswitch.smtp.protocol.content import clean
from sendswitch.smtp.protocol.sasl import Credentials
from sendswitch.smtp.protocol.server import Extensions, Limits, ServerConnection, StartTls
from sendswitch.testing import context

SIZE = 10_000
BOUND = 3 * SIZE  # bytes a connection may keep, whatever it is sent


def server(data: bytes) -> None:
    """The server half: the first byte says how the rest is cut and what is switched on."""
    how, wire = data[0], data[1:]
    lmtp, starttls, step = bool(how & 1), bool(how & 2), how >> 2 or len(wire) or 1
    extensions = Extensions(xforward=True, xclient=True, starttls=starttls, auth="may", clear=True)
    machine = ServerConnection(
        "mx", limits=Limits(size=SIZE, recipients=10), lmtp=lmtp, extensions=extensions, client=Client()
    )
    machine.greet()
    for at in range(0, len(wire), step):
        machine.receive_data(wire[at : at + step])
        while (event := machine.next_event()) is not None or machine.more:
            if isinstance(event, StartTls):
                machine.reply(replies.READY_FOR_TLS)
                machine.tls_started()
            elif isinstance(event, Credentials):
                machine.logged_in(event.user if len(event.password) > 3 else "")
            elif machine.waiting:
                machine.reply(replies.OK)
        said = machine.data_to_send()
        assert all(line[:3].isdigit() for line in said.split(b"\r\n") if line), said
        assert machine.closed or machine.buffered < BOUND


def client(data: bytes) -> None:
    """The client half, whose server may be anybody: each transaction ends at most once."""
    how, wire = data[0], data[1:]
    step = how >> 2 or len(wire) or 1
    machine = ClientConnection("me", lmtp=bool(how & 1), tls="may" if how & 2 else "off")
    mail = Envelope("a@b", (Recipient("c@d"), Recipient("e@f")), Client("192.0.2.1", "n"))
    for at in range(0, len(wire), step):
        machine.receive_data(wire[at : at + step])
        while (event := machine.next_event()) is not None:
            if isinstance(event, ClientStartTls):
                machine.tls_started()
            elif isinstance(event, SendContent):
                machine.content_sent()
        if machine.state is ClientState.READY:
            machine.send(mail, 9, None if how & 4 else b"x\r\n.y\r\n", unanimous=bool(how & 8))
        elif machine.can_send_ahead:
            machine.send_ahead(mail, 9, b".\r\n")
        machine.data_to_send()
    machine.lost()
    assert machine.lost() is None


def message(data: bytes) -> None:
    """What pipelines and the composer read of a message."""
    mail = Mail(InMemory(data))
    assert isinstance(mail.text + mail.html, str)
    mail.subject.encode()
    assert isinstance([mail.attachments, mail.findings], list)
    address.in_header(mail.raw_headers("from"))
    edit(InMemory(data).head(), (MarkSubject("*S* "), RemoveHeader("From")))
    address.parse_path(xtext.decode(data.decode("latin-1")))


class Costly(Exception):
    """An input takes more of a core than its size allows."""


# Where `tests` can be imported from.
ROOT = Path(__file__).parents[2]
# Bytes that a short input is repeated to, and seconds of a core for them: more of a header than LARGE_HEADER is not
# looked at in the event loop, which 1 MB may keep for 50 ms; a step may take 2 s for 1 MB.
IN_LOOP, IN_STEP = (LARGE_HEADER, 0.05), (100_000, 0.2)
_STEP = Attachment(AttachmentOptions(names=("*.exe",)))
_SCRIPT = Script(
    'require ["body", "fileinto", "envelope", "variables", "regex", "relational"];\n'
    'if anyof (body :text :contains "caf\u00e9", header :matches ["subject", "from"] "*a*b*c*", '
    'address :all :is ["from", "to", "cc"] "x@y", body :content "text" :contains ["x", "y"]) { fileinto "A"; }'
)


def grown(data: bytes, size: int) -> bytes:
    """Return a message that repeats a piece of `data`: its first bytes say what stands before and behind the piece."""
    before, piece, rest = data[0], 1 + data[1], data[2:]
    head, unit, tail = rest[:before], rest[before : before + piece] or b"x", rest[before + piece :]
    return clean(head + unit * (size // len(unit)) + tail)


def in_loop(data: bytes) -> None:
    """Do what the node does with a message before it is accepted and when it is sent."""
    head = InMemory(data).head()
    unfinished(head)
    glance(head)
    dispositions(head, data[:262_144])
    without_own(head)


def in_step(data: bytes) -> None:
    """Read a message as steps do."""
    mail = Mail(InMemory(data))
    assert isinstance(mail.text + mail.html + mail.subject, str)
    assert isinstance([mail.attachments, mail.findings], list)
    for name in ("from", "to", "subject", "content-type", "authentication-results", "dkim-signature"):
        for value in mail.raw_headers(name)[:20]:
            addresses(value)
            results.parse(value)
            address.in_header([value])
    _STEP.read(mail, context())
    with suppress(Spent):
        _SCRIPT.run(mail, "a@b.example", "c@d.example")


def cost(work: Callable[[bytes], None], data: bytes) -> float:
    """Return the seconds of a core that it takes, the least of three."""
    least = float("inf")
    for _ in range(3):
        began = time.process_time()
        work(data)
        least = min(least, time.process_time() - began)
    return least


def cheap(work: Callable[[bytes], None], limits: tuple[int, float], data: bytes) -> None:
    """Raise Costly for an input whose work takes too long. Who is watched is slow, so that a process decides that is
    not."""
    if len(data) < 3:
        return
    size, most = limits
    message = grown(data, size)
    began = time.process_time()
    work(message)
    if time.process_time() - began <= most:
        return
    line = [sys.executable, "-m", "tests.fuzz", "cost", f"{work.__module__}:{work.__name__}"]
    took = float(subprocess.run(line, input=message, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)
    if took > most:
        raise Costly(f"{len(message)} bytes take {took:.2f} s in {work.__name__}, at most {most:.2f} s are allowed")


def loop_cost(data: bytes) -> None:
    """What is done in the event loop is done soon."""
    cheap(in_loop, IN_LOOP, data)


def step_cost(data: bytes) -> None:
    """What a step does takes at most 2 s for 1 MB."""
    cheap(in_step, IN_STEP, data)


HELLO = b"EHLO x\r\nMAIL FROM:<a@b> SIZE=5 BODY=8BITMIME\r\nRCPT TO:<c@d> NOTIFY=NEVER ORCPT=rfc822;x+2By\r\n"
SEEDS: dict[Callable[[bytes], None], list[bytes]] = {
    server: [
        b"\0" + HELLO + b"DATA\r\nA: 1\r\n\r\n..x\r\n.\r\nQUIT\r\n",
        b"\x0c" + HELLO + b"BDAT 3\r\nabcBDAT 2 LAST\r\nxyRSET\r\nNOOP\r\nVRFY x\r\n",
        b"\x02EHLO x\r\nSTARTTLS\r\nEHLO x\r\nXFORWARD NAME=x ADDR=192.0.2.1 HELO=[UNAVAILABLE]\r\n",
        b"\x01LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n.\r\n",
    ],
    client: [
        b"\0220 x\r\n250-x\r\n250-PIPELINING\r\n250-XFORWARD NAME ADDR\r\n250 SIZE 100\r\n"
        + b"250 ok\r\n" * 4 + b"354 x\r\n",
        b"\x08220 x\r\n250-x\r\n250 CHUNKING\r\n250 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 ok\r\n",
        b"\x01220 x\r\n250 x\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 x\r\n250 ok\r\n450 no\r\n421 x\r\n",
        b"\x02220 x\r\n250 STARTTLS\r\n220 go\r\n250 x\r\n",
    ],
    message: [
        b"From: \"a\" <b@c>\r\nSubject: =?utf-8?q?x?=\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n",
        b"From x\r\nA:\r\n b\r\n\r\nx",
    ],
    loop_cost: [
        b"\0\x05A: b\r\n",
        b"\x09\x04Subject: =?x?q?a",
        b"\x1e\x20Content-Type: multipart/mixed\n\nContent-Disposition: attachment\n",
    ],
    step_cost: [
        b"\x0e\x0bContent-Type: boundary=a;\n\n",
        b"\x09\x05Subject: =?x?q?a\n\n",
        b"\x06\x02From: a:,;<b@c>(d)\n\n",
        b"\x2d\x06Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n",
        b"\x18\x01Authentication-Results: (((a; dkim=pass\n\n",
        b"\x1c\x1cContent-Type: message/rfc822\n\nContent-Type: message/rfc822\n\nx",
        b"\x38\x0eContent-Type: text/plain; x*0=a\nContent-Disposition: a; filename*1=a; filename*2*=b''%41\n\nx",
    ],
}  # fmt: skip
