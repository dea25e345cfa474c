"""The client half of SMTP and LMTP: one connection, transactions one after the other, a reply per recipient.

Theory of operation. `start` waits for the greeting and says EHLO (HELO where that is refused, LHLO for LMTP).
`send` queues the commands of one transaction; with PIPELINING (RFC 2920) they go out as one group, and with
CHUNKING (RFC 3030) a message in memory goes with them, so that a transaction is one round trip. Without CHUNKING
`send_ahead` gives the same: the next transaction's commands go out right behind the end of this one's content
(RFC 2920 3.1 allows MAIL anywhere in a group). `next_event` reads replies and matches each with the oldest command
that waits for one.

Rules:
1. A transaction ends with exactly one `Finished`, which has one `Outcome` for each recipient, in order.
2. A connection lost after the whole content was written leaves the outcome `uncertain`: the server may have
   the message (RFC 5321 4.5.3.2.6 calls it the synchronization problem; RFC 1047). That is the only case.
3. DATA's 354 although every recipient was refused is answered with an empty message (RFC 2920 3.1).
4. A transaction sent ahead begins when the one before has ended; if the connection is lost before, it never began and
   has no `Finished`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache

from sendswitch.mail import xtext
from sendswitch.mail.address import valid
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.reply import Reply, parse_reply, printable
from sendswitch.smtp.protocol import parameters
from sendswitch.smtp.protocol.content import stuffed

# RFC 5321 4.5.3.1.5 says 512; Postfix reads 2,048. A server that sends more is not speaking SMTP.
MAX_REPLY_LINE = 2048
MAX_REPLY_LINES = 100
# Octets of one command; Postfix reads 2,048 (line_length_limit) and RFC 5321 section 4.5.3.1.4 promises 512.
MAX_XFORWARD = 500
# Characters of one XFORWARD value (Postfix XFORWARD_README).
MAX_XFORWARD_VALUE = 255

LOST = Reply(451, "4.4.2", "Lost connection with the next hop")
UNCERTAIN = Reply(451, "4.4.2", "Lost connection after end of data; the message may have been delivered")
NOT_SMTP = Reply(451, "4.5.0", "The next hop does not speak SMTP")
NO_SMTPUTF8 = Reply(550, "5.6.7", "The next hop does not support SMTPUTF8, which an address or the header needs")
NO_8BITMIME = Reply(554, "5.6.3", "The next hop does not support 8BITMIME, which the content needs")
BAD_ADDRESS = Reply(553, "5.1.3", "An address is not one that can be sent")
NO_TLS = Reply(451, "4.7.4", "The next hop does not offer STARTTLS, which the configuration requires")


class ClientState(Enum):
    """The state of the dialog. `send` and `quit` may be called only in READY."""

    GREETING = auto()
    HELLO = auto()
    TLS = auto()
    READY = auto()
    ENVELOPE = auto()
    CONTENT = auto()
    RESETTING = auto()
    QUIT = auto()
    CLOSED = auto()


TRANSITIONS: dict[tuple[ClientState, str], ClientState] = {
    (ClientState.GREETING, "greeting"): ClientState.HELLO,
    (ClientState.HELLO, "hello"): ClientState.READY,
    (ClientState.HELLO, "starttls"): ClientState.TLS,
    (ClientState.TLS, "tls started"): ClientState.HELLO,
    (ClientState.READY, "send"): ClientState.ENVELOPE,
    (ClientState.ENVELOPE, "content"): ClientState.CONTENT,
    (ClientState.ENVELOPE, "reset"): ClientState.RESETTING,
    (ClientState.ENVELOPE, "end"): ClientState.READY,
    (ClientState.CONTENT, "end"): ClientState.READY,
    (ClientState.CONTENT, "next"): ClientState.ENVELOPE,
    (ClientState.RESETTING, "end"): ClientState.READY,
    (ClientState.READY, "quit"): ClientState.QUIT,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The server's reply for one recipient. `uncertain`: the server may have the message all the same.

    `reply` is None when nothing was sent because another recipient was refused (`unanimous`). `ours`: the server was
    not asked, because it lacks what this recipient needs.
    """

    reply: Reply | None
    uncertain: bool = False
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """The greeting is done; `extensions` maps keywords to their arguments."""

    extensions: dict[str, str]


@dataclass(frozen=True, slots=True)
class StartTls:
    """The server is ready for TLS. Call `tls_started` once it is up."""


@dataclass(frozen=True, slots=True)
class SendContent:
    """The server waits for content: write it dot-stuffed with its end, then call `content_sent`."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The transaction is over. The connection can be used again when the state is READY.

    `answered` is False when the server took nothing for sure: it said nothing before the content was out, or just that
    it closes (421).
    """

    outcomes: tuple[Outcome, ...]
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The session never became ready; nothing was sent."""

    reply: Reply


Event = Ready | StartTls | SendContent | Finished | Failed


@dataclass(slots=True)
class _Transaction:
    envelope: Envelope
    data: bytes | None
    unanimous: bool
    replies: list[Reply | None]
    asked: list[int]  # places of the recipients that RCPT names
    accepted: list[int] = field(default_factory=list)
    refused: Reply | None = None  # MAIL was
    sent: bool = False  # the whole content is written
    heard: bool = False  # the server answered anything
    answered: int = 0  # RCPTs so far
    ends: int = 0  # LMTP: replies after the end of data so far


class ClientConnection:
    """One connection to a server. `tls` is 'off', 'may' or 'require' (RFC 3207)."""

    def __init__(self, helo: str, *, lmtp: bool = False, tls: str = "off") -> None:
        self.state = ClientState.GREETING
        self.extensions: dict[str, str] = {}
        self._helo, self._lmtp, self._tls = helo, lmtp, tls
        self._buffer = b""
        self._lines: list[bytes] = []
        self._out: list[bytes] = []
        self._todo: deque[tuple[str, bytes]] = deque()
        self._expected: deque[str] = deque(("greeting",))
        self._now: _Transaction | None = None
        self._next: _Transaction | None = None  # sent ahead

    # What the shell calls

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the server."""
        self._buffer = self._buffer + data if self._buffer else data

    def data_to_send(self) -> bytes:
        """Take the bytes to write now."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def next_event(self) -> Event | None:
        """Return the next event, or None when more bytes are needed."""
        while self.state is not ClientState.CLOSED:
            if self.state is ClientState.TLS and not self._expected:
                return None  # what came behind the answer to STARTTLS is thrown away
            reply = self._reply()
            if reply is None:
                return None
            event = self._handle(reply)
            if event is not None:
                return event
        return None

    def send(self, envelope: Envelope, size: int, data: bytes | None, *, unanimous: bool = False) -> Event | None:
        """Start a transaction. `data` is the content when it is in memory; else `SendContent` asks for it.

        With `unanimous`, nothing is sent unless every recipient was accepted. Return `Finished` at once when the server
        cannot take such a message, by its EHLO; a recipient that it cannot take is not named to it.
        """
        transaction = self._transaction(envelope, size, data, unanimous=unanimous)
        if isinstance(transaction, Finished):
            return transaction
        commands = self._commands(transaction, size)  # first, so that what it raises leaves all as it was
        self._move("send")
        self._now = transaction
        self._todo.extend(commands)
        self._pump()
        return None

    @property
    def content_is_out(self) -> bool:
        """Return whether the next reply is the one to content, which takes a server longer than any other: also where
        the content went out with the commands (CHUNKING), and their replies may come with its own.
        """
        return self.state is ClientState.CONTENT or (self._now is not None and self._now.sent)

    @property
    def only_waits(self) -> bool:
        """Return whether the server owes replies and there is nothing to write to it."""
        return bool(self._expected) and not self._out

    @property
    def can_send_ahead(self) -> bool:
        """Return whether the next transaction's commands may go out behind the content that was just written."""
        now, offered = self._now, self.extensions
        return (
            self.state is ClientState.CONTENT
            and now is not None
            and now.sent
            and self._next is None
            and not self._lmtp
            and "PIPELINING" in offered
            and "CHUNKING" not in offered
        )

    def send_ahead(self, envelope: Envelope, size: int, data: bytes) -> Event | None:
        """Start the next transaction although the reply to this one's content is still due, if `can_send_ahead`.

        Like `send`; the `Finished` that is given at once is this transaction's.
        """
        transaction = self._transaction(envelope, size, data, unanimous=False)
        if isinstance(transaction, Finished):
            return transaction
        self._todo.extend(self._commands(transaction, size))
        self._next = transaction
        self._pump()
        return None

    def _commands(self, transaction: _Transaction, size: int) -> list[tuple[str, bytes]]:
        envelope = transaction.envelope
        commands = [
            ("xforward", line) for line in _xforward_lines(self.extensions.get("XFORWARD", ""), envelope.client)
        ]
        commands.append(("mail", self._mail_line(envelope, size)))
        commands += [("rcpt", self._rcpt_line(envelope.recipients[n])) for n in transaction.asked]
        if not transaction.unanimous:
            commands.append(self._content_command(transaction))
        return commands

    @property
    def greeted(self) -> bool:
        """Return whether a transaction can begin; false again once the connection is closed."""
        return self.state not in _STARTING and self.state is not ClientState.CLOSED

    def content_sent(self) -> None:
        """Note that the content and its end are written."""
        if self._now is not None:
            self._now.sent = True

    def lost(self, reply: Reply = LOST) -> Event | None:
        """End the session, whose connection is gone or given up. Return its last event, if one is still due."""
        before, self.state = self.state, ClientState.CLOSED
        if self._now is not None:
            return self._finish_lost(reply)
        return Failed(reply) if before in _STARTING else None

    def tls_started(self) -> None:
        """Say EHLO again over TLS, and believe nothing from before (RFC 3207 section 4.2)."""
        self._buffer, self._tls = b"", "active"
        self._move("tls started")
        self._say_hello("LHLO" if self._lmtp else "EHLO")

    def quit(self) -> None:
        """Take leave. The server's answer need not be waited for."""
        if self.state is ClientState.READY:
            self._move("quit")
            self._out.append(b"QUIT\r\n")

    # Commands

    def _move(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]

    def _say_hello(self, verb: str) -> None:
        self._out.append(f"{verb} {self._helo}\r\n".encode())
        self._expected.append(verb.lower())

    def _transaction(
        self, envelope: Envelope, size: int, data: bytes | None, *, unanimous: bool
    ) -> _Transaction | Finished:
        """Return the transaction to begin, or its end when the server can take the message for no recipient."""
        replies: list[Reply | None] = [self._impossible(envelope, size)] * len(envelope.recipients)
        if not replies or replies[0] is None:
            replies = [self._unspeakable(recipient.address) for recipient in envelope.recipients]
        asked = [n for n, reply in enumerate(replies) if reply is None]
        if len(asked) < len(replies) and (unanimous or not asked):
            return Finished(tuple(Outcome(reply, ours=True) for reply in replies))
        return _Transaction(envelope, data, unanimous, replies, asked)

    def _impossible(self, envelope: Envelope, size: int) -> Reply | None:
        """Return the reason why the server cannot take this message for any recipient."""
        offered = self.extensions
        limit = offered.get("SIZE", "")
        if limit.isascii() and limit.isdigit() and 0 < int(limit) < size:
            return Reply(552, "5.3.4", f"Message size {size} exceeds the next hop's limit of {limit}")
        if envelope.body == "8BITMIME" and "8BITMIME" not in offered:
            return NO_8BITMIME
        if envelope.smtputf8 and "SMTPUTF8" not in offered:
            return NO_SMTPUTF8
        return self._unspeakable(envelope.sender) if envelope.sender else None

    def _unspeakable(self, address: str) -> Reply | None:
        """Return the reason why an address cannot be sent. One that breaks out of its brackets would be a command."""
        if not valid(address):
            return BAD_ADDRESS
        return None if address.isascii() or "SMTPUTF8" in self.extensions else NO_SMTPUTF8

    def _mail_line(self, envelope: Envelope, size: int) -> bytes:
        line, offered = f"MAIL FROM:<{envelope.sender}>", self.extensions
        if "SIZE" in offered:
            line += f" SIZE={size}"
        if envelope.body and "8BITMIME" in offered:
            line += f" BODY={envelope.body}"
        if "SMTPUTF8" in offered and (envelope.smtputf8 or not envelope.ascii):
            line += " SMTPUTF8"
        if "DSN" in offered:
            line += f" RET={envelope.ret}" if envelope.ret else ""
            line += f" ENVID={envelope.envid}" if envelope.envid else ""
        return line.encode() + b"\r\n"

    def _rcpt_line(self, recipient: Recipient) -> bytes:
        line = f"RCPT TO:<{recipient.address}>"
        if "DSN" in self.extensions:
            line += f" NOTIFY={recipient.notify}" if recipient.notify else ""
            orcpt = recipient.orcpt if "SMTPUTF8" in self.extensions else xtext.ascii_only(recipient.orcpt)
            line += f" ORCPT={orcpt}" if orcpt else ""
        return line.encode() + b"\r\n"

    def _content_command(self, transaction: _Transaction) -> tuple[str, bytes]:
        data = transaction.data
        # Not over LMTP: RFC 3030 does not say what its replies for each recipient mean for a chunk.
        if data is not None and "CHUNKING" in self.extensions and not self._lmtp:
            return "bdat", b"BDAT %d LAST\r\n" % len(data) + data
        return "data", b"DATA\r\n"

    def _pump(self) -> None:
        """Write the commands that may be written: all with PIPELINING, else one at a time."""
        together = "PIPELINING" in self.extensions
        while self._todo and (together or not self._expected):
            kind, data = self._todo.popleft()
            self._out.append(data)
            self._expected.append(kind)
            if kind == "bdat":
                self._wrote_content()

    def _wrote_content(self) -> None:
        assert self._now is not None
        self._now.sent = True

    # Replies

    def _reply(self) -> Reply | None:
        """Return the next complete reply, None when more bytes are needed."""
        buffer = self._buffer
        end = buffer.find(b"\n")
        if end < 0:
            return self._not_smtp() if len(buffer) > MAX_REPLY_LINE else None
        raw, self._buffer = buffer[:end], buffer[end + 1 :]
        if raw[3:4] != b"-" and not self._lines:
            return self._checked(_parse_line(raw))
        self._lines.append(raw)
        if len(raw) > MAX_REPLY_LINE or len(self._lines) > MAX_REPLY_LINES:
            return self._not_smtp()
        if raw[3:4] == b"-":
            return self._reply()
        lines, self._lines = self._lines, []
        return self._checked(self._joined(lines))

    def _checked(self, reply: Reply | None) -> Reply:
        if reply is None:
            return self._not_smtp()
        if not self._expected:
            # A server that closes an idle connection says 421 first; anything else out of turn is as good as that.
            return Reply(421, "4.4.2", f"The next hop said out of turn: {reply}"[:200])
        return reply

    def _joined(self, lines: list[bytes]) -> Reply | None:
        """Return a reply of several lines: EHLO's keywords as `more`, any other as one text."""
        first = _parse_line(lines[0][:3] + b" " + lines[0][4:])
        if first is None:
            return None
        texts = tuple(line[4:].decode("utf-8", "replace").strip() for line in lines[1:])
        if self._expected and self._expected[0] in ("ehlo", "lhlo"):
            return Reply(first.code, "", first.text, texts)
        text = " ".join(text.removeprefix(first.enhanced).strip() for text in texts)
        return Reply(first.code, first.enhanced, printable(f"{first.text} {text}"))

    def _not_smtp(self) -> Reply:
        self._buffer = b""
        return Reply(421, NOT_SMTP.enhanced, NOT_SMTP.text)

    def _handle(self, reply: Reply) -> Event | None:
        kind = self._expected.popleft() if self._expected else ""
        if self._now is not None and reply.code != 421:
            self._now.heard = True
        if reply.code == 421:
            if self._now is not None and kind in ("end", "bdat") and reply.text != NOT_SMTP.text:
                self._now.sent = False  # an answer to the message, so nothing is uncertain
            return self._closing(reply)
        if reply.code < 400 and (reply.code != 354 if kind == "data" else reply.code // 100 != 2):
            return self._closing(Reply(421, "4.5.0", f"The next hop answered {kind} with {reply}"[:200]))
        match kind:
            case "greeting" | "ehlo" | "lhlo" | "helo" | "starttls":
                return self._handshake(kind, reply)
            case "xforward":
                pass
            case "mail":
                self._after_mail(reply)
            case "rcpt":
                self._after_rcpt(reply)
            case _:  # data, bdat, end, rset
                return self._after_content(kind, reply)
        self._pump()
        return None if self._expected or self._todo else self._after_envelope()

    def _closing(self, reply: Reply) -> Event | None:
        before, self.state = self.state, ClientState.CLOSED
        if self._now is not None:
            return self._finish_lost(reply)
        return Failed(reply) if before in _STARTING else None

    def _handshake(self, kind: str, reply: Reply) -> Event | None:
        if kind == "greeting" and reply.code // 100 == 2:
            self._move("greeting")
            self._say_hello("LHLO" if self._lmtp else "EHLO")
            return None
        if kind == "ehlo" and reply.permanent and self._tls != "require":
            self._say_hello("HELO")
            return None
        if kind == "starttls" and reply.code == 220:
            return StartTls()
        if kind == "starttls" and self._tls == "may":
            self._move_back_to_ready()
            return Ready(self.extensions)
        if kind == "greeting" or kind == "starttls" or not reply.positive:
            self.state = ClientState.CLOSED
            # A refusal of the session is no decision about the mail (Postfix smtp_skip_5xx_greeting): try again later.
            return Failed(reply if reply.temporary else Reply(451, "4.4.0", printable(f"Session refused: {reply}")))
        self.extensions = _extensions(reply.more) if kind != "helo" else {}
        if self._tls in ("may", "require") and "STARTTLS" in self.extensions:
            self._move("starttls")
            self._out.append(b"STARTTLS\r\n")
            self._expected.append("starttls")
            return None
        if self._tls == "require":
            self.state = ClientState.CLOSED
            return Failed(NO_TLS)
        self._move("hello")
        return Ready(self.extensions)

    def _move_back_to_ready(self) -> None:
        self.state = TRANSITIONS[ClientState.HELLO, "hello"]

    def _after_mail(self, reply: Reply) -> None:
        assert self._now is not None
        if not reply.positive:
            self._now.refused = reply

    def _after_rcpt(self, reply: Reply) -> None:
        now = self._now
        assert now is not None
        n, now.answered = now.asked[now.answered], now.answered + 1
        if now.refused is not None:
            now.replies[n] = now.refused
        elif reply.positive:
            now.accepted.append(n)
        else:
            now.replies[n] = _too_many(reply)

    def _after_envelope(self) -> Event | None:
        """Go on once the recipients are known and content was not asked for: a unanimous transaction."""
        now = self._now
        assert now is not None
        if len(now.accepted) < len(now.replies):
            self._reset()
            return None
        self._todo.append(self._content_command(now))
        self._pump()
        return None

    def _reset(self) -> None:
        self._move("reset")
        self._out.append(b"RSET\r\n")
        self._expected.append("rset")

    def _after_content(self, kind: str, reply: Reply) -> Event | None:
        now = self._now
        assert now is not None
        if kind == "data" and reply.code == 354:
            return self._go_ahead(now)
        if kind == "end" and self._lmtp and now.accepted:
            now.replies[now.accepted[now.ends]] = reply
            now.ends += 1
            return None if now.ends < len(now.accepted) else self._finish()
        if kind != "rset":
            for n in now.accepted:
                now.replies[n] = reply
        if kind == "data" or (kind == "bdat" and not reply.positive):
            self._reset()
            return None
        return self._finish()

    def _go_ahead(self, now: _Transaction) -> Event | None:
        self._move("content")
        self._expected.extend(("end",) * (len(now.accepted) if self._lmtp else 1))
        if not now.accepted:
            self._out.append(b".\r\n")
            if self._lmtp:
                self._reset_after_empty()
            return None
        if now.data is None:
            return SendContent()
        self._out.append(stuffed(now.data))
        self._wrote_content()
        return None

    def _reset_after_empty(self) -> None:
        # LMTP gives no reply when no recipient was accepted, so ask for one.
        self._out.append(b"RSET\r\n")
        self._expected.append("rset")

    def _finish(self) -> Finished:
        now, self._now, self._next = self._now, self._next, None
        assert now is not None
        self._move("end" if self._now is None else "next")
        if len(now.asked) == len(now.replies):
            return Finished(tuple(map(Outcome, now.replies)))
        return Finished(tuple(Outcome(reply, ours=n not in now.asked) for n, reply in enumerate(now.replies)))

    def _finish_lost(self, reply: Reply) -> Finished:
        now, self._now, self._next = self._now, None, None
        assert now is not None
        uncertain = now.sent
        if uncertain and (reply.code != 421 or reply.text == NOT_SMTP.text):
            reply = UNCERTAIN
        outcomes = (Outcome(reply, uncertain) if known is None else Outcome(known) for known in now.replies)
        return Finished(tuple(outcomes), now.heard or (uncertain and reply.code != 421))


_STARTING = frozenset((ClientState.GREETING, ClientState.HELLO, ClientState.TLS))
_NO_CLIENT = Client()


@lru_cache(maxsize=256)
def _parse_line(raw: bytes) -> Reply | None:
    """Return one reply line, None for other text. A server sends the same few lines over and over."""
    line = raw.rstrip(b"\r").decode("utf-8", "replace")
    if (
        not 3 <= len(line) <= MAX_REPLY_LINE
        or not line[:3].isdigit()
        or not line[:3].isascii()
        or line[0] not in "2345"
        or line[3:4] not in ("", " ")
    ):
        return None
    try:
        return parse_reply(line)
    except ValueError:
        return Reply(int(line[:3]), "", printable(line[4:]))


def _too_many(reply: Reply) -> Reply:
    """Return the answer to RCPT, with 452 for the 552 of old servers for "too many recipients".

    RFC 5321 section 4.5.3.1.10. A full mailbox (5.2.2) and a message that is too large (5.3.4) say so.
    """
    if reply.code != 552 or reply.enhanced.startswith(("5.2.", "5.3.")):
        return reply
    return Reply(452, "4.5.3", reply.text)


def _extensions(lines: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for line in lines:
        keyword, _, argument = line.strip().partition(" ")
        found[keyword.upper()] = argument.strip()
    return found


@lru_cache(maxsize=64)
def _xforward_attributes(offered: str) -> tuple[tuple[str, str], ...]:
    """Return the attributes that a server takes, each with its field of `Client`."""
    keywords = offered.upper().split()
    return tuple((keyword, name) for keyword, name in parameters.XFORWARD.items() if keyword in keywords)


def _xforward_lines(offered: str, client: Client) -> list[bytes]:
    """Return the commands that describe a client, each short enough."""
    attributes = _xforward_attributes(offered)
    if not attributes or client == _NO_CLIENT:
        return []
    lines: list[str] = []
    line = "XFORWARD"
    for keyword, name in attributes:
        word = f" {keyword}={_xforward_value(keyword, getattr(client, name))}"
        if len(line) + len(word) > MAX_XFORWARD:
            lines.append(line)
            line = "XFORWARD"
        line += word
    return [text.encode() + b"\r\n" for text in (*lines, line)]


@lru_cache(maxsize=1024)
def _xforward_value(keyword: str, value: str) -> str:
    """Return a value as XFORWARD takes it; the same few clients send most of the mail."""
    if not value:
        return "[UNAVAILABLE]"
    if keyword == "ADDR" and ":" in value:
        value = f"IPV6:{value}"
    if len(encoded := xtext.encode(value)) <= MAX_XFORWARD_VALUE:
        return encoded
    kept = ""
    for character in map(xtext.encode, value[:MAX_XFORWARD_VALUE]):
        if len(kept) + len(character) > MAX_XFORWARD_VALUE:
            break
        kept += character
    return kept
