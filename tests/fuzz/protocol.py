"""A fuzzer for what strangers send: the protocol halves, content, addresses and headers refuse, but never raise.

It keeps every input that reached a line nothing had reached before and changes those further, so that it finds its
way into the dialog. `make fuzz` runs it for a minute; what it finds is printed as bytes for a test of its own.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from sendswitch.mail import address, xtext
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.headers import MarkSubject, RemoveHeader, edit
from sendswitch.mail.message import Mail
from sendswitch.smtp.protocol import replies
from sendswitch.smtp.protocol.client import ClientConnection, SendContent, State
from sendswitch.smtp.protocol.client import StartTls as ClientStartTls
from sendswitch.smtp.protocol.sasl import Credentials
from sendswitch.smtp.protocol.server import Extensions, Limits, ServerConnection, StartTls

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
        if machine.state is State.READY:
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
}  # fmt: skip


class Reached:
    """The lines of our own code that were reached, counted while a target runs."""

    def __init__(self) -> None:
        self.lines: set[tuple[CodeType, int]] = set()

    def run(self, target: Callable[[bytes], None], data: bytes) -> bool:
        """Run the target; True when it reached something new. Raises what the target raises."""
        before, others = len(self.lines), sys.gettrace()
        sys.settrace(self._call)
        try:
            target(data)
        finally:
            sys.settrace(others)
        return len(self.lines) > before

    def _call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._line if "/sendswitch/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        self.lines.add((frame.f_code, frame.f_lineno))
        return self._line


def mutated(corpus: list[bytes], chance: random.Random) -> bytes:
    """One of the corpus with a few things changed."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        other = chance.choice(corpus)
        start = chance.randrange(len(other))
        match chance.randrange(6):
            case 0:
                data[at : at + chance.randint(0, 8)] = b""
            case 1:
                data[at:at] = chance.randbytes(chance.randint(1, 4))
            case 2:
                data[at:at] = other[start : start + chance.randint(1, 60)]
            case 3:
                data[at:at] = chance.choice(
                    (b"\r\n", b"\n", b"\r", b".", b"\r\n.\r\n", b" ", b"<", b">", b"\0", b"\xff")
                )
            case 4:
                data[at:at] = bytes(data[at : at + 40]) * chance.randint(1, 50)
            case _:
                data[at : at + 1] = chance.randbytes(1)
    return bytes(data[: 4 * SIZE]) or b"\0"


def fuzz(target: Callable[[bytes], None], seconds: float, seed: int) -> tuple[int, int, bytes | None]:
    """Inputs tried, lines reached, and the first input that made the target raise, if one did."""
    chance, reached, corpus, tried = random.Random(seed), Reached(), list(SEEDS[target]), 0
    end = time.monotonic() + seconds
    waiting = list(corpus)
    while time.monotonic() < end:
        data = waiting.pop() if waiting else mutated(corpus, chance)
        tried += 1
        try:
            if reached.run(target, data):
                corpus.append(data)
        except Exception:
            return tried, len(reached.lines), data
    return tried, len(reached.lines), None


def main() -> None:
    """Fuzz every target in turn; exit with 1 when one raised."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    failed = False
    for target in SEEDS:
        tried, lines, bad = fuzz(target, options.seconds, options.seed)
        print(f"{target.__name__}: {tried} inputs, {lines} lines reached, seed {options.seed}", flush=True)
        if bad is not None:
            failed = True
            print(f"  raised for {bad!r}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
