"""Allow and deny lists, on the envelope sender and the From header.

An entry is an address (`joe@example.org`), a domain (`example.org`), its subdomains (`.example.org`), a glob
(`*@*.example.org`, `news-??@example.org`), or `<>` for the null sender. Allow is asked first and ends the pipeline
with PASS. Both senders can be forged by anybody; an allow list is for convenience, not for proof.

An author is allowed only when the From header is beyond doubt, and denied when any reading of it matches: mail
clients disagree about malformed ones, and the doubt must not let anybody in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import ClassVar

from pydantic import Field, field_validator

from sendswitch.mail.address import in_header, key, only
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict, parse_refusal
from sendswitch.processors import base

_GLOB = re.compile(r"[*?\[]")


class ListsOptions(base.Options):
    """Options of `lists`."""

    allow: tuple[str, ...] = Field((), description="Senders whose mail passes.")
    deny: tuple[str, ...] = Field((), description="Senders whose mail is refused.")
    reply: base.Refusal = Field(
        "550 5.7.1 Sender refused by the recipient", description="What a denied sender is told."
    )

    @field_validator("allow", "deny")
    @classmethod
    def _entries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not entry.strip() or " " in entry.strip() or len(entry) > 320:
                raise ValueError(f"{entry!r} is no address, domain or glob")
        return value


class Entries:
    """A compiled list: look-ups for addresses and domains, one regular expression for all globs."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._addresses: dict[str, str] = {}
        self._domains: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._globs: list[tuple[str, re.Pattern[str]]] = []
        for entry in entries:
            entry = entry.strip().lower()
            if _GLOB.search(entry):
                self._globs.append((entry, re.compile(translate(entry if "@" in entry else f"*@{entry}"))))
            elif entry == "<>":
                self._addresses[""] = entry
            elif "@" in entry and not entry.startswith("@"):
                self._addresses[key(entry)] = entry
            elif entry.startswith("."):
                self._parents[entry[1:]] = entry
            else:
                self._domains[entry.removeprefix("@")] = entry
        self._any_glob = re.compile("|".join(glob.pattern for _, glob in self._globs))

    def match(self, address_key: str) -> str:
        """The entry that matches, '' when none does."""
        if address_key in self._addresses:
            return self._addresses[address_key]
        domain = address_key.rpartition("@")[2]
        if domain and domain in self._domains:
            return self._domains[domain]
        while self._parents and domain:
            domain = domain.partition(".")[2]
            if domain in self._parents:
                return self._parents[domain]
        if self._globs and address_key and self._any_glob.match(address_key):
            return next(entry for entry, glob in self._globs if glob.match(address_key))
        return ""


class Lists:
    """Ends the pipeline for senders on a list; has no opinion on others."""

    Options: ClassVar[type[base.Options]] = ListsOptions
    version = "1"
    waits = False

    def __init__(self, options: ListsOptions) -> None:
        self._allow, self._deny = Entries(options.allow), Entries(options.deny)
        self._any_allow, self._any_deny = bool(options.allow), bool(options.deny)
        self._reply = parse_refusal(options.reply)

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """PASS for an allowed sender, DENY for a denied one."""
        sender = key(context.sender)
        values = mail.raw_headers("from")
        authors = in_header(values)
        if self._any_allow:
            for address, where in ((sender, "envelope sender"), (only(values, authors), "From")):
                if address is not None and (entry := self._allow.match(address)):
                    return Verdict.passed(f"{where} <{address}> is on the allow list ({entry})")
        if self._any_deny:
            for address in (sender, *authors):
                if entry := self._deny.match(address):
                    where = "envelope sender" if address == sender else "From"
                    reason = f"{where} <{address}> is on the deny list ({entry})"
                    return Verdict.deny(reason, reply=str(self._reply))
        return None

    async def close(self) -> None:
        """Nothing is held."""
