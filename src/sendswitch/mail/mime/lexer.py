"""Tokens of structured header fields (RFC 5322 section 3.2, RFC 2045 section 5.1), in one pass.

A comment or a quoted string that does not end is read in both ways that readers read it: to the end of the field, and
as if its first character were an ordinary one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<space>[\s\x00]+)
    |(?P<quote>")
    |(?P<open>\()
    |(?P<close>\))
    |(?P<special>[;,=<>@:/\[\]?])
    |(?P<atom>(?:\\.|[^\s\x00"();,=<>@:/\[\]?\\])+|\\)""",
    re.X | re.S,
)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)("|\\?\Z)', re.S)
_PARENTHESIS = re.compile(r"\\.|[()]", re.S)
_PAIR = re.compile(r"\\(.)", re.S)


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `kind` is space, quoted, comment, special or atom; `text` is without quotes and escapes."""

    kind: str
    text: str
    raw: str


def tokens(value: str) -> Iterator[Token]:
    """Yield the tokens of a field's value."""
    ends = comment_ends(value)
    at = 0
    while at < len(value):
        if value[at] == "(":
            # A comment that does not end goes to the end of the field.
            end = ends.get(at, len(value))
            yield Token("comment", value[at + 1 : end - 1], value[at:end])
            at = end
            continue
        if value[at] == '"' and (quoted := _QUOTED.match(value, at)) is not None:
            yield Token("quoted", _PAIR.sub(r"\1", quoted[1]), quoted[0])
            at = quoted.end()
            continue
        found = _TOKEN.match(value, at)
        if found is None:
            yield Token("atom", value[at], value[at])
            at += 1
            continue
        kind = found.lastgroup or "atom"
        if kind in ("quote", "close"):
            kind = "special"
        yield Token(kind, _PAIR.sub(r"\1", found[0]) if kind == "atom" else found[0], found[0])
        at = found.end()


def comment_ends(value: str) -> dict[int, int]:
    """Return where each comment ends, by where it begins. Parentheses in quoted strings are not looked at apart."""
    if "(" not in value:
        return {}
    begun: list[int] = []
    ends: dict[int, int] = {}
    for found in _PARENTHESIS.finditer(value):
        if found[0] == "(":
            begun.append(found.start())
        elif found[0] == ")" and begun:
            ends[begun.pop()] = found.end()
    return ends


def without_comments(value: str) -> str:
    """Return a value without its comments; quoted strings stay as they are."""
    if "(" not in value:
        return value
    return "".join(token.raw for token in tokens(value) if token.kind != "comment")
