"""Comparison of a text with a key: comparators and match types (RFC 5228 2.7, RFC 5231, draft-ietf-sieve-regex).

Patterns are RE2's, so that the time is linear in key and mail.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import re2

from sendswitch.sieve.strings import LONGEST_VALUE

RELATIONS: dict[str, Callable[[Any, Any], bool]] = {"gt": gt, "ge": ge, "lt": lt, "le": le, "eq": eq, "ne": ne}
COMPARATORS = ("i;ascii-casemap", "i;octet", "i;ascii-numeric")
# Characters of a pattern, instructions that RE2 makes of one, and what a wildcard or group was seen to stand for: ${0}
# to ${9} (RFC 5229 3.2).
LONGEST_PATTERN, LARGEST_PATTERN, GROUPS = 2000, 1000, 10
# Bytes of memory that RE2 may use for one.
MEMORY = 256 * 1024
# Instructions of all patterns of a script: what RE2 makes in a tenth of a second.
LARGEST_SCRIPT = 20_000
# Nanoseconds of any comparison, and of making a pattern, for each instruction.
LEAST, MAKING = 1000, 10_000

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@dataclass(frozen=True, slots=True)
class Match:
    """A match type with its comparator. `relation` is that of `count` and `value`."""

    kind: str = "is"
    comparator: str = "i;ascii-casemap"
    relation: str = "eq"

    @property
    def patterned(self) -> bool:
        """Return whether keys are patterns, whose match sets variables."""
        return self.kind in ("matches", "regex")

    def key(self, wanted: str) -> Any:
        """Return a key in the form for `holds`. Raises ValueError for an invalid pattern."""
        folded = self.comparator != "i;octet"
        if self.kind == "regex":
            return _pattern(wanted, wanted, folded=folded)
        if self.kind == "matches":
            return _like(wanted.translate(_LOWER) if folded else wanted)
        return self._read(wanted)

    def value(self, text: str) -> Any:
        """Return a value, made ready for `holds`."""
        if not self.patterned:
            return self._read(text)
        text = text.encode("utf-8", "replace").decode()  # RE2 takes no half characters
        # Of ASCII only, which changes no length.
        return text.translate(_LOWER) if self.kind == "matches" and self.comparator != "i;octet" else text

    def holds(self, value: Any, key: Any) -> bool:
        """Return whether a value is like a key."""
        match self.kind:
            case "matches" | "regex":
                return key.test.search(value) is not None
            case "contains":
                return key in value
            case "is":
                return bool(value == key)
        return RELATIONS[self.relation](value, key)

    def groups(self, text: str, value: Any, key: Any) -> tuple[str, ...]:
        """Return the values of ${0}, ${1} and so on, after `holds`: parts of `text`, of which `value` was made."""
        found = key.full.search(value)
        spans = [found.span(n) for n in range(min(GROUPS, 1 + key.full.groups))]
        text = text.encode("utf-8", "replace").decode()
        return tuple(text[start : min(end, start + LONGEST_VALUE)] if start >= 0 else "" for start, end in spans)

    def cost(self, value: Any, key: Any, *, remembers: bool) -> int:
        """Return how many nanoseconds `holds` may take at most, about, and `groups` if they are remembered."""
        if not self.patterned:
            return LEAST + (len(value) + len(key) if isinstance(value, str) else 0)
        return LEAST + len(value) * (10 + (40 if remembers else 10) * int(key.size))

    def counts(self, number: int, wanted: str) -> bool:
        """Return `:count`: how many there are, compared as a number."""
        return RELATIONS[self.relation]((0, number), _number(wanted))

    def _read(self, text: str) -> str | tuple[int, int]:
        if self.comparator == "i;ascii-numeric":
            return _number(text)
        return text if self.comparator == "i;octet" else text.translate(_LOWER)


def _number(text: str) -> tuple[int, int]:
    """Return the digits a text begins with, and more than any number without (RFC 4790 9.1)."""
    found = re.match(r"[0-9]{1,300}", text)
    return (0, int(found[0])) if found else (1, 0)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression, as one that only tests, which is many times as fast, and one that remembers its groups."""

    test: Any
    full: Any
    size: int


def _pattern(text: str, written: str, *, folded: bool) -> Pattern:
    """Return a regular expression as RE2 has it.

    Raises ValueError about the `written` text when RE2 does not take it.
    """
    if len(written) > LONGEST_PATTERN:
        raise ValueError(f"a pattern has at most {LONGEST_PATTERN} characters")
    clean = text.encode("utf-8", "replace").decode()
    try:
        test, full = (re2.compile(clean, _options(folded, test=test)) for test in (True, False))
    except re2.error as error:
        said = error.args[0] if error.args else ""
        why = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"{written[:60]!r} is no pattern that RE2 takes: {why}") from error
    if full.programsize > LARGEST_PATTERN:
        raise ValueError(f"{written[:60]!r} is more of a pattern than any mail is searched for")
    return Pattern(test, full, int(full.programsize))


def _options(folded: bool, *, test: bool) -> Any:
    options = re2.Options()
    options.log_errors, options.case_sensitive, options.never_capture = False, not folded, test
    options.max_mem = MEMORY
    return options


def _like(glob: str) -> Pattern:
    """Return a pattern of `:matches`: each wildcard takes as little as it can, and the first nine are remembered
    (RFC 5229 3.2)."""
    out, seen = "", 0
    for found in re.finditer(r"\\(?P<same>.)|(?P<any>\*)|(?P<one>\?)|(?P<plain>[^*?\\]+|\\)", glob, re.S):
        if wild := ".*?" if found["any"] else "." if found["one"] else "":
            seen += 1
            out += f"({wild})" if seen < GROUPS else wild
        else:
            out += re2.escape(found["same"] or found["plain"])
    return _pattern(rf"(?s)\A{out}\z", glob, folded=False)
