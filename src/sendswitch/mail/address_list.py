"""The addresses of a header field, strictly read (RFC 5322 3.4): text in names and comments is no address.

`mail.address.in_header` finds every address that any mail program could take for the author, so that no sender evades a
list. A Sieve script needs the author as the grammar says.
"""

from __future__ import annotations

import re

from sendswitch.mail.mime.lexer import comment_ends

# Characters of a field that are read; honest ones have some thousand.
LONGEST = 65_536

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_OTHERS = r"(?P<space>\s+)|\[[^\[\]]*\]|(?P<comment>\()|(?P<sign>[<>,;:])|[^\s\"()<>,;:\[]+|."
_TOKEN, _UNQUOTED = re.compile(f"{_QUOTED}|{_OTHERS}", re.S), re.compile(_OTHERS, re.S)
_ADDRESS = re.compile(rf'(?:{_QUOTED}|[^"@]+)@[^"@]+\Z', re.S)


def addresses(value: str) -> list[str]:
    """Return the addresses in the value of a field, in order. Text that is no address is skipped. Never raises."""
    value = value[:LONGEST]
    found: list[str] = []
    words: list[str] = []  # of what may be an address without brackets
    inside: list[str] | None = None  # of what stands in brackets
    bracketed = ""
    at, ends, kinds = 0, comment_ends(value), _TOKEN
    while (token := kinds.match(value, at)) is not None:
        at, text = token.end(), token[0]
        if text == '"':  # it has no end, and to look for that of each one behind it would take long
            kinds = _UNQUOTED
        if token["comment"]:
            at = ends.get(token.start(), at)  # one that does not end is no more than its parenthesis
        elif text == "<" and inside is None:
            inside = []
        elif text == ">" and inside is not None:
            bracketed, inside = "".join(inside), None
        elif text == ":" and inside is not None:
            inside = []  # what stood before was a route
        elif text == ":":
            words = []  # that was the name of a group
        elif token["sign"] and text in ",;" and (inside is None or text == ";"):
            found.append(bracketed or "".join(words))
            words, inside, bracketed = [], None, ""
        elif not token["space"]:
            (words if inside is None else inside).append(text)
    found.append(bracketed or "".join(words if inside is None else inside))
    return [address for address in found if _ADDRESS.match(address)]
