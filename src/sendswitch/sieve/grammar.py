"""The text of a script as commands (RFC 5228 8), without their meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Characters of a script, and blocks and tests in each other (RFC 5228 2.10.7 asks for 15).
LONGEST, DEEPEST = 65_536, 32
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_TOKEN = re.compile(
    r"(?P<space>\s+|\#[^\n]*|/\*.*?\*/)"
    # A line of one dot ends it; a dot before another one was put there so that none ends it too early.
    r"|(?P<lines>text:[ \t]*(?:\#[^\n]*)?\r?\n(?P<inside>(?:(?!\.\r?(?:\n|\Z))[^\n]*\n)*)\.\r?(?:\n|\Z))"
    r'|"(?P<quoted>(?:[^"\\]|\\.)*)"'
    r"|(?P<number>[0-9]{1,15})(?P<unit>[KMG]?)(?![A-Za-z0-9_])"
    r"|:(?P<tag>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>[\[\](){},;])",
    re.S | re.I,
)


class SieveError(ValueError):
    """An error in a script, with its line."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")


class TooMuch(SieveError):
    """A script that wants more work done about one message than it may."""


class Spent(Exception):
    """The budget of a script is spent; `Script.run` makes a TooMuch of it."""


@dataclass(frozen=True, slots=True)
class Tag:
    """`:name`, in lower case."""

    name: str


@dataclass(frozen=True, slots=True)
class Strings:
    """A string, or a list of them."""

    values: tuple[str, ...]


Argument = Tag | Strings | int


@dataclass(frozen=True, slots=True)
class Command:
    """A command or a test: its name in lower case, and its arguments. Without a block `block` is None."""

    name: str
    line: int
    arguments: tuple[Argument, ...] = ()
    tests: tuple[Command, ...] = ()
    block: tuple[Command, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int
    number: int = 0


def parse(text: str) -> tuple[Command, ...]:
    """Return the commands of a script. Raises SieveError."""
    if len(text) > LONGEST:
        raise SieveError(1, f"a script has at most {LONGEST} characters")
    return _Reader(text).commands(0)


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            what = (
                "this string has no end" if text[at] == '"' else f"{text[at : at + 20]!r} is nothing that Sieve knows"
            )
            raise SieveError(line, what)
        kind = found.lastgroup or ""
        if found["lines"] is not None:
            yield _Token("string", re.sub(r"^\.\.", ".", found["inside"], flags=re.M), line)
        elif found["quoted"] is not None:
            yield _Token("string", re.sub(r"\\(.)", r"\1", found["quoted"], flags=re.S), line)
        elif found["number"]:
            yield _Token("number", found[0], line, int(found["number"]) * _UNITS[found["unit"].lower()])
        elif kind != "space":
            yield _Token(kind, found[kind].lower(), line)
        line += found[0].count("\n")
        at = found.end()
    yield _Token("end", "", line)


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)

    def _take(self) -> _Token:
        token = self._next
        self._next = next(self._tokens, token)
        return token

    def _is(self, sign: str) -> bool:
        return self._next.kind == "sign" and self._next.text == sign

    def _want(self, sign: str) -> None:
        if not self._is(sign):
            raise self._wrong(f"{sign!r} is missing")
        self._take()

    def _wrong(self, what: str) -> SieveError:
        before = f" before {self._next.text[:20]!r}" if self._next.kind != "end" else " at the end"
        return SieveError(self._next.line, what + before)

    def commands(self, depth: int) -> tuple[Command, ...]:
        """Return the commands up to the end, or up to the brace that ends their block."""
        found = []
        while self._next.kind != "end" and not (depth and self._is("}")):
            found.append(self._command(depth))
        return tuple(found)

    def _name(self, what: str, depth: int) -> _Token:
        if self._next.kind != "word":
            raise self._wrong(f"{what} is missing")
        if depth > DEEPEST:
            raise SieveError(self._next.line, f"more than {DEEPEST} blocks and tests in each other")
        return self._take()

    def _command(self, depth: int) -> Command:
        name = self._name("the name of a command", depth)
        arguments, tests = self._arguments(depth)
        block = None
        if self._is("{"):
            self._take()
            block = self.commands(depth + 1)
            self._want("}")
        else:
            self._want(";")
        return Command(name.text, name.line, arguments, tests, block)

    def _test(self, depth: int) -> Command:
        name = self._name("the name of a test", depth)
        return Command(name.text, name.line, *self._arguments(depth))

    def _arguments(self, depth: int) -> tuple[tuple[Argument, ...], tuple[Command, ...]]:
        arguments: list[Argument] = []
        while (argument := self._argument()) is not None:
            arguments.append(argument)
        tests = []
        if self._is("("):
            self._take()
            tests.append(self._test(depth + 1))
            while self._is(","):
                self._take()
                tests.append(self._test(depth + 1))
            self._want(")")
        elif self._next.kind == "word":
            tests.append(self._test(depth + 1))
        return tuple(arguments), tuple(tests)

    def _argument(self) -> Argument | None:
        if self._next.kind == "tag":
            return Tag(self._take().text)
        if self._next.kind == "number":
            return self._take().number
        if self._next.kind == "string":
            return Strings((self._take().text,))
        if not self._is("["):
            return None
        self._take()
        values = [self._string()]
        while self._is(","):
            self._take()
            values.append(self._string())
        self._want("]")
        return Strings(tuple(values))

    def _string(self) -> str:
        if self._next.kind != "string":
            raise self._wrong("a string is missing")
        return self._take().text
