"""SpamAssassin: spamd returns a spam score and the rules that matched.

The score decides: from `tag` on the mail is tagged SPAM, from `quarantine` on it goes to quarantine, from `deny` on it
is denied. Without `tag` the threshold of spamd counts, which is the recipient's own where spamd knows it.

The protocol is spamd's own (SPAMC/1.5, SYMBOLS). spamd closes after each answer, so that no connection is kept;
`connections` limits those at once. `too_large` decides about a message larger than `largest`. Anything but a whole
answer is a failure of the step, and `on_error` decides.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from sendswitch.config.units import Size
from sendswitch.mail.address import key
from sendswitch.mail.edits import SetHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import SPAM, Action, Verdict, parse_refusal
from sendswitch.processors import base
from sendswitch.processors.services.connections import Nothing, SharedClient, connect, pieces, write_while
from sendswitch.processors.services.unscanned import TooLarge, unscanned

# Bytes of an answer: names of rules, of which a message meets some dozens.
LONGEST = 64 * 1024
# Names of rules that are told in one sentence.
TOLD = 20

_STATUS = re.compile(r"SPAMD/\d+\.\d+ (\d+) (\S+)")
_SPAM = re.compile(r"Spam: *(?:True|False|Yes|No) *; *(-?\d+(?:\.\d+)?) */ *(-?\d+(?:\.\d+)?) *\Z", re.I)
_LENGTH = re.compile(r"Content-length: *(\d{1,6}) *\Z", re.I)


class SpamAssassinOptions(base.Options):
    """Options of `spamassassin`."""

    address: base.Address = Field("127.0.0.1:783", description="spamd's socket: host:port or unix:/path.")
    user: str = Field(
        "{address}",
        pattern=r"^[!-~]*$",
        description="Whose preferences count: {address}, {local} and {domain} are the recipient's; '' for the site's.",
    )
    tag: float | None = Field(
        None, description="Score from which the tag SPAM is set; default what spamd requires of spam."
    )
    quarantine: float | None = Field(None, description="Score from which mail is quarantined.")
    deny: float | None = Field(None, description="Score from which mail is refused.")
    reply: base.Refusal = Field("550 5.7.1 Message refused as spam", description="What a denied sender is told.")
    header: bool = Field(False, description="Put score and rules into the field X-Spam-Status.")
    largest: Size = Field(512_000, description="Most bytes that are sent to spamd.")
    too_large: TooLarge = Field("skip", description="What a larger message means; `tag` sets UNSCANNED.")
    connections: int = Field(
        4,
        ge=1,
        le=100,
        description="Most messages that a worker has scanned at once, for all pipelines with this number.",
    )

    @model_validator(mode="after")
    def _rising(self) -> SpamAssassinOptions:
        bands = [band for band in (self.tag, self.quarantine, self.deny) if band is not None]
        if bands != sorted(bands):
            raise ValueError("tag, quarantine and deny must rise in this order")
        return self


class SpamAssassin:
    """Scores a message, and acts by the score."""

    Options: ClassVar[type[base.Options]] = SpamAssassinOptions
    version = "1"

    def __init__(self, options: SpamAssassinOptions) -> None:
        self._options = options
        address = options.address
        self._spamd = SharedClient(lambda: Spamd(address), options.connections, Spamd, address)

    async def query(self, mail: Mail, context: base.Context) -> Mapping[str, Any]:
        """Return `score`, `required` and `rules`, or `too_large`. Raises when spamd cannot say."""
        if mail.size > self._options.largest:
            return {"too_large": mail.size}
        async with self._spamd.use() as spamd:
            return await spamd.scan(mail, self._user(context))

    def evaluate(self, answer: Mapping[str, Any], mail: Mail, context: base.Context) -> Verdict | None:
        """Return SPAM and the action for the score; for other mail only the score."""
        if "too_large" in answer:
            return unscanned(mail.size, self._options.largest, self._options.too_large)
        options, score, required = self._options, float(answer["score"]), float(answer["required"])
        tag = required if options.tag is None else options.tag
        reason = f"score {score:g} of {tag:g}{_rules(answer['rules'])}"
        edits = (_status(score, tag, answer["rules"]),) if options.header else ()
        if score < tag:
            return Verdict(reason=reason, score=score, edits=edits)
        if options.deny is not None and score >= options.deny:
            reply = parse_refusal(options.reply)
            return Verdict(Action.DENY, tags=(SPAM,), reason=reason, score=score, edits=edits, reply=reply)
        put_aside = options.quarantine is not None and score >= options.quarantine
        action = Action.QUARANTINE if put_aside else None
        return Verdict(action, tags=(SPAM,), reason=reason, score=score, edits=edits)

    def _user(self, context: base.Context) -> str:
        address = key(context.recipient.address)
        local, _, domain = address.rpartition("@")
        known = {"{address}": address, "{local}": local, "{domain}": domain}
        return re.sub(r"\{(?:address|local|domain)\}", lambda found: known[found[0]], self._options.user)

    async def close(self) -> None:
        """Leave spamd to the others."""
        await self._spamd.release()


class Spamd(Nothing):
    """One spamd. Nothing is kept open."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def scan(self, mail: Mail, user: str) -> dict[str, Any]:
        """Return `score`, `required` and the names of `rules`. Raises OSError, EOFError, ValueError."""
        reader, writer = await connect(self._address, "spamd", LONGEST)
        answering = asyncio.create_task(reader.read(LONGEST + 1))
        try:
            await write_while(answering, writer, _request(mail, user))
            said = bytearray()
            while piece := await answering:
                said += piece
                if len(said) > LONGEST:
                    raise ValueError(f"spamd at {self._address} said more than {LONGEST} bytes")
                answering = asyncio.create_task(reader.read(LONGEST + 1))
        finally:
            answering.cancel()
            writer.transport.abort()
        return self._parsed(said.decode("utf-8", "replace"))

    def _parsed(self, said: str) -> dict[str, Any]:
        """Return an answer that is whole; a part of one could look like a small score or miss rules."""
        head, _, body = said.partition("\r\n\r\n")
        status, *fields = head.split("\r\n")
        found = _STATUS.match(status)
        if found is None:
            what = f"said what is no answer: {said[:200]!r}" if said else "closed without an answer"
            raise EOFError(f"spamd at {self._address} {what}")
        if found[1] != "0":
            raise ValueError(f"spamd at {self._address} could not scan it: {found[2][:100]}")
        scored = next((match for field in fields if (match := _SPAM.match(field))), None)
        length = next((int(match[1]) for field in fields if (match := _LENGTH.match(field))), None)
        if scored is None or length is None or len(body.encode()) < length:
            raise EOFError(f"spamd at {self._address} closed in the middle of its answer: {said[:200]!r}")
        rules = [rule for rule in re.split(r"[,\s]+", body) if rule]
        return {"score": float(scored[1]), "required": float(scored[2]), "rules": rules}


async def _request(mail: Mail, user: str) -> AsyncIterator[bytes]:
    head = f"SYMBOLS SPAMC/1.5\r\nContent-length: {mail.size}\r\n"
    if user and user.isascii() and user.isprintable() and " " not in user:
        head += f"User: {user}\r\n"
    yield head.encode() + b"\r\n"
    async for piece in pieces(mail.content):
        yield piece


def _status(score: float, tag: float, rules: list[str]) -> SetHeader:
    tests = ",".join(rules[:TOLD]) or "none"
    return SetHeader(
        "X-Spam-Status", f"{'Yes' if score >= tag else 'No'}, score={score:g} required={tag:g} tests={tests}"
    )


def _rules(rules: list[str]) -> str:
    more = f" and {len(rules) - TOLD} more" if len(rules) > TOLD else ""
    return f" by {', '.join(rules[:TOLD])}{more}" if rules else ""
