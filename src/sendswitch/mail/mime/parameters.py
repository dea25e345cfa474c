"""Parameters of Content-Type and Content-Disposition (RFC 2045 section 5.1, RFC 2231) in every reading.

Mail programs read malformed parameters in different ways, so each parameter has a list of values: first the grammar's,
then those of lenient readers. The readings are: by tokens; with comments as ordinary text; split at every semicolon;
and every text like `name=value` in the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote_to_bytes

from sendswitch.mail.mime.charsets import decode
from sendswitch.mail.mime.lexer import Token, tokens

Pair = tuple[str, str]

# Parameters of one field, and values of one parameter, that are looked at; honest fields have a few.
MOST_PAIRS, MOST_VALUES = 200, 60
_ANYWHERE = re.compile(
    r"(?:^|(?<=[\s;,?\"()\x00-\x1f]))([A-Za-z0-9*'%-]{1,40})[ \t\x00]*=[ \t\x00]*(\"[^\"]*\"?|[^\s;,]*)"
)
_INSIDE = re.compile(r'"([^"]*)"')


def main_value(value: str) -> str:
    """Return the text before the parameters, without comments, in lower case."""
    out = ""
    for token in tokens(value):
        if token.kind == "special" and token.text == ";":
            break
        if token.kind != "comment":
            out += token.raw
    return out.strip(" \t\r\n\0").lower()


def pairs(value: str) -> list[list[Pair]]:
    """Return the parameters of a field in each reading: names in lower case with their asterisks, values unquoted."""
    readings = [_by_tokens(list(tokens(value)))]
    if "(" in value or ")" in value:
        readings.append(_by_tokens([t for text in _split_comments(value) for t in tokens(text)]))
    readings.append(_at_semicolons(value))
    readings.append([(n.lower(), v.strip('"')) for n, v in _ANYWHERE.findall(value)[:MOST_PAIRS]])
    unique: list[list[Pair]] = []
    for reading in readings:
        if reading and reading not in unique:
            unique.append(reading)
    return unique


def too_many(value: str) -> bool:
    """Return whether a field has more parameters than are looked at."""
    return value.count(";") >= MOST_PAIRS or value.count("=") >= MOST_PAIRS


def _split_comments(value: str) -> list[str]:
    return [value.replace("(", "_").replace(")", "_")]


def _by_tokens(found: Sequence[Token]) -> list[Pair]:
    out: list[Pair] = []
    groups: list[list[Token]] = [[]]
    for token in found:
        if token.kind == "special" and token.text == ";":
            groups.append([])
        elif token.kind != "comment":
            groups[-1].append(token)
    for group in groups[1 : MOST_PAIRS + 1]:
        at = next((n for n, token in enumerate(group) if token.raw == "="), -1)
        if at <= 0:
            continue
        name = "".join(token.text for token in group[:at]).strip(" \t\r\n\0").lower()
        value = _joined(group[at + 1 :])
        out.append((name, value))
        words = value.split()
        if len(words) > 1 and not any(token.kind == "quoted" for token in group):
            out.append((name, words[0]))  # an unquoted value ends at a space
    return out


def _joined(group: Sequence[Token]) -> str:
    """Return the value that tokens spell: quoted strings and atoms, with one space between quoted strings."""
    out = ""
    for token in group:
        out += " " if token.kind == "space" else token.text
    return out.strip()


def _at_semicolons(value: str) -> list[Pair]:
    out: list[Pair] = []
    for piece in value.split(";")[: MOST_PAIRS + 1]:
        name, equals, said = piece.partition("=")
        if not equals:
            continue
        name = re.split(r"[\s,?]", name.strip(" \t\r\n\0"))[-1].lower()
        said = said.strip(" \t\r\n\0")
        out.append((name, said.strip('"')))
        out += [(name, inside) for inside in _INSIDE.findall(said)[:5] if inside and inside != said.strip('"')]
    return out


def values(fields: Sequence[Sequence[Sequence[Pair]]], wanted: Sequence[str], *, empty: bool = False) -> list[str]:
    """Return every value of some parameters, the preferred one first; with `empty` those without any text, too.

    `fields` are the readings of each field, as `pairs` returns them. RFC 2231 pieces are joined in every order in which
    a reader joins them: within one reading, within one field, and over all fields.
    """
    found: dict[str, None] = {}
    for name in wanted:
        for readings in fields:
            for reading in readings:
                found.update(dict.fromkeys(_of(reading, name)))
        everything = [pair for readings in fields for reading in readings for pair in reading]
        if any(pair[0].startswith(f"{name}*") for pair in everything):
            found.update(dict.fromkeys(_of(everything, name)))
            first = [pair for readings in fields for pair in (readings[0] if readings else [])]
            found.update(dict.fromkeys(_of(first, name)))
    return [value for value in found if value or empty][:MOST_VALUES]


def _of(reading: Sequence[Pair], wanted: str) -> Iterator[str]:
    plain: list[str] = []
    pieces: list[tuple[int, bool, str]] = []
    for name, value in reading:
        base, star, rest = name.partition("*")
        if base.strip() != wanted:
            continue
        number = rest.rstrip("*")
        if star and number.isdecimal() and len(number) <= 4:
            pieces.append((int(number), rest.endswith("*"), value))
        elif star:
            yield extended([(True, value)])
            plain.append(value)
        else:
            plain.append(value)
    if pieces:
        yield from _assembled(pieces)
    yield from plain


def _assembled(pieces: Sequence[tuple[int, bool, str]]) -> Iterator[str]:
    """Yield the values that numbered pieces can be joined to."""
    first: dict[int, tuple[bool, str]] = {}
    last: dict[int, tuple[bool, str]] = {}
    for number, encoded, value in pieces:
        first.setdefault(number, (encoded, value))
        last[number] = (encoded, value)
    for chosen in (first, last):
        ordered = [chosen[number] for number in sorted(chosen)]
        yield extended(ordered)
        until = 0
        while until in chosen:
            until += 1
        if until < len(chosen):  # a reader stops at the first number that is missing
            yield extended([chosen[n] for n in range(until)] or ordered[:1])
    yield extended([(True, "".join(value for _, (_, value) in sorted(first.items())))])  # joined, then decoded
    yield extended([(encoded, value) for _, encoded, value in pieces])  # in the order in which they stand there
    for _, encoded, value in pieces[:20]:
        yield extended([(encoded, value)])


def extended(pieces: Sequence[tuple[bool, str]]) -> str:
    """Return the text of an extended value (RFC 2231): charset and language from its beginning, percent decoded."""
    if not pieces:
        return ""
    charset, data = "", b""
    for n, (encoded, value) in enumerate(pieces):
        if n == 0 and value.count("'") >= 2 and (encoded or "%" in value):
            charset, _, rest = value.partition("'")
            value = rest.partition("'")[2]
        # A piece without an asterisk is not encoded, but readers decode it when the first piece was.
        raw = value.encode("utf-8", "surrogateescape")
        data += unquote_to_bytes(raw) if encoded or (charset and "%" in value) else raw
    return decode(data, charset or "utf-8")


def unique(found: Iterable[str]) -> list[str]:
    """Return each text once, in order, without empty ones."""
    return list(dict.fromkeys(text for text in found if text))
