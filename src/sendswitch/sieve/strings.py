"""Strings of a script with their references (RFC 5228 2.4.2.4, RFC 5229)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sendswitch.mail.text import storable

# Characters a variable keeps (RFC 5229 6 asks for 4,000), variables of one message, and characters that a string
# can become.
LONGEST_VALUE, VARIABLES, LONGEST_STRING = 4000, 128, 65_536

# Nanoseconds of making any string.
COST = 1000

_NUMBERS = r"\s*([0-9a-f]{1,LONG}(?:\s+[0-9a-f]{1,LONG})*)\s*\}"
_HEX = re.compile(r"\$\{hex:" + _NUMBERS.replace("LONG", "2"), re.I)
_UNICODE = re.compile(r"\$\{unicode:" + _NUMBERS.replace("LONG", "12"), re.I)
# Several in a row, because a character may be spread over them.
_ENCODED = re.compile(f"(?:{_HEX.pattern}|{_UNICODE.pattern})+", re.I)
_VARIABLE = re.compile(r"\$\{(?:(?P<number>[0-9]{1,4})|(?P<name>[A-Za-z_][A-Za-z0-9_]*))\}")
_NAMESPACE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z0-9_.]*\}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(slots=True)
class Variables:
    """The variables of one message, by name in lower case, and the parts of the last match. `spend` takes the cost of
    each string (nanoseconds).
    """

    named: dict[str, str] = field(default_factory=dict)
    matched: Sequence[str] = ()
    spend: Callable[[int], None] = lambda cost: None

    def set(self, name: str, value: str) -> None:
        """Keep a value; one too many is not kept."""
        if name.lower() in self.named or len(self.named) < VARIABLES:
            self.named[name.lower()] = value[:LONGEST_VALUE]

    def get(self, found: re.Match[str]) -> str:
        """Return the value of a reference, '' for one that was never set."""
        if found["number"]:
            number = int(found["number"])
            return self.matched[number] if number < len(self.matched) else ""
        return self.named.get(found["name"].lower(), "")


@dataclass(frozen=True, slots=True)
class Text:
    """A string as it was written. `fixed` is True when nothing in it depends on the message."""

    text: str
    fixed: bool

    def value(self, variables: Variables) -> str:
        """Return the string for this message. Raises Spent."""
        if self.fixed:
            return self.text
        out: list[str] = []
        at = size = 0
        for found in _VARIABLE.finditer(self.text):
            value = variables.get(found)
            out += (self.text[at : found.start()], value)
            size += found.start() - at + len(value)
            at = found.end()
            if size > LONGEST_STRING:  # cut before it grows, not behind
                break
        variables.spend(COST + size + len(self.text))
        return ("".join(out) + self.text[at:])[:LONGEST_STRING]


def text_of(written: str, extensions: set[str]) -> Text:
    """Return a string of a script that requires these extensions. Raises ValueError."""
    if "encoded-character" in extensions:
        written = _ENCODED.sub(_decoded, written)
    if "variables" in extensions:
        if (found := _NAMESPACE.search(written)) is not None:
            raise ValueError(f"{found[0]} is a variable of an extension that is not supported")
        return Text(written, _VARIABLE.search(written) is None)
    return Text(written, True)


def _decoded(found: re.Match[str]) -> str:
    octets = b""
    for one in re.finditer(r"\{(hex|unicode):([^}]*)\}", found[0], re.I):
        numbers = [int(number, 16) for number in one[2].split()]
        if one[1].lower() == "hex":
            octets += bytes(numbers)
            continue
        for number in numbers:
            if not (number < 0xD800 or 0xE000 <= number <= 0x10FFFF):
                raise ValueError(f"{found[0]}: there is no character {number:x}")
        octets += "".join(map(chr, numbers)).encode()
    return storable(octets.decode("utf-8", "replace"), LONGEST_STRING)


def _length(text: str) -> str:
    return str(len(text))


def _quoted(text: str) -> str:
    return re.sub(r"([*?\\])", r"\\\1", text)


# Modifiers of `set` with their precedence: the higher goes first (RFC 5229 4.1).
MODIFIERS: Mapping[str, tuple[int, Callable[[str], str]]] = {
    "lower": (40, str.lower),
    "upper": (40, str.upper),
    "lowerfirst": (30, lambda text: text[:1].lower() + text[1:]),
    "upperfirst": (30, lambda text: text[:1].upper() + text[1:]),
    "quotewildcard": (20, _quoted),
    "length": (10, _length),
}
