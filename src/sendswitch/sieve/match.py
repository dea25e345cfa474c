"""How a text is compared with a key: comparators and match types (RFC 5228 2.7, RFC 5231, draft-ietf-sieve-regex).

Patterns are RE2's, so that no key and no mail takes longer than both are long.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import re2

RELATIONS: dict[str, Callable[[Any, Any], bool]] = {"gt": gt, "ge": ge, "lt": lt, "le": le, "eq": eq, "ne": ne}
COMPARATORS = ("i;ascii-casemap", "i;octet", "i;ascii-numeric")
# Characters of a pattern, and what a wildcard or group was seen to stand for: ${0} to ${9} (RFC 5229 3.2).
LONGEST_PATTERN, GROUPS = 2000, 10

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_QUIET = re2.Options()
_QUIET.log_errors = False
_CASELESS = re2.Options()
_CASELESS.log_errors = False
_CASELESS.case_sensitive = False


@dataclass(frozen=True, slots=True)
class Match:
    """A match type with its comparator. `relation` is that of `count` and `value`."""

    kind: str = "is"
    comparator: str = "i;ascii-casemap"
    relation: str = "eq"

    def find(self, value: str, wanted: str) -> tuple[str, ...] | None:
        """What ${0}, ${1} and so on stand for when `value` is like `wanted`, None when it is not; of match types
        that set no variables (), which is like too. Raises ValueError for what is no pattern."""
        if self.kind in ("matches", "regex"):
            return self._pattern(value, wanted)
        one, other = self._read(value), self._read(wanted)
        match self.kind:
            case "contains":
                like = str(other) in str(one)
            case "is":
                like = one == other
            case _:
                like = RELATIONS[self.relation](one, other)
        return () if like else None

    def counts(self, number: int, wanted: str) -> bool:
        """`:count`: how many there are, compared as a number."""
        return RELATIONS[self.relation](number, _number(wanted))

    def _read(self, text: str) -> str | float:
        if self.comparator == "i;ascii-numeric":
            return _number(text)
        return text if self.comparator == "i;octet" else text.translate(_LOWER)

    def _pattern(self, value: str, wanted: str) -> tuple[str, ...] | None:
        value = value.encode("utf-8", "replace").decode()  # RE2 takes no half characters
        folded = self.comparator != "i;octet"
        if self.kind == "regex":
            pattern, text = regex(wanted, folded), value
        elif folded:  # of ASCII only, which changes no length
            pattern, text = _like(wanted.translate(_LOWER)), value.translate(_LOWER)
        else:
            pattern, text = _like(wanted), value
        found = pattern.search(text)
        if found is None:
            return None
        spans = [found.span(n) for n in range(min(GROUPS, 1 + pattern.groups))]
        return tuple(value[start:end] if start >= 0 else "" for start, end in spans)


def _number(text: str) -> float:
    """The digits a text begins with, and more than any number without (RFC 4790 9.1)."""
    found = re.match(r"[0-9]{1,300}", text)
    return float(found[0]) if found else float("inf")


@lru_cache(maxsize=1024)
def regex(pattern: str, folded: bool) -> Any:
    """A regular expression as RE2 has it. Raises ValueError when it does not take it."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern has at most {LONGEST_PATTERN} characters")
    try:
        return re2.compile(pattern.encode("utf-8", "replace").decode(), _CASELESS if folded else _QUIET)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"{pattern!r} is no regular expression that RE2 takes: {text}") from error


@lru_cache(maxsize=1024)
def _like(glob: str) -> Any:
    """A pattern of `:matches`: each wildcard takes as little as it can (RFC 5229 3.2)."""
    out = ""
    for found in re.finditer(r"\\(?P<same>.)|(?P<any>\*+)|(?P<one>\?)|(?P<plain>[^*?\\]+|\\)", glob, re.S):
        if found["any"]:
            out += "(.*?)" * len(found["any"])
        elif found["one"]:
            out += "(.)"
        else:
            out += re2.escape(found["same"] or found["plain"])
    return regex(rf"(?s)\A{out}\z", False)
