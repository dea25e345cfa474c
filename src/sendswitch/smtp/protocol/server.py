"""The server half of SMTP (RFC 5321) and LMTP (RFC 2033): bytes in, events and replies out.

Theory of operation. `receive_data` adds bytes; `next_event` works through them until it has an event for the
caller or needs more bytes, answering by itself what needs no opinion. An event that asks for one (`MailCommand`,
`RcptCommand`, `EndOfData`, `StartTls`, `Credentials`) stops the machine until `reply` is called, so replies keep the
order of commands however much the client pipelines (RFC 2920 3.2). `data_to_send` takes what has gathered; a batch
of pipelined commands is one write.

Rules:
1. TRANSITIONS is the whole dialog: what may come in which state. Only an accepting reply moves the state.
2. Content ends as `content.DotDecoder` says. A command line ends at CRLF; a bare LF in one ends the session.
3. Whatever the client does, memory stays within `Limits`, and the machine never raises.

Danger: after STARTTLS what the client had sent in the clear is thrown away (CVE-2011-0411). A trace never hears what
stands behind AUTH.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Literal

from sendswitch.mail.address import JOINERS, parse_path
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.reply import Reply
from sendswitch.smtp.protocol import parameters, replies, sasl
from sendswitch.smtp.protocol.content import ChunkDecoder, DotDecoder


class ServerState(Enum):
    """The state of the dialog."""

    CONNECTED = auto()
    READY = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    BDAT = auto()
    CLOSED = auto()

    __hash__ = object.__hash__  # the members are singletons, and Enum's own hash is a Python call per command


_HELLO = {
    (state, verb): ServerState.READY
    for state in (ServerState.CONNECTED, ServerState.READY, ServerState.MAIL, ServerState.RCPT, ServerState.BDAT)
    for verb in ("EHLO", "HELO", "LHLO")
}
_RESET = {
    (state, "RSET"): ServerState.READY
    for state in (ServerState.READY, ServerState.MAIL, ServerState.RCPT, ServerState.BDAT)
} | {(ServerState.CONNECTED, "RSET"): ServerState.CONNECTED}
_TLS = {(state, "STARTTLS"): ServerState.CONNECTED for state in (ServerState.CONNECTED, ServerState.READY)}

TRANSITIONS: dict[tuple[ServerState, str], ServerState] = {
    **_HELLO,
    **_RESET,
    **_TLS,
    (ServerState.READY, "AUTH"): ServerState.READY,
    (ServerState.READY, "XFORWARD"): ServerState.READY,
    (ServerState.CONNECTED, "XCLIENT"): ServerState.CONNECTED,
    (ServerState.READY, "XCLIENT"): ServerState.CONNECTED,
    (ServerState.READY, "MAIL"): ServerState.MAIL,
    (ServerState.MAIL, "RCPT"): ServerState.RCPT,
    (ServerState.RCPT, "RCPT"): ServerState.RCPT,
    (ServerState.RCPT, "DATA"): ServerState.DATA,
    (ServerState.DATA, "END"): ServerState.READY,
    (ServerState.RCPT, "BDAT"): ServerState.BDAT,
    (ServerState.BDAT, "BDAT"): ServerState.BDAT,
    (ServerState.BDAT, "END"): ServerState.READY,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one session. `line` is octets of a command with CRLF, `size` bytes of one message.

    RFC 5321 4.5.3.1 asks for lines of 512 and 100 recipients at least; extensions add to the line, and 2,048 and 1,000
    are Postfix's line_length_limit and smtpd_recipient_limit. `errors` is the number of errors between accepted
    messages (smtpd_hard_error_limit), and `junk` the number of commands without progress (EHLO, RSET, NOOP, VRFY, HELP)
    between messages before each counts as an error (smtpd_junk_command_limit).
    """

    line: int = 2048
    size: int = 50 * 1024 * 1024
    recipients: int = 1000
    errors: int = 20
    junk: int = 100


@dataclass(frozen=True, slots=True)
class Extensions:
    """The extensions that this client is offered beyond the usual ones.

    `auth` is whether it may or must log in before mail; `clear` whether it may do so without TLS, because nobody else
    can read the connection.
    """

    xforward: bool = False
    xclient: bool = False
    starttls: bool = False
    auth: Literal["off", "may", "require"] = "off"
    clear: bool = False


@dataclass(frozen=True, slots=True)
class MailCommand:
    """A well-formed MAIL: accept this sender? `login` is the user who logged in, '' for none."""

    sender: str
    size: int
    login: str = ""


@dataclass(frozen=True, slots=True)
class RcptCommand:
    """RCPT was well-formed: take this recipient?"""

    recipient: Recipient


@dataclass(frozen=True, slots=True)
class ContentPiece:
    """A piece of the content, clean and never empty."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfData:
    """The content is complete. `refusal` is set when the machine has decided already (too large)."""

    envelope: Envelope
    refusal: Reply | None = None


@dataclass(frozen=True, slots=True)
class Aborted:
    """The transaction ended without a message: its data can be dropped."""


@dataclass(frozen=True, slots=True)
class StartTls:
    """The client asks for TLS. Reply 220, then `tls_started` once it is."""


Event = MailCommand | RcptCommand | ContentPiece | EndOfData | Aborted | StartTls | sasl.Credentials

# Commands worked through before others have a turn: some milliseconds.
TURN = 500

# Recipients that are looked for behind a MAIL that is refused.
MOST_AHEAD = 100

# Wrong passwords before the session ends.
FAILED_LOGINS = 3

# Words of other protocols that browsers and worms can be made to send here (Postfix smtpd_forbidden_commands).
_NOT_SMTP = frozenset(("GET", "POST", "PUT", "HEAD", "CONNECT", "OPTIONS"))


class ServerConnection:
    """One session. `client` is the client as the connection shows it."""

    def __init__(
        self,
        host: str,
        *,
        limits: Limits,
        client: Client,
        lmtp: bool = False,
        extensions: Extensions = Extensions(),
    ) -> None:
        self.state = ServerState.CONNECTED
        self._host, self._limits, self._lmtp, self._extensions = host, limits, lmtp, extensions
        self._tls = False
        self._login, self._failed_logins = "", 0
        self._exchange: sasl.Exchange | None = None  # an AUTH under way: the next line is its answer
        self._peer, self._helo, self._extended = client, "", True
        self._forwarded: dict[str, str] | None = None
        self._buffer = b""
        self._at = 0  # how much of the buffer is worked through
        self.more = False
        self.quitted = False  # the client said QUIT, and nothing behind it
        self._out: list[bytes] = []
        self._errors = self._junk = 0
        self._waiting = ""  # the command whose reply the caller owes
        self._decoder: DotDecoder | ChunkDecoder | None = None
        self._ended = False  # the content is complete, EndOfData is due
        self._chunk = 0  # bytes of a BDAT chunk still to come
        self._chunk_size = 0
        self._chunk_last = False
        self.tap: Callable[[bytes], None] | None = None  # hears each command line, for a trace
        self._new_transaction()

    def _new_transaction(self) -> None:
        self._sender = ""
        self._mail: dict[str, str] = parameters.NO_PARAMETERS
        self._recipients: list[Recipient] = []
        self._pending: Recipient | None = None
        self._size = 0
        self._refusal: Reply | None = None

    # What the shell calls

    def greet(self) -> None:
        """Queue the greeting. The name comes first, as RFC 5321 4.2 asks."""
        self._out.append(f"220 {self._host} {'LMTP' if self._lmtp else 'ESMTP'} SendSwitch\r\n".encode())

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client; b'' at the end of its stream is not needed, just stop calling."""
        if self.state is not ServerState.CLOSED:
            rest = self._rest()
            self._buffer, self._at = (rest + data if rest else data), 0

    def _rest(self) -> bytes:
        return self._buffer[self._at :] if self._at < len(self._buffer) else b""

    @property
    def waiting(self) -> bool:
        """Return whether an event waits for its reply."""
        return bool(self._waiting)

    @property
    def accepted(self) -> int:
        """Return how many recipients were accepted in this transaction."""
        return len(self._recipients)

    @property
    def buffered(self) -> int:
        """Return how many bytes are received and not worked through."""
        return len(self._buffer) - self._at

    @property
    def in_transaction(self) -> bool:
        """Return whether a message is on its way: from MAIL to the reply after the end of data."""
        return self.state not in _IDLE_STATES

    def refused(self) -> Envelope:
        """Return whom the refusal of the command in hand is about: of MAIL, those whom the client names behind it."""
        envelope = self._envelope()
        if self._waiting == "MAIL":
            return replace(envelope, recipients=self._named_ahead())
        return replace(envelope, recipients=(self._pending,)) if self._pending is not None else envelope

    def _named_ahead(self) -> tuple[Recipient, ...]:
        """Return the recipients of RCPT commands that were pipelined behind the command in hand."""
        found = []
        for line in self._rest()[: self._limits.line * MOST_AHEAD].split(b"\r\n")[:MOST_AHEAD]:
            # Bytes that are no UTF-8 become what no address has.
            path = parse_path(line[8:].decode("utf-8", "surrogateescape").lstrip())
            if line[:8].upper() != b"RCPT TO:" or path is None or not path[0]:
                break
            found.append(Recipient(path[0]))
        return tuple(found)

    def data_to_send(self) -> bytes:
        """Take the bytes to write now."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    @property
    def closed(self) -> bool:
        """Return whether the session is over: write the pending output, then close the connection."""
        return self.state is ServerState.CLOSED

    def next_event(self) -> Event | None:
        """Return the next event, or None when more bytes or a reply are needed first, or the session is over.

        Also None, with `more` true, after a turn of many commands: call again once others had theirs.
        """
        turn = 0
        self.more = False
        while not self._waiting and self.state is not ServerState.CLOSED:
            if self._ended:
                self._ended, self._waiting = False, "END"
                return EndOfData(self._envelope(), self._refusal)
            if self.state is ServerState.DATA or self._chunk:
                if self._at >= len(self._buffer):
                    return None
                event = self._data_content() if self.state is ServerState.DATA else self._chunk_content()
            else:
                line = self._line()
                if line is None:
                    return None
                event = self._command(line) if self._exchange is None else self._auth_answer(line)
            turn += 1
            if turn >= TURN and event is None:
                self.more = True
                return None
            if event is not None:
                return event
        return None

    def reply(self, reply: Reply, *others: Reply) -> None:
        """Answer the event that waits. An LMTP end of data takes one reply for each accepted recipient.

        `Credentials` are answered with `logged_in`.
        """
        verb, self._waiting = self._waiting, ""
        self._out.append(reply.encode())
        if others:
            self._out.extend(other.encode() for other in others)
        if verb == "END":
            self._junk, self._forwarded = 0, None
            if reply.positive:
                self._errors = 0
            self._new_transaction()
        if verb == "END" or reply.positive:
            if self._pending is not None:
                self._recipients.append(self._pending)
            self.state = TRANSITIONS[self.state, verb]
        self._pending = None
        if reply.code == 421:
            self.state, self._buffer, self._at = ServerState.CLOSED, b"", 0

    def tls_started(self) -> None:
        """Forget everything the client said before TLS (RFC 3207 section 4.2)."""
        self._tls, self._buffer, self._at, self._helo = True, b"", 0, ""
        self._forwarded, self._login = None, ""
        self._peer = replace(self._peer, login="", protocol=self._peer.protocol.removesuffix("A") + "S")

    def logged_in(self, login: str, refusal: Reply = replies.WRONG_CREDENTIALS) -> None:
        """Answer `Credentials` with the user they belong to, or with '' and a `refusal`."""
        self._waiting = ""
        if login:
            self._login, self._peer = login, replace(self._peer, login=login, protocol=self._peer.protocol + "A")
            self._say(replies.LOGGED_IN)
            return
        self._error(refusal)
        self._failed_logins += refusal.permanent
        if self._failed_logins >= FAILED_LOGINS:
            self.close(replies.TOO_MANY_ERRORS)

    def close(self, reply: Reply) -> None:
        """End the session from this side with `reply` (421 of some kind), whatever state it is in."""
        if self.state is not ServerState.CLOSED:
            self._out.append(reply.encode())
            self.state, self._buffer, self._at = ServerState.CLOSED, b"", 0

    # Lines

    def _line(self) -> bytes | None:
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n", at)
        lf = buffer.find(b"\n", at, end + 1 if end >= 0 else len(buffer))
        if lf >= 0:
            self.close(replies.BARE_LF)
            return None
        if end < 0:
            if len(buffer) - at >= self._limits.line:
                self.close(replace(replies.TOO_LONG, code=421, enhanced="4.5.2"))
            return None
        self._at = end + 2
        return buffer[at:end]

    def _command(self, line: bytes) -> Event | None:
        if self.tap is not None:
            self.tap(line if line[:4].upper() != b"AUTH" else b"AUTH [not shown]")
        if len(line) > self._limits.line - 2:
            return self._error(replies.TOO_LONG)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            return self._error(replies.NOT_TEXT)
        verb, _, rest = text.partition(" ")
        verb = verb.upper()
        if not text.isprintable() and not text.translate(_NO_JOINERS).isprintable():
            return self._error(replies.NOT_TEXT)
        command = _COMMANDS.get(verb)
        if command is None:
            return self._unknown(verb)
        if verb in _SEQUENCED and (self.state, verb) not in TRANSITIONS:
            return self._out_of_sequence(verb)
        if verb in _JUNK:
            self._junk += 1
            if self._junk > self._limits.junk and self._too_many_errors():
                return None
        return command(self, rest.strip())

    def _unknown(self, verb: str) -> Event | None:
        if verb in _NOT_SMTP:
            self.close(replies.NOT_SMTP)
            return None
        return self._error(replies.UNKNOWN)

    def _out_of_sequence(self, verb: str) -> Event | None:
        if self.state is ServerState.CONNECTED:
            return self._error(replies.NO_HELLO)
        return self._error(replies.NO_RECIPIENTS if self._lacks_recipients(verb) else replies.NOT_NOW)

    def _lacks_recipients(self, verb: str) -> bool:
        return self.state is ServerState.MAIL and verb in ("DATA", "BDAT")

    def _say(self, reply: Reply) -> None:
        self._out.append(reply.encode())

    def _error(self, reply: Reply) -> Event | None:
        if not self._too_many_errors():
            self._say(reply)
        return None

    def _too_many_errors(self) -> bool:
        """Count one more; True when that ended the session."""
        self._errors += 1
        if self._errors > self._limits.errors:
            self.close(replies.TOO_MANY_ERRORS)
        return self.closed

    # Commands. Each gives an event, or replies by itself.

    def _ehlo(self, name: str) -> Event | None:
        return self._error(replies.UNKNOWN) if self._lmtp else self._hello(name, extended=True)

    def _lhlo(self, name: str) -> Event | None:
        return self._hello(name, extended=True) if self._lmtp else self._error(replies.UNKNOWN)

    def _helo_command(self, name: str) -> Event | None:
        return self._error(replies.UNKNOWN) if self._lmtp else self._hello(name, extended=False)

    def _hello(self, name: str, *, extended: bool) -> Event | None:
        if not name or len(name) > 255:
            return self._error(Reply(501, "", "Syntax: EHLO hostname"))
        aborted = self._abort()
        self.state, self._helo, self._forwarded, self._extended = ServerState.READY, name, None, extended
        offers = self.offers() if extended else ()
        self._say(Reply(250, "", self._host, offers))
        return aborted

    def offers(self) -> tuple[str, ...]:
        """Return the extensions that EHLO offers now."""
        offers = ["PIPELINING", f"SIZE {self._limits.size}", "ENHANCEDSTATUSCODES", "8BITMIME", "DSN"]
        offers += ["SMTPUTF8", "CHUNKING"]
        extensions = self._extensions
        if extensions.starttls and not self._tls:
            offers.append("STARTTLS")
        if self._may_log_in:
            offers.append("AUTH " + " ".join(sasl.MECHANISMS))
        if extensions.xforward:
            offers.append("XFORWARD " + " ".join(parameters.XFORWARD))
        if extensions.xclient:
            offers.append("XCLIENT " + " ".join(parameters.XCLIENT))
        return tuple(offers)

    def _mail_command(self, rest: str) -> Event | None:
        if rest[:5].upper() != "FROM:":
            return self._error(Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>"))
        parsed = parse_path(rest[5:].lstrip())
        if parsed is None:
            return self._error(replies.BAD_ADDRESS)
        given = parameters.parse(parsed[1], parameters.MAIL)
        if isinstance(given, Reply):
            return self._error(given)
        if not rest.isascii() and "SMTPUTF8" not in given:
            return self._error(replies.NEED_SMTPUTF8)
        size = int(given.get("SIZE", "0"))
        if size > self._limits.size:
            self._say(replies.TOO_BIG)
            return None
        if self._extensions.auth == "require" and not self._peer.login:
            return self._error(replies.LOGIN_FIRST)
        self._sender, self._mail = parsed[0], given
        self._waiting = "MAIL"
        return MailCommand(parsed[0], size, self._login)

    def _rcpt(self, rest: str) -> Event | None:
        if rest[:3].upper() != "TO:":
            return self._error(Reply(501, "5.5.4", "Syntax: RCPT TO:<address>"))
        parsed = parse_path(rest[3:].lstrip())
        if parsed is None or not parsed[0]:
            return self._error(replies.BAD_ADDRESS)
        given = parameters.parse(parsed[1], parameters.RCPT)
        if isinstance(given, Reply):
            return self._error(given)
        if not rest.isascii() and "SMTPUTF8" not in self._mail:
            return self._error(replies.NEED_SMTPUTF8)
        if len(self._recipients) >= self._limits.recipients:
            self._say(replies.TOO_MANY_RECIPIENTS)
            return None
        self._pending = Recipient(parsed[0], given.get("NOTIFY", ""), given.get("ORCPT", ""))
        self._waiting = "RCPT"
        return RcptCommand(self._pending)

    def _data(self, rest: str) -> Event | None:
        if rest:
            return self._error(replies.BAD_SYNTAX)
        self._say(replies.START_DATA)
        self.state = TRANSITIONS[self.state, "DATA"]
        self._decoder = DotDecoder()
        return None

    def _bdat(self, rest: str) -> Event | None:
        size, _, last = rest.partition(" ")
        if not size.isascii() or not size.isdigit() or len(size) > 10 or last.upper() not in ("", "LAST"):
            # How many bytes follow is not known, so nothing after this can be understood.
            self.close(Reply(421, "4.5.4", "Syntax: BDAT count [LAST]"))
            return None
        self._chunk = self._chunk_size = int(size)
        self._chunk_last = bool(last)
        if (self.state, "BDAT") not in TRANSITIONS:
            # RFC 3030 2: a refused chunk is still read to its end.
            self._refusal = replies.NO_RECIPIENTS if self._lacks_recipients("BDAT") else replies.NOT_NOW
        elif self.state is ServerState.RCPT:
            self.state, self._decoder = ServerState.BDAT, ChunkDecoder()
        return None if self._chunk else self._chunk_done(b"")

    def _reset(self, rest: str) -> Event | None:
        aborted = self._abort()
        self.state = TRANSITIONS[self.state, "RSET"]
        self._forwarded = None
        self._say(replies.OK)
        return aborted

    def _abort(self) -> Event | None:
        aborted = Aborted() if self.state is ServerState.BDAT else None
        self._new_transaction()
        return aborted

    def _noop(self, rest: str) -> Event | None:
        self._say(replies.OK)
        return None

    def _vrfy(self, rest: str) -> Event | None:
        self._say(replies.CANNOT_VERIFY if rest else replies.BAD_SYNTAX)
        return None

    def _help(self, rest: str) -> Event | None:
        self._say(replies.HELP)
        return None

    def _quit(self, rest: str) -> Event | None:
        self.quitted = not self.buffered
        self.close(replies.BYE)
        return None

    def _starttls_command(self, rest: str) -> Event | None:
        if not self._extensions.starttls:
            return self._error(replies.NOT_IMPLEMENTED)
        if self._tls:
            return self._error(replies.TLS_ACTIVE)
        if rest:
            return self._error(replies.BAD_SYNTAX)
        self._waiting = "STARTTLS"
        return StartTls()

    @property
    def _may_log_in(self) -> bool:
        return self._extensions.auth != "off" and (self._tls or self._extensions.clear)

    def _auth(self, rest: str) -> Event | None:
        if self._extensions.auth == "off":
            return self._error(replies.NOT_IMPLEMENTED)
        if not self._may_log_in:
            return self._error(replies.ENCRYPT_FIRST)
        if self._login:
            return self._error(replies.LOGGED_IN_ALREADY)
        mechanism, _, initial = rest.partition(" ")
        if mechanism.upper() not in sasl.MECHANISMS:
            return self._error(replies.UNKNOWN_MECHANISM)
        self._exchange = sasl.Exchange(mechanism.upper())
        return self._auth_step(initial or None)

    def _auth_answer(self, line: bytes) -> Event | None:
        if self.tap is not None:
            self.tap(b"[not shown]")
        answer = line.decode("ascii", "replace")
        if answer == "*" or len(line) > self._limits.line - 2:
            self._exchange = None
            return self._error(replies.LOGIN_ABORTED if answer == "*" else replies.TOO_LONG)
        return self._auth_step(answer)

    def _auth_step(self, answer: str | None) -> Event | None:
        assert self._exchange is not None
        said = self._exchange.step(answer)
        if isinstance(said, Reply):
            self._say(said)
            return None
        self._exchange = None
        if said is None:
            return self._error(replies.BAD_CREDENTIALS)
        self._waiting = "AUTH"
        return said

    def _xforward_command(self, rest: str) -> Event | None:
        if not self._extensions.xforward:
            return self._error(replies.NOT_ALLOWED)
        given = parameters.parse_xforward(rest)
        if isinstance(given, Reply):
            return self._error(given)
        self._forwarded = (self._forwarded or {}) | given
        self._say(replies.OK)
        return None

    def _xclient_command(self, rest: str) -> Event | None:
        """Begin anew with another client, with a greeting."""
        if not self._extensions.xclient:
            return self._error(replies.NOT_ALLOWED)
        given = parameters.parse_xclient(rest)
        if isinstance(given, Reply):
            return self._error(given)
        self._peer, self._helo, self._forwarded = replace(self._peer, **{"login": ""} | given), "", None
        self._login = ""
        if "address" in given:
            # The client is elsewhere, and who carries its words here is no reason to ask for a password in clear.
            self._extensions = replace(self._extensions, clear=False)
        self.state = TRANSITIONS[self.state, "XCLIENT"]
        self.greet()
        return None

    def _unimplemented(self, rest: str) -> Event | None:
        return self._error(replies.NOT_IMPLEMENTED)

    # Content

    def _data_content(self) -> Event | None:
        data, self._buffer, self._at = self._rest(), b"", 0
        decoder = self._decoder
        assert isinstance(decoder, DotDecoder)
        piece = decoder.feed(data)
        if decoder.rest is not None:
            self._buffer, self._decoder, self._ended = decoder.rest, None, True
        return self._piece(piece)

    def _chunk_content(self) -> Event | None:
        taken = self._buffer[self._at : self._at + self._chunk]
        self._at += len(taken)
        self._chunk -= len(taken)
        if not self._chunk:
            return self._chunk_done(taken)
        return self._decoded(taken) if self.state is ServerState.BDAT else None

    def _chunk_done(self, taken: bytes) -> Event | None:
        if self.state is not ServerState.BDAT:
            reply, self._refusal = self._refusal or replies.NOT_NOW, None
            return self._error(reply)
        piece = self._decoded(taken, last=self._chunk_last)
        if self._chunk_last:
            self._decoder, self._ended = None, True
        else:
            self._say(Reply(250, "2.0.0", f"Ok: {self._chunk_size} bytes"))
        return piece

    def _decoded(self, taken: bytes, *, last: bool = False) -> Event | None:
        decoder = self._decoder
        assert isinstance(decoder, ChunkDecoder)
        return self._piece(decoder.feed(taken, last=last))

    def _piece(self, piece: bytes) -> Event | None:
        self._size += len(piece)
        if self._size > self._limits.size:
            self._refusal = replies.TOO_BIG
        return ContentPiece(piece) if piece and self._refusal is None else None

    def _envelope(self) -> Envelope:
        if self._forwarded is None:
            client = self._peer if self._peer.helo == self._helo else replace(self._peer, helo=self._helo)
            self._peer = client
            if not self._extended:
                client = replace(client, protocol="SMTP")
        else:
            # XFORWARD speaks for the client; what the connection shows is the trusted peer and says nothing.
            client = Client(**self._forwarded, login=self._peer.login)
        mail = self._mail
        if "SMTPUTF8" in mail and client.protocol.startswith(("E", "LMTP")):
            client = replace(client, protocol="UTF8" + client.protocol.removeprefix("E"))  # RFC 6531 section 4.3
        return Envelope(
            sender=self._sender,
            recipients=tuple(self._recipients),
            client=client,
            body=mail.get("BODY", "").upper(),
            smtputf8="SMTPUTF8" in mail,
            ret=mail.get("RET", "").upper(),
            envid=mail.get("ENVID", ""),
        )


_NO_JOINERS = dict.fromkeys(map(ord, JOINERS))
_IDLE_STATES = frozenset((ServerState.CONNECTED, ServerState.READY, ServerState.CLOSED))
_JUNK = frozenset(("EHLO", "HELO", "LHLO", "RSET", "NOOP", "VRFY", "HELP"))
_SEQUENCED = frozenset(verb for _, verb in TRANSITIONS) - {"END", "BDAT"}
_COMMANDS: Mapping[str, Callable[[ServerConnection, str], Event | None]] = {
    "EHLO": ServerConnection._ehlo,
    "HELO": ServerConnection._helo_command,
    "LHLO": ServerConnection._lhlo,
    "MAIL": ServerConnection._mail_command,
    "RCPT": ServerConnection._rcpt,
    "DATA": ServerConnection._data,
    "BDAT": ServerConnection._bdat,
    "RSET": ServerConnection._reset,
    "NOOP": ServerConnection._noop,
    "VRFY": ServerConnection._vrfy,
    "HELP": ServerConnection._help,
    "QUIT": ServerConnection._quit,
    "STARTTLS": ServerConnection._starttls_command,
    "XFORWARD": ServerConnection._xforward_command,
    "XCLIENT": ServerConnection._xclient_command,
    "AUTH": ServerConnection._auth,
} | dict.fromkeys(("EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML"), ServerConnection._unimplemented)
