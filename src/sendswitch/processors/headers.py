"""Change the header: fields added, set and removed, and a mark before the subject.

A value may name what is known of the message, in braces: {sender}, {recipient}, {client}, {helo}, {id}, {score} and
{tags}. Trace fields (Received, Return-Path) cannot be changed (RFC 5321 4.4), nor those that begin with X-SendSwitch-.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from sendswitch.mail.edits import AddHeader, Edit, MarkSubject, RemoveHeader, SetHeader
from sendswitch.mail.headers import OWN_PREFIX, valid_name
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import MAX_EDITS, Verdict
from sendswitch.processors import base

_KNOWN = re.compile(r"\{(sender|recipient|client|helo|id|score|tags)\}")
_TRACE = ("received", "return-path")


def _changeable(name: str) -> str:
    lower = name.lower()
    if not valid_name(name):
        raise ValueError(f"{name!r} is no name of a header field")
    if lower in _TRACE or lower.startswith(OWN_PREFIX.decode()):
        raise ValueError(f"{name} cannot be changed: it tells which way the mail came")
    return name


class HeadersOptions(base.Options):
    """Options of `headers`."""

    add: dict[str, str] = Field({}, description="Fields to put at the top.")
    set: dict[str, str] = Field({}, description="Fields of which there shall be one with this value.")
    remove: tuple[str, ...] = Field((), description="Fields to take away.")

    @field_validator("add", "set", "remove")
    @classmethod
    def _names(cls, value: dict[str, str] | tuple[str, ...]) -> dict[str, str] | tuple[str, ...]:
        for name in value:
            _changeable(name)
        return value

    @model_validator(mode="after")
    def _something(self) -> HeadersOptions:
        number = len(self.add) + len(self.set) + len(self.remove)
        if not 0 < number <= MAX_EDITS:
            raise ValueError(f"name 1 to {MAX_EDITS} fields to add, set or remove")
        return self


class Headers:
    """Changes header fields and goes on."""

    Options: ClassVar[type[base.Options]] = HeadersOptions
    version = "1"
    waits = False

    def __init__(self, options: HeadersOptions) -> None:
        self._options = options

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the edits, those that remove first."""
        options = self._options
        gone = [name for name in options.remove if mail.raw_headers(name)]
        edits: list[Edit] = [RemoveHeader(name) for name in gone]
        edits += [SetHeader(name, _filled(value, context)) for name, value in options.set.items()]
        edits += [AddHeader(name, _filled(value, context)) for name, value in options.add.items()]
        return Verdict(edits=tuple(edits)) if edits else None


def _filled(value: str, context: base.Context) -> str:
    known = {
        "sender": context.sender,
        "recipient": context.recipient.address,
        "client": context.client.address,
        "helo": context.client.helo,
        "id": context.message,
        "score": "" if context.score is None else f"{context.score:g}",
        "tags": ", ".join(context.tags),
    }
    return _KNOWN.sub(lambda found: known[found[1]], value)[:5000]


class SubjectOptions(base.Options):
    """Options of `subject`."""

    mark: str = Field(min_length=1, max_length=200, description="What goes before the subject, such as '[SPAM] '.")


class Subject:
    """Puts a mark before the subject, once however often the mail comes by, and goes on."""

    Options: ClassVar[type[base.Options]] = SubjectOptions
    version = "1"
    waits = False

    def __init__(self, options: SubjectOptions) -> None:
        self._verdict = Verdict(edits=(MarkSubject(options.mark),))

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the mark."""
        return self._verdict
