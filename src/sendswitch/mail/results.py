"""Authentication-Results (RFC 8601), read by its grammar and written with quoting.

A property's value is never read as a result, whatever its sender wrote there: `smtp.mailfrom=dmarc=pass@evil.example`
says nothing about DMARC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sendswitch.mail.mime.lexer import Token, tokens

FIELD = "Authentication-Results"
# Characters of one field that are read; honest ones have some hundred.
LONGEST = 16_000
# Results from the best to the worst (RFC 8601 section 2.7); one that is not known is worse than all.
_ORDER = ("pass", "none", "neutral", "policy", "temperror", "softfail", "permerror", "hardfail", "fail")
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.+_-]*(?:@[A-Za-z0-9.-]+)?)\Z|@[A-Za-z0-9.-]+\Z")
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9-]*\Z")
_WORDS = re.compile(r"[^\s;\"()\\,=]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Results:
    """One field: whose results it has (the authserv-id, in lower case), and for each method its results in order."""

    host: str
    methods: Mapping[str, Sequence[str]] = field(default_factory=dict)


def parse(value: str) -> Results:
    """Return the results in a field. A part that does not fit the grammar has no result. Never raises."""
    first, *segments = _segments(value[:LONGEST])
    methods: dict[str, list[str]] = {}
    for segment in segments:
        if (found := _result(segment)) is not None:
            methods.setdefault(found[0], []).append(found[1])
    return Results(_host(first), methods)


def _segments(value: str) -> Iterator[list[Token]]:
    """Yield the tokens between semicolons, without comments."""
    segment: list[Token] = []
    for token in tokens(value):
        if token.raw == ";":
            yield segment
            segment = []
        elif token.kind != "comment":
            segment.append(token)
    yield segment


def _host(segment: Sequence[Token]) -> str:
    """Return the authserv-id: a token or a quoted string, before white space or a version."""
    out = ""
    for token in segment:
        if token.kind == "space":
            if out:
                break
            continue
        out += token.text
    return canonical(out)


def canonical(host: str) -> str:
    """Return an authserv-id in the form that it is compared in."""
    return host.strip().rstrip(".").lower()


def _result(segment: Sequence[Token]) -> tuple[str, str] | None:
    """Return method and result of `method[/version] = result …`."""
    words = [token for token in segment if token.kind != "space"]
    if len(words) > 2 and words[1].raw == "/":
        del words[1:3]
    if len(words) < 3 or words[1].raw != "=" or words[0].kind != "atom" or not _KEYWORD.match(words[2].text):
        return None
    return words[0].text.lower(), words[2].text.lower()[:20]


def worst(found: Sequence[str]) -> str:
    """Return the result that promises least."""
    return max(found, key=lambda result: _ORDER.index(result) if result in _ORDER else len(_ORDER), default="none")


def of_host(values: Sequence[str], trusted: frozenset[str]) -> tuple[str, dict[str, str]] | None:
    """Return whose results are trusted among these fields, and the worst of all that they say for each method.

    None when no field is of a trusted host.
    """
    hosts: dict[str, None] = {}
    found: dict[str, list[str]] = {}
    for value in values:
        one = parse(value)
        if one.host in trusted:
            hosts[one.host] = None
            for method, results in one.methods.items():
                found.setdefault(method, []).extend(results)
    if not hosts:
        return None
    return ", ".join(hosts), {method: worst(results) for method, results in found.items()}


def claims(value: str, host: str) -> bool:
    """Return whether a reader may take this field for one of `host`: wherever the name stands before the results."""
    wanted = canonical(host)
    if parse(value).host == wanted:
        return True
    before = value[:LONGEST].partition(";")[0].replace("\\", "")
    segment = next(_segments(value[:LONGEST]))
    literal = "".join(token.text for token in segment)
    together = (_WORDS.findall(before), (token.text for token in segment if token.kind != "space"))
    if wanted in {canonical("".join(words).rstrip("0123456789")) for words in together}:
        return True
    return wanted in {canonical(word) for text in (before, literal) for word in _WORDS.findall(text)}


def written(host: str, results: Sequence[tuple[str, str, Mapping[str, str]]]) -> str:
    """Return a field's value: the host, and of each method its result and properties, quoted where they must be."""
    said = [
        " ".join([f"{method}={result}", *(f"{name}={quoted(value)}" for name, value in facts.items() if value)])
        for method, result, facts in results
    ]
    return "; ".join([quoted(host), *said])


def quoted(value: str) -> str:
    """Return a value as it may stand in the field: a token or an address, else a quoted string (RFC 5322 3.2.4)."""
    if _PLAIN.match(value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", _CONTROL.sub("", value)) + '"'
