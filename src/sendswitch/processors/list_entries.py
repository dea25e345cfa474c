"""Entries of allow and deny lists, compiled so that thousands cost no more than one.

    joe@example.org        this address, in any case
    example.org            every address of this domain
    .example.org           every address of its subdomains
    *@*.example.org        what is like it: * any text, ? one character, [ab] one of them
    /^news-\\d+@/           what this regular expression finds (RE2, so that no sender can make it slow)
    <>                     the null sender
    192.0.2.0/24           clients of this network, or with this address
    header:List-Id=*.shop  mail with such a field; without = with the field at all

Addresses, domains and networks are looked up in tables, and globs that mean a whole domain with them; all else that is
like something is one RE2 set. An entry with a time holds until then.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, TypeVar

import re2

from sendswitch.mail.address import domain_key, key, spellings
from sendswitch.mail.headers import valid_name
from sendswitch.mail.message import Mail

T = TypeVar("T")

# Characters of an entry.
LONGEST = 320
# Patterns in one set of RE2.
TOGETHER = 1000
_LIKE = re.compile(r"[*?\[]")
# The commonest globs: *@*.example.org and *.example.org are .example.org, and *@example.org is example.org.
_WHOLE_DOMAIN = re.compile(r"(?:\*@)?\*\.(?P<parent>[^*?\[@/]+)|\*@(?P<domain>[^*?\[@/]+)")
_CASELESS = re2.Options()
_CASELESS.case_sensitive = False
_CASELESS.log_errors = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it was written. `expires` is seconds since the epoch, None for never."""

    text: str
    expires: float | None = None
    reason: str = ""

    def holds(self, now: float) -> bool:
        """Return whether its time is not over."""
        return self.expires is None or now < self.expires


def checked(text: str) -> str:
    """Return the entry without space around it. Raises ValueError with the allowed forms."""
    text = text.strip()
    if not text or len(text) > LONGEST:
        raise ValueError(f"an entry has 1 to {LONGEST} characters")
    if _network(text) is not None:
        return text
    if text.lower().startswith("header:"):
        name, _, like = text[7:].partition("=")
        if not valid_name(name):
            raise ValueError(f"{name!r} is no name of a header field")
        _pattern(like)
    elif _is_regex(text):
        _pattern(text)
    elif any(character.isspace() for character in text) or "://" in text or text.endswith("@"):
        raise ValueError(f"{text!r} is no address, domain, glob, network or header:Name=text")
    else:
        _pattern(text)
    return text


class Entries:
    """A compiled list. Of entries that match, an exact one is found before one that is like it."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._addresses: dict[str, Entry] = {}
        self._domains: dict[str, Entry] = {}
        self._parents: dict[str, Entry] = {}
        self._networks: dict[tuple[int, int], dict[int, Entry]] = {}
        alike: list[Entry] = []
        fields: dict[str, list[Entry]] = {}
        self.empty = True
        for entry in entries:
            self.empty = False
            text = unicodedata.normalize("NFC", entry.text.strip().lower())
            if (network := _network(text)) is not None:
                width = (network.version, network.prefixlen)
                _keep(self._networks.setdefault(width, {}), int(network.network_address) >> _host_bits(width), entry)
            elif text.startswith("header:"):
                fields.setdefault(text[7:].partition("=")[0], []).append(entry)
            elif (whole := _WHOLE_DOMAIN.fullmatch(text)) is not None:
                place = domain_key(whole["parent"] or whole["domain"])
                _keep(self._parents if whole["parent"] else self._domains, place, entry)
            elif _is_regex(text) or _LIKE.search(text):
                alike.append(entry)
            elif text == "<>":
                _keep(self._addresses, "", entry)
            elif "@" in text and not text.startswith("@"):
                _keep(self._addresses, key(text), entry)
            elif text.startswith("."):
                _keep(self._parents, domain_key(text[1:]), entry)
            else:
                _keep(self._domains, domain_key(text.removeprefix("@")), entry)
        self.alike = _Alike(alike, _address_pattern) if alike else None
        self._fields = {name: _Alike(some, _field_pattern) for name, some in fields.items()}

    def sender(self, address_key: str, now: float) -> Entry | None:
        """Return the entry that matches an address."""
        if (entry := self._addresses.get(address_key)) is not None and entry.holds(now):
            return entry
        domain = address_key.rpartition("@")[2]
        if domain and (entry := self._domains.get(domain)) is not None and entry.holds(now):
            return entry
        while self._parents and domain:
            domain = domain.partition(".")[2]
            if (entry := self._parents.get(domain)) is not None and entry.holds(now):
                return entry
        if self.alike is None or not address_key:
            return None
        found = (self.alike.find(spelled, now) for spelled in spellings(address_key))
        return next(filter(None, found), None)

    def client(self, address: str, now: float) -> Entry | None:
        """Return the entry of the smallest network that the client is in."""
        if not self._networks:
            return None
        try:
            client = ip_address(address)
        except ValueError:
            return None
        number = int(client)
        for width in sorted(self._networks, reverse=True):
            if width[0] == client.version:
                entry = self._networks[width].get(number >> _host_bits(width))
                if entry is not None and entry.holds(now):
                    return entry
        return None

    def field(self, mail: Mail, now: float) -> tuple[str, Entry] | None:
        """Return the header field that matches, and its entry."""
        for name, alike in self._fields.items():
            for value in mail.headers(name):
                if (entry := alike.find(value, now)) is not None:
                    return name, entry
        return None


def _keep(table: dict[T, Entry], place: T, entry: Entry) -> None:
    """Keep of two entries that mean the same the one that holds longer."""
    there = table.get(place)
    if there is None or (there.expires is not None and (entry.expires is None or entry.expires > there.expires)):
        table[place] = entry


class _Alike:
    """Many patterns asked as one, or as a few: a set of too many is more than RE2 makes."""

    def __init__(self, entries: Sequence[Entry], pattern: Callable[[str], str]) -> None:
        self.sets: list[tuple[Any, Sequence[Entry]]] = []
        for n in range(0, len(entries), TOGETHER):
            self._add(entries[n : n + TOGETHER], pattern)

    def _add(self, together: Sequence[Entry], pattern: Callable[[str], str]) -> None:
        try:
            self.sets.append((_set([pattern(entry.text.strip()) for entry in together]), together))
        except re2.error:
            if len(together) == 1:
                raise ValueError(f"{together[0].text!r} is more than RE2 makes of one expression") from None
            middle = len(together) // 2
            self._add(together[:middle], pattern)
            self._add(together[middle:], pattern)

    def find(self, text: str, now: float) -> Entry | None:
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()  # RE2 takes no half characters
        for one, together in self.sets:
            found = one.Match(text)
            for n in sorted(found) if found else ():
                entry: Entry = together[n]
                if entry.holds(now):
                    return entry
        return None


def _set(patterns: Sequence[str]) -> Any:
    made = re2.Set.SearchSet(_CASELESS)
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made


def _host_bits(width: tuple[int, int]) -> int:
    version, length = width
    return (32 if version == 4 else 128) - length


def _network(text: str) -> IPv4Network | IPv6Network | None:
    text = text.removeprefix("ip:")
    if not text[:1].isalnum() and not text.startswith(":"):
        return None
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _is_regex(text: str) -> bool:
    return len(text) > 2 and text.startswith("/") and text.endswith("/")


def _address_pattern(text: str) -> str:
    if not _is_regex(text):
        text = unicodedata.normalize("NFC", text if "@" in text else f"*@{text}")
        text = text.rstrip(".")
    return _pattern(text)


def _field_pattern(text: str) -> str:
    return _pattern(text[7:].partition("=")[2])


def _pattern(text: str) -> str:
    """Return a pattern as RE2 has it. Raises ValueError: the error of a set of patterns would not say which
    is wrong.
    """
    pattern = text[1:-1] if _is_regex(text) else _like(text)
    try:
        re2.compile(pattern, _CASELESS)
        _set([pattern])
    except re2.error as error:
        raise ValueError(f"{text!r} is no regular expression that RE2 takes: {_said(error)}") from error
    return pattern


def _said(error: re2.error) -> str:
    said = error.args[0] if error.args else ""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


def _like(text: str) -> str:
    """Return a glob as a regular expression for all of a text; a text without * and ? for any part of it."""
    if not _LIKE.search(text):
        return str(re2.escape(text))
    out, at = "", 0
    while at < len(text):
        character = text[at]
        end = text.find("]", at + 2) if character == "[" else -1
        if end > 0:
            inside = text[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            out += f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]"
            at = end
        else:
            out += {"*": ".*", "?": "."}.get(character) or re2.escape(character)
        at += 1
    return f"(?s)^{out}$"


@dataclass(frozen=True, slots=True)
class Pair:
    """The two lists of one scope; `whose` is '' for the whole site."""

    whose: str
    allow: Entries
    deny: Entries


class Book:
    """The lists that are kept for users, domains and the site.

    Rows are (scope, list, entry): the scope is an address, a domain or '', the list `allow` or `deny`.
    """

    def __init__(self, rows: Iterable[tuple[str, str, Entry]] = (), delimiters: str = "") -> None:
        self._delimiters = delimiters
        gathered: dict[str, dict[str, list[Entry]]] = {}
        for scope, kind, entry in rows:
            gathered.setdefault(scope, {"allow": [], "deny": []})[kind].append(entry)
        self._pairs = {
            scope: Pair(scope, Entries(lists["allow"]), Entries(lists["deny"])) for scope, lists in gathered.items()
        }

    def of(self, recipient: str) -> list[Pair]:
        """Return the lists that hold for a recipient, the most particular first: theirs, their domain's, the site's."""
        if not self._pairs:
            return []
        whose = key(recipient)
        local, _, domain = whose.rpartition("@")
        for delimiter in self._delimiters:
            local = local.partition(delimiter)[0] or local
        scopes = dict.fromkeys((whose, f"{local}@{domain}", domain, ""))
        return [self._pairs[scope] for scope in scopes if scope in self._pairs]


class KeptLists:
    """The kept lists for steps: read at the first use, and again after a change."""

    def __init__(self, read: Callable[[], Book] = Book) -> None:
        self._read = read
        self._book: Book | None = None

    def refresh(self) -> None:
        """Read the lists again. Blocks. Raises the errors of reading, and then the old lists stay."""
        self._book = self._read()

    @property
    def book(self) -> Book:
        """Return the lists. Blocks at the first use."""
        if self._book is None:
            self.refresh()
        assert self._book is not None
        return self._book
