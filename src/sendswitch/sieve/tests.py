"""Tests of a script (RFC 5228 5, and extensions)."""

from __future__ import annotations

import re
from collections.abc import Callable

from sendswitch.mail.address import split
from sendswitch.mail.address_list import addresses
from sendswitch.mail.mime.words import decoded as readable
from sendswitch.sieve.arguments import EXTENSIONS, Given, Known
from sendswitch.sieve.grammar import Command
from sendswitch.sieve.run import Ask, Run

# Fields whose content is addresses (RFC 5228 5.1).
_ADDRESSED = frozenset(
    ("from", "to", "cc", "bcc", "sender", "reply-to", "resent-from", "resent-to", "resent-cc", "resent-bcc")
)


def _several(given: Given) -> Ask:
    tests = [test(one, given.known) for one in given.command.tests]
    given.end(0)
    if not tests:
        raise given.wrong(f"{given.command.name} has tests in parentheses")
    if given.command.name == "allof":
        return lambda run: all(one(run) for one in tests)
    return lambda run: any(one(run) for one in tests)


def _not(given: Given) -> Ask:
    given.end(0)
    if len(given.command.tests) != 1:
        raise given.wrong("not has one test")
    inner = test(given.command.tests[0], given.known)
    return lambda run: not inner(run)


def _always(given: Given) -> Ask:
    given.end(0)
    answer = given.command.name == "true"
    return lambda run: answer


def _size(given: Given) -> Ask:
    over, under = given.flag("over"), given.flag("under")
    limit = given.positional[0] if given.positional else None
    given.end(1)
    if over == under or not isinstance(limit, int):
        raise given.wrong("size is written like size :over 100K or size :under 1M")
    return lambda run: run.mail.size > limit if over else run.mail.size < limit


def _exists(given: Given) -> Ask:
    names = given.strings(0)
    given.end(1)
    return lambda run: all(run.raw(name.value(run.variables).lower()) for name in names)


def _header(given: Given) -> Ask:
    names, keys = given.names(0), given.strings(1)

    def values(run: Run) -> list[str]:
        def decoded(name: str) -> list[str]:
            return [readable(value).strip() for value in run.raw(name)]

        return [value for name in given.each(run, names) for value in run.once("header", name, decoded)]

    return given.compared(keys, values)


def _address(given: Given) -> Ask:
    names, keys, part = given.names(0), given.strings(1), given.part()
    for name in names:
        if name.fixed and name.text.lower() not in _ADDRESSED:
            raise given.wrong(f"{name.text!r} is no field with addresses; those are {', '.join(sorted(_ADDRESSED))}")

    def values(run: Run) -> list[str]:
        def written(name: str) -> list[str]:
            return [address for value in run.raw(name) for address in addresses(value)]

        found = [address for name in given.each(run, names) for address in run.once("address", name, written)]
        return [value for address in found if (value := _part(address, part, given.known.delimiter)) is not None]

    return given.compared(keys, values)


def _envelope(given: Given) -> Ask:
    fields, keys, part = [name.lower() for name in given.constants(0)], given.strings(1), given.part()
    for name in fields:
        if name not in ("from", "to"):
            raise given.wrong(f"the envelope has from and to, not {name!r}")

    def values(run: Run) -> list[str]:
        found = [run.sender if name == "from" else run.recipient for name in fields]
        # Whatever part of the null path is asked for, it is empty (RFC 5228 5.4).
        return [
            v for address in found if (v := _part(address, part, given.known.delimiter) if address else "") is not None
        ]

    return given.compared(keys, values)


def _part(address: str, part: str, delimiter: str) -> str | None:
    """Return a part of an address, None when it has no such."""
    local, domain = split(address)
    if part in ("all", "domain"):
        return address if part == "all" else domain
    if local.startswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    if part == "localpart":
        return local
    user, found, detail = local.partition(delimiter) if delimiter else (local, "", "")
    return user if part == "user" else (detail if found else None)


def _string(given: Given) -> Ask:
    given.need("variables", "string")
    sources, keys = given.strings(0), given.strings(1)
    counted = given.match().kind == "count"  # empty ones do not count (RFC 5229 5)
    return given.compared(keys, lambda run: [v for one in sources if (v := one.value(run.variables)) or not counted])


def _body(given: Given) -> Ask:
    given.known.reads_body = True
    kinds = [kind.text.lower() for kind in given.tagged("content")]
    raw, text = given.flag("raw"), given.flag("text")
    keys = given.strings(0)
    if raw + text + bool(kinds) > 1:
        raise given.wrong(":raw, :content and :text exclude each other")

    def values(run: Run) -> list[str]:
        def whole(name: str) -> list[str]:
            return [run.mail.raw[len(run.mail.content.head()) :].decode("utf-8", "replace")]

        def decoded(name: str) -> list[str]:
            part = run.mail.parts[int(name)]
            return [part.text]

        if raw:
            return run.once("body", "", whole)
        wanted = kinds or ["text"]
        parts = [n for n, part in enumerate(run.mail.parts) if any(_of_kind(part.type, kind) for kind in wanted)]
        return [text for n in parts for text in run.once("part", str(n), decoded)]

    return given.compared(keys, values, remembers=False, at=0)


def _of_kind(type_: str, kind: str) -> bool:
    """Return whether a part's type is meant: all, a main type, or a whole one (RFC 5173 4.2)."""
    return not kind or type_ == kind or ("/" not in kind and type_.startswith(f"{kind}/"))


_TESTS: dict[str, Callable[[Given], Ask]] = {
    "allof": _several,
    "anyof": _several,
    "not": _not,
    "true": _always,
    "false": _always,
    "size": _size,
    "exists": _exists,
    "header": _header,
    "address": _address,
    "envelope": _envelope,
    "string": _string,
    "body": _body,
}


def test(command: Command, known: Known) -> Ask:
    """Return whether one test holds. Raises SieveError."""
    given = Given(command, known)
    make = _TESTS.get(command.name)
    if make is None:
        raise given.wrong(f"there is no test {command.name}")
    if command.name in EXTENSIONS:
        given.need(command.name, command.name)
    if command.tests and command.name not in ("allof", "anyof", "not"):
        raise given.wrong(f"{command.name} has no tests of its own; is a comma missing?")
    return make(given)
