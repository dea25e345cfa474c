"""ClamAV: the message is streamed to clamd, which says whether there is a virus in it.

A message is clean only when clamd says so. `too_large` decides about a message that is larger than clamd takes, whether
`largest` or clamd says so. Anything else (no clamd, no answer, an unknown answer) is a failure of the step, and
`on_error` decides.

The protocol is clamd's own (clamd(8): IDSESSION, INSTREAM), so that a connection serves many messages and none is ever
whole in memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from sendswitch.config.units import Size
from sendswitch.errors import SendSwitchError
from sendswitch.mail.content import Content
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict, parse_refusal
from sendswitch.processors import base
from sendswitch.processors.services.connections import SharedClient, connect, pieces, write_while

TAG, UNSCANNED = "VIRUS", "UNSCANNED"
# Bytes of an answer; a signature's name has some dozen.
LONGEST = 4096
# Seconds before clamd's IdleTimeout (30) would close a session under our hands.
IDLE = 20.0

_ANSWER = re.compile(r"\d+: stream: (?:(?P<clean>OK)|(?P<signature>\S.*) FOUND)\Z")


class ClamAVOptions(base.Options):
    """Options of `clamav`."""

    address: base.Address = Field("unix:/run/clamav/clamd.ctl", description="clamd's socket: unix:/path or host:port.")
    action: Literal["quarantine", "deny", "tag"] = Field(
        "quarantine", description="What a virus means; the tag VIRUS is set in any case."
    )
    reply: base.Refusal = Field(
        "550 5.7.1 Message refused: it carries a virus", description="What a denied sender is told."
    )
    too_large: Literal["quarantine", "defer", "tag"] = Field(
        "quarantine", description="What a message means that clamd does not take whole; `tag` sets UNSCANNED."
    )
    largest: Size = Field(26_214_400, description="Most bytes that clamd takes, its StreamMaxLength; more is not sent.")
    connections: int = Field(
        4,
        ge=1,
        le=100,
        description="Most messages that a worker has scanned at once, for all pipelines with this number.",
    )


class TooLarge(SendSwitchError):
    """clamd takes no message of this size; raise StreamMaxLength in clamd.conf, and `largest` with it."""


class ClamAV:
    """The check for viruses. It has no opinion on clean mail."""

    Options: ClassVar[type[base.Options]] = ClamAVOptions
    version = "1"

    def __init__(self, options: ClamAVOptions) -> None:
        self._options = options
        address = options.address
        self.clamd = SharedClient(lambda: Clamd(address), options.connections, Clamd, address)

    async def query(self, mail: Mail, context: base.Context) -> Mapping[str, Any]:
        """Return `signature`, '' for a clean message, or `too_large`. Raises when clamd cannot say."""
        try:
            if mail.size > self._options.largest:
                raise TooLarge
            async with self.clamd.use() as clamd:
                return {"signature": await clamd.scan(mail.content)}
        except TooLarge:
            return {"too_large": mail.size}

    def evaluate(self, answer: Mapping[str, Any], mail: Mail, context: base.Context) -> Verdict | None:
        """Return VIRUS with the configured action, or only the facts."""
        options = self._options
        if "too_large" in answer:
            if options.too_large == "defer":
                raise TooLarge
            action = Action.QUARANTINE if options.too_large == "quarantine" else None
            reason = f"{mail.size} bytes are more than clamd takes, so nobody knows what is in them"
            return Verdict(action, tags=(UNSCANNED,), reason=reason)
        if not answer["signature"]:
            return Verdict(reason="no virus found")
        reason = f"virus {answer['signature']}"
        match options.action:
            case "deny":
                return Verdict(Action.DENY, tags=(TAG,), reason=reason, reply=parse_refusal(options.reply))
            case "tag":
                return Verdict(tags=(TAG,), reason=reason)
        return Verdict(Action.QUARANTINE, tags=(TAG,), reason=reason)

    async def close(self) -> None:
        """Leave the connections to the others."""
        await self.clamd.release()


class Clamd:
    """The connections to one clamd."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.idle: list[_Session] = []

    async def aclose(self) -> None:
        """Close those that are idle."""
        while self.idle:
            self.idle.pop().close()

    async def scan(self, content: Content) -> str:
        """Return the signature that matched, '' for a clean message. Raises OSError, EOFError, TooLarge, ValueError."""
        session = self._reusable()
        if session is not None:
            try:
                return await self._ask(session, content)
            except (OSError, EOFError):
                pass  # clamd was restarted or had enough of waiting: a new connection shows which
        return await self._ask(await _Session.open(self._address), content)

    def _reusable(self) -> _Session | None:
        now = asyncio.get_running_loop().time()
        while self.idle:
            session = self.idle.pop()
            if now - session.used < IDLE:
                return session
            session.close()
        return None

    async def _ask(self, session: _Session, content: Content) -> str:
        try:
            answer = await session.scan(content)
        except BaseException:
            session.close()
            raise
        self.idle.append(session)
        return answer


class _Session:
    """One connection in which clamd answers question after question."""

    def __init__(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._address, self._reader, self._writer = address, reader, writer
        self.used = 0.0
        writer.write(b"zIDSESSION\0")

    @classmethod
    async def open(cls, address: str) -> _Session:
        """Connect. Raises OSError that names the address."""
        reader, writer = await connect(address, "clamd", LONGEST)
        return cls(address, reader, writer)

    async def scan(self, content: Content) -> str:
        """Stream a message; the signature that matched, '' for none. Raises OSError, EOFError, TooLarge, ValueError."""
        self._writer.write(b"zINSTREAM\0")
        answering = asyncio.create_task(self._answer())
        try:
            await write_while(answering, self._writer, _chunks(content))
            answer = await answering
        finally:
            answering.cancel()
        self.used = asyncio.get_running_loop().time()
        if "size limit exceeded" in answer:
            raise TooLarge
        found = _ANSWER.match(answer)
        if found is None:
            raise ValueError(f"clamd at {self._address} said what is no answer: {answer[:200]!r}")
        return found["signature"] or ""

    async def _answer(self) -> str:
        try:
            answer = await self._reader.readuntil(b"\0")
        except asyncio.IncompleteReadError as error:
            raise EOFError(f"clamd at {self._address} closed without an answer") from error
        except asyncio.LimitOverrunError as error:
            raise ValueError(f"clamd at {self._address} said more than {LONGEST} bytes") from error
        return answer[:-1].decode("utf-8", "replace")

    def close(self) -> None:
        """Close the connection."""
        self._writer.transport.abort()


async def _chunks(content: Content) -> AsyncIterator[bytes]:
    """Yield content as clamd reads it: each piece behind its length, and a length of zero at the end."""
    async for piece in pieces(content):
        yield len(piece).to_bytes(4, "big") + piece
    yield b"\0\0\0\0"
