"""For tests, ours and yours: message builders, a clock that stands still, a courier and a listener's handler in memory,
and dialogs as transcripts.

The doubles pass the same contract suites as the real parts (tests/integration/delivery/test_couriers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from mimetypes import guess_type
from typing import Any

from sendswitch.mail.content import Content, InMemory, read_all
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors.base import Context, Processor, ServiceStep, with_present_names
from sendswitch.reply import Reply
from sendswitch.smtp.client import Delivered
from sendswitch.smtp.handler import Sink
from sendswitch.smtp.protocol.client import Outcome
from sendswitch.smtp.protocol.sasl import Credentials
from sendswitch.smtp.protocol.server import EndOfData, MailCommand, RcptCommand, ServerConnection

OK = Reply(250, "2.0.0", "Ok")


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return seconds since the epoch."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass; negative for a clock that was set back."""
        self.now += seconds


def message(body: str | bytes = "Hello.\n", attachments: Mapping[str, bytes] | None = None, /, **headers: str) -> bytes:
    """Return a message as bytes with CRLF line ends: `message("text", Subject="hi", From_="a@example.org")`.

    Underscores in names of fields become hyphens. `attachments` are contents by file name. A `body` of bytes is the
    whole message as it is, such as a file's content. Raises TypeError when bytes come with fields or attachments.
    """
    if isinstance(body, bytes):
        if headers or attachments:
            raise TypeError("bytes are a whole message; fields and attachments go with a text")
        return body
    fields = {"From": "sender@example.org", "To": "ann@example.test", "Subject": "test"}
    for name, value in headers.items():
        fields[name.rstrip("_").replace("_", "-")] = value
    head = "".join(f"{name}: {value}\n" for name, value in fields.items())
    if not attachments:
        return _crlf(f"{head}\n{body}".encode())
    whole = EmailMessage()
    whole.set_content(body)
    for name, data in attachments.items():
        main, _, sub = (guess_type(name)[0] or "application/octet-stream").partition("/")
        whole.add_attachment(data, maintype=main, subtype=sub, filename=name)
    return _crlf(head.encode() + whole.as_bytes())


def _crlf(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def mail(body: str | bytes = "Hello.\n", attachments: Mapping[str, bytes] | None = None, /, **headers: str) -> Mail:
    """Return a message as a processor gets it; arguments as of `message`."""
    return Mail(InMemory(message(body, attachments, **headers)))


def envelope(sender: str = "sender@example.org", *recipients: str) -> Envelope:
    """Return an envelope for these recipients, ann@example.test by default."""
    return Envelope(sender, tuple(Recipient(to) for to in recipients or ("ann@example.test",)))


def context(sender: str = "sender@example.org", recipient: str = "ann@example.test", now: float = 0.0) -> Context:
    """Return a context for a processor."""
    return Context("0000000000000", Recipient(recipient), sender, Client(address="192.0.2.1"), now)


async def opinion(processor: Processor | ServiceStep, mail: Mail, context: Context) -> Verdict | None:
    """Return a processor's verdict on a message, whether it finds that itself or asks a service."""
    step = with_present_names(processor)
    if isinstance(step, ServiceStep):
        return step.evaluate(await step.query(mail, context), mail, context)
    assert isinstance(step, Processor)
    return await step.process(mail, context)


def assert_verdict(verdict: Verdict | None, **expected: Any) -> None:
    """Check that a verdict is as expected in the fields that are named; `reason` and `reply` must contain that text.

    `assert_verdict(verdict, action="deny", reason="loud", tags=("SPAM",))`. Raises AssertionError that shows both.
    """
    assert verdict is not None, f"there is no verdict, where {expected} was expected"
    for name, value in expected.items():
        found = getattr(verdict, name)
        within = name in ("reason", "reply") and value is not None
        good = str(value) in str(found or "") if within else found == value
        assert good, f"{name} is {found!r}, where {value!r} was expected{' in it' if within else ''}: {verdict}"


@dataclass
class Parcel:
    """One message that a double took."""

    envelope: Envelope
    data: bytes


@dataclass
class MemoryCourier:
    """A next hop in memory. `answers` has replies by address; other addresses are accepted.

    With `late`, the replies come after the content, as with LMTP.
    """

    answers: dict[str, Reply] = field(default_factory=dict)
    parcels: list[Parcel] = field(default_factory=list)
    down: Reply | None = None
    late: bool = False

    async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        """Take the message for every recipient that is not refused."""
        await asyncio.sleep(0)
        if self.down is not None:
            return Delivered((Outcome(self.down),) * len(envelope.recipients))
        replies = [self.answers.get(recipient.address, OK) for recipient in envelope.recipients]
        if unanimous and not self.late and not all(reply.positive for reply in replies):
            return Delivered(tuple(Outcome(None if reply.positive else reply) for reply in replies))
        taken = tuple(r for r, reply in zip(envelope.recipients, replies, strict=True) if reply.positive)
        if taken:
            self.parcels.append(Parcel(Envelope(envelope.sender, taken, envelope.client), read_all(content)))
        return Delivered(tuple(Outcome(reply) for reply in replies), dsn=True)

    async def check(self) -> Reply | None:
        """Return whether it is down."""
        return self.down

    def close(self) -> None:
        """Do nothing: nothing is kept."""


class MemorySink:
    """Takes content into memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.discarded = False
        self.full = False

    def write(self, data: bytes) -> None:
        """Take a piece."""
        self.data += data

    async def drain(self) -> None:
        """Do nothing: there is nothing to move."""
        self.full = False

    def discard(self) -> None:
        """Forget it."""
        self.discarded = True
        self.data.clear()


class Inbox:
    """A listener's handler that keeps its mail. `refuse` maps an address to the reply for RCPT."""

    def __init__(
        self, refuse: dict[str, Reply] | None = None, answer: Callable[[], Sequence[Reply]] | None = None
    ) -> None:
        self.parcels: list[Parcel] = []
        self.refusals: list[tuple[Envelope, Reply]] = []
        self._refuse, self._answer = refuse or {}, answer

    def admit(self) -> Reply | None:
        """Take any session."""
        return None

    def mail(self, mail: MailCommand) -> Reply | asyncio.Future[Reply]:
        """Take any sender."""
        return OK

    def recipient(self, recipient: RcptCommand) -> Reply | asyncio.Future[Reply]:
        """Take any recipient that is not refused."""
        return self._refuse.get(recipient.recipient.address, OK)

    def refused(self, envelope: Envelope, reply: Reply, why: str = "") -> None:
        """Record a refused message."""
        self.refusals.append((envelope, reply))

    def sink(self) -> MemorySink:
        """Return a sink in memory."""
        return MemorySink()

    def message(self, envelope: Envelope, sink: Sink) -> asyncio.Future[tuple[Reply, ...]]:
        """Keep the message and reply 250, or `answer`."""
        assert isinstance(sink, MemorySink)
        future: asyncio.Future[tuple[Reply, ...]] = asyncio.get_running_loop().create_future()
        replies = tuple(self._answer()) if self._answer else (OK,)
        if all(reply.positive for reply in replies):
            self.parcels.append(Parcel(envelope, bytes(sink.data)))
        future.set_result(replies)
        return future


def dialog(
    machine: ServerConnection, *pieces: bytes, passwords: Mapping[str, str] | None = None
) -> tuple[list[object], bytes]:
    """Feed pieces to a server half and accept everything. Return its events and its output.

    `passwords` are those of users, by name; nobody else logs in.
    """
    events: list[object] = []
    said = b""
    for piece in pieces:
        machine.receive_data(piece)
        while (event := machine.next_event()) is not None or machine.more:
            if event is not None:
                events.append(event)
            if isinstance(event, Credentials):
                known = passwords is not None and passwords.get(event.user) == event.password
                machine.logged_in(event.user if known else "")
            elif machine.waiting:
                machine.reply((event.refusal if isinstance(event, EndOfData) else None) or OK)
        said += machine.data_to_send()
    return events, said
