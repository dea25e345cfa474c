"""Rspamd: one HTTP request says what to do with a message and why.

Rspamd gets the whole envelope (client, HELO, sender, recipient, queue id, login) and answers with an action, a score
with its symbols, and changes of the header; all of it is carried out:

    no action, greylist       no opinion; the score stays with the mail
    add header                the tag SPAM
    rewrite subject           the tag SPAM, and the subject that Rspamd gives
    soft reject               denied for now: before the queue the sender comes again, after it we ask again later
    quarantine, discard       put aside; nothing is thrown away unseen
    reject                    what `reject` says, with the tag SPAM

`greylist` alone is a score, not a decision: Rspamd's own greylisting, which knows whom it has seen before, says soft
reject while a sender has to wait. Fields that Rspamd adds and removes as it would for a milter are added and removed.
Anything but a whole answer is a failure of the step, and `on_error` decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field

from sendswitch.config.units import Size
from sendswitch.mail.edits import AddHeader, Edit, RemoveHeader, SetHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import MAX_EDITS, SPAM, Action, Verdict, parse_refusal
from sendswitch.processors import base
from sendswitch.processors.services.connections import SharedClient, pieces
from sendswitch.processors.services.http import Url, asked, new_client
from sendswitch.processors.services.unscanned import TooLarge, unscanned

# Bytes of an answer: symbols with their options, and header fields.
LONGEST = 1024 * 1024
# Symbols that are told in one sentence, the weightiest first.
TOLD = 12
_FOLD = re.compile(r"\s*[\r\n]+\s*")


class RspamdOptions(base.Options):
    """Options of `rspamd`."""

    url: Url = Field("http://127.0.0.1:11333", description="Rspamd's normal worker, or its proxy.")
    reject: Literal["deny", "quarantine", "tag"] = Field("deny", description="What the action `reject` means.")
    reply: base.Refusal = Field(
        "550 5.7.1 Message refused as spam", description="The reply to a denied sender when Rspamd has none."
    )
    headers: bool = Field(True, description="Add and remove the header fields that Rspamd wants added and removed.")
    largest: Size = Field(26_214_400, description="Most bytes that are sent to Rspamd, its max_message.")
    too_large: TooLarge = Field("tag", description="What a larger message means; `tag` sets UNSCANNED.")
    connections: int = Field(
        8,
        ge=1,
        le=100,
        description="Most messages that a worker has scanned at once, for all pipelines with this number.",
    )


class Rspamd:
    """The step that asks Rspamd and carries out its answer."""

    Options: ClassVar[type[base.Options]] = RspamdOptions
    version = "1"

    def __init__(self, options: RspamdOptions) -> None:
        self._options = options
        self._http = SharedClient(new_client, options.connections, Rspamd, options.url)

    async def query(self, mail: Mail, context: base.Context) -> Mapping[str, Any]:
        """Return Rspamd's own answer, as far as it counts, or `too_large`. Raises when it cannot say."""
        options = self._options
        if mail.size > options.largest:
            return {"too_large": mail.size}
        async with self._http.use() as client:
            head = [*_envelope(context), (b"Content-Length", str(mail.size).encode())]
            url = f"{options.url.rstrip('/')}/checkv2"
            answer = await asked(client, "POST", url, headers=head, content=pieces(mail.content), limit=LONGEST)
        if answer.status != 200:
            raise ValueError(f"rspamd at {options.url} answered {answer.status}: {answer.text[:200]}")
        try:
            return _kept(orjson.loads(answer.body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"rspamd at {options.url} said what is no answer: {answer.text[:200]!r}") from error

    def evaluate(self, answer: Mapping[str, Any], mail: Mail, context: base.Context) -> Verdict | None:
        """Return the meaning of the action, with the score, the symbols and the header edits."""
        options = self._options
        if "too_large" in answer:
            return unscanned(mail.size, options.largest, options.too_large)
        action, score = answer["action"], float(answer["score"])
        reason = f"{action}, score {score:g} of {answer['required']:g}{_symbols(answer['symbols'])}"
        edits = _edits(answer, mail) if options.headers else ()
        common = Verdict(score=score, reason=reason, edits=edits)
        return _decided(common, action, options, answer)

    async def close(self) -> None:
        """Leave the connections to the others."""
        await self._http.release()


def _decided(common: Verdict, action: str, options: RspamdOptions, answer: Mapping[str, Any]) -> Verdict:
    match action:
        case "no action" | "greylist":
            return common
        case "add header":
            return replace(common, tags=(SPAM,))
        case "rewrite subject":
            subject = (SetHeader("Subject", answer["subject"]),) if answer["subject"] else ()
            return replace(common, tags=(SPAM,), edits=common.edits + subject)
        case "soft reject":
            words = answer["words"] or "Try again later"
            return replace(common, action=Action.DENY, reply=parse_refusal(f"451 4.7.1 {words}"))
        case "quarantine" | "discard":
            return replace(common, action=Action.QUARANTINE, tags=(SPAM,))
        case "reject" if options.reject == "deny":
            reply = f"550 5.7.1 {answer['words']}" if answer["words"] else options.reply
            return replace(common, action=Action.DENY, tags=(SPAM,), reply=parse_refusal(reply))
        case "reject":
            put_aside = Action.QUARANTINE if options.reject == "quarantine" else None
            return replace(common, action=put_aside, tags=(SPAM,))
    raise ValueError(f"rspamd wants the action {action!r}, which nobody knows here")


def _envelope(context: base.Context) -> list[tuple[bytes, bytes]]:
    client = context.client
    known = {
        "IP": client.address,
        "Hostname": client.name,
        "Helo": client.helo,
        "From": context.sender,
        "Rcpt": context.recipient.address,
        "Deliver-To": context.recipient.address,
        "Queue-Id": client.ident or context.message,
        "User": client.login,
    }
    return [(name.encode(), _one_line(value)) for name, value in known.items() if value]


def _one_line(value: str) -> bytes:
    return "".join(c for c in value if c.isprintable()).encode("utf-8", "replace")


def _kept(said: Any) -> dict[str, Any]:
    """Return the parts of an answer that count. A missing part is an error, because half an answer is none."""
    milter = said.get("milter") or {}
    symbols = {name: float(symbol.get("score", 0)) for name, symbol in (said.get("symbols") or {}).items()}
    return {
        "action": str(said["action"]),
        "score": float(said["score"]),
        "required": float(said["required_score"]),
        "symbols": dict(sorted(symbols.items(), key=lambda pair: -abs(pair[1]))[:100]),
        "subject": _unfolded(said.get("subject") or ""),
        "words": _words(said.get("messages") or {}),
        "add": [[name, value] for name, told in (milter.get("add_headers") or {}).items() for value in _values(told)],
        "remove": dict(milter.get("remove_headers") or {}),
    }


def _words(messages: Any) -> str:
    said = messages.get("smtp_message", "") if isinstance(messages, dict) else ""
    return "".join(c for c in _unfolded(said) if c.isascii() and c.isprintable())[:200]


def _values(told: Any) -> list[str]:
    """Return a field's value: a text, an object with one, or a list of either."""
    if isinstance(told, list):
        return [value for one in told for value in _values(one)]
    value = told.get("value") if isinstance(told, dict) else told
    return [_unfolded(value)]


def _unfolded(value: Any) -> str:
    return storable(_FOLD.sub(" ", str(value)), 10_000)


def _edits(answer: Mapping[str, Any], mail: Mail) -> tuple[Edit, ...]:
    """Return the edits, removals first, as a milter does. The nth of several fields cannot be removed alone."""
    there = {name: len(mail.raw_headers(name)) for name in answer["remove"]}
    gone = [name for name, n in answer["remove"].items() if there[name] and (n == 0 or n == there[name] == 1)]
    edits: list[Edit] = [
        *(RemoveHeader(name) for name in gone),
        *(AddHeader(name, value) for name, value in answer["add"]),
    ]
    return tuple(edits[: MAX_EDITS - 1])


def _symbols(symbols: Mapping[str, float]) -> str:
    weighty = {name: score for name, score in symbols.items() if score} or symbols
    told = [f"{name} ({score:g})" for name, score in list(weighty.items())[:TOLD]]
    more = f" and {len(weighty) - TOLD} more" if len(weighty) > TOLD else ""
    return f" by {', '.join(told)}{more}" if told else ""
