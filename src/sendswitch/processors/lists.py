"""Allow and deny lists: the step's own, and those kept for the recipient, the recipient's domain and the site.

The step's own lists come first, then the recipient's, then the domain's, then the site's: the more specific one counts.
In each, allow comes before deny. `entries` describes the forms of an entry.

The lists match the envelope sender, the author in From, the client's address, and header fields. All but the client's
address can be forged; an allow list is for convenience, not for proof. An author is allowed only when the From header
is beyond doubt, and denied when any reading of it matches: mail clients disagree about malformed fields, and the doubt
must let no mail in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, field_validator

from sendswitch.mail.address import key, only
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict, parse_refusal
from sendswitch.processors import base
from sendswitch.processors.list_entries import Entries, Entry, Pair, checked


class ListsOptions(base.Options):
    """Options of `lists`."""

    allow: tuple[str, ...] = Field((), description="Whose mail passes: addresses, domains, globs, networks, fields.")
    deny: tuple[str, ...] = Field((), description="Whose mail is refused.")
    kept: bool = Field(True, description="Ask the lists of `sendswitch list` as well.")
    reply: base.Refusal = Field(
        "550 5.7.1 Sender refused by the recipient", description="What a denied sender is told."
    )

    @field_validator("allow", "deny")
    @classmethod
    def _entries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked(entry) for entry in value)


class Lists:
    """Ends the pipeline for senders on a list; has no opinion on others."""

    Options: ClassVar[type[base.Options]] = ListsOptions
    version = "1"
    waits = False

    def __init__(self, options: ListsOptions) -> None:
        own = Pair("", *(Entries(map(Entry, some)) for some in (options.allow, options.deny)))
        self._own = [] if own.allow.empty and own.deny.empty else [own]
        self._kept = options.kept
        self._lists = base.Services().lists
        self._reply = parse_refusal(options.reply)

    def setup(self, services: base.Services) -> None:
        """Know where the lists are kept."""
        self._lists = services.lists

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return PASS for an allowed sender, DENY for a denied one."""
        kept = self._lists.book.of(context.recipient.address) if self._kept else []
        if not (self._own or kept):
            return None
        sender, values = key(context.sender), mail.raw_headers("from")
        authors = mail.authors
        author = only(values, authors)
        allowed = [(sender, "envelope sender")] + ([(author, "From")] if author not in (None, sender) else [])
        denied = [(sender, "envelope sender"), *((other, "From") for other in authors if other != sender)]
        for pair in (*self._own, *kept):
            whose = f" of {pair.whose or 'the site'}" if pair in kept else ""
            if told := _found(pair.allow, allowed, mail, context):
                return Verdict.passed(f"{told[0]} is on the allow list{whose} {told[1]}")
            if told := _found(pair.deny, denied, mail, context):
                return Verdict.deny(f"{told[0]} is on the deny list{whose} {told[1]}", reply=str(self._reply))
        return None


def _found(
    entries: Entries, senders: Sequence[tuple[str, str]], mail: Mail, context: base.Context
) -> tuple[str, str] | None:
    """Return the list that has a match, and the entry."""
    if entries.empty:
        return None
    for address, where in senders:
        if (entry := entries.sender(address, context.now)) is not None:
            return f"{where} <{address}>", _told(entry)
    if (entry := entries.client(context.client.address, context.now)) is not None:
        return f"client {context.client.address}", _told(entry)
    if (field := entries.field(mail, context.now)) is not None:
        return f"the field {field[0]}", _told(field[1])
    return None


def _told(entry: Entry) -> str:
    return f"({entry.text})" + (f": {entry.reason}" if entry.reason else "")
