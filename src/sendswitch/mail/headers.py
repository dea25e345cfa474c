"""The header block as bytes: parsed, counted and edited without changing any other byte.

The standard `email` package re-folds and re-encodes what it parses, and a filter must pass on the bytes it got. Fields
stay raw bytes with their folding; only an edited field changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.header import Header

from sendswitch.mail.edits import AddHeader, HeaderEdit, RemoveHeader, SetHeader
from sendswitch.mail.mime.words import decoded

OWN_PREFIX = b"x-sendswitch-"

_FIELD_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]+\Z")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+")
_COLON = re.compile(rb"[ \t]*:")
# Runs, not single bytes: nothing else runs in this process while it matches, and a field may have a megabyte.
_VALUE = re.compile(rb"[ \t]*:((?:[^\r\n]++|\r\n[ \t])*+)")


@dataclass(frozen=True, slots=True)
class Field:
    """One header field: its name as written, and the raw bytes of the whole field with its line ends."""

    name: str
    raw: bytes

    @property
    def value(self) -> str:
        """Return the unfolded value. Bytes that are not UTF-8 are read as Latin-1, so none is lost; never raises."""
        body = self.raw.partition(b":")[2].replace(b"\r\n", b"").strip()
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            return body.decode("latin-1")


_BLANK = re.compile(rb"\s")


def fields(head: bytes) -> list[Field]:
    """Return the fields of a header block in order. A line that is neither a field nor a continuation ends the block.

    Postfix and most readers take what follows such a line for the body. Only a mailbox's separator line (`From sender
    date`) at the very top is skipped, as a field without a name.
    """
    block: list[tuple[str, list[bytes]]] = []
    for line in _lines(head):
        name, colon, _ = line.partition(b":")
        name = name.rstrip(b" \t")
        if line[:1] in (b" ", b"\t") and block:
            block[-1][1].append(line)
        elif not block and line.startswith((b"From ", b">From ")):
            block.append(("", [line]))
        elif colon and name and _BLANK.search(name) is None:
            block.append((name.decode("latin-1"), [line]))
        else:
            break
    return [Field(name, b"".join(lines)) for name, lines in block]


def _lines(head: bytes) -> list[bytes]:
    lines = head.split(b"\r\n")
    last = lines.pop()
    return [line + b"\r\n" for line in lines] + ([last] if last else [])


_FIELD = rb"[\x21-\x39\x3b-\x7e]+[ \t]*:"
_BEGINS_WELL = re.compile(rb"\r\n|" + _FIELD)
# A line, not the first, that is no field, continues none and does not end the header.
_NO_FIELD = re.compile(rb"\r\n(?!\r\n|[ \t]|\Z|" + _FIELD + rb")")


def closed(head: bytes) -> bytes:
    """Return the header block with an empty line before the first line that is no field, as Postfix adds one.

    Otherwise such a line would continue a field that we prepend, or a reader that skips it would see fields below it
    that no pipeline saw.
    """
    if _BEGINS_WELL.match(head) and not _NO_FIELD.search(head):
        return head
    end = sum(len(field.raw) for field in fields(head))
    return head if head[end : end + 2] == b"\r\n" or end == len(head) else head[:end] + b"\r\n" + head[end:]


def unfinished(head: bytes) -> bool:
    """Return whether the fields reach the very end, so that more of them may have been cut off."""
    read = sum(len(field.raw) for field in fields(head))
    return read >= len(head) - len(head.rpartition(b"\r\n")[2])


def without_own(head: bytes, *keep: str) -> bytes:
    """Return the header block without fields under our own names, except `keep`: others must not speak for us."""
    if OWN_PREFIX not in head.lower():
        return head
    block = fields(head)
    rest = head[sum(len(field.raw) for field in block) :]
    prefix, kept = OWN_PREFIX.decode(), {name.lower() for name in keep}
    return b"".join(f.raw for f in block if not f.name.lower().startswith(prefix) or f.name.lower() in kept) + rest


def hops(head: bytes) -> int:
    """Return how many Received fields there are (RFC 5321 6.3)."""
    return sum(_COLON.match(head, end) is not None for end in _ends_of(b"received", head.lower()))


GLANCED = ("subject", "message-id", "to", "cc", "reply-to")
_GLANCED = [(name, name.encode()) for name in GLANCED]
# Parts that are looked at for what they say they are; a message of nothing else must not keep the loop busy.
MAX_LOOKED_AT = 100


def dispositions(head: bytes, beginning: bytes) -> list[str]:
    """Return which of `attachment` and `inline` parts say they are (RFC 2183), in the `beginning` of a message."""
    top = head.lower()
    if b"multipart/" not in top and b"content-disposition" not in top:
        return []
    found, lower, at = set(), beginning.lower(), 0
    wanted = b"\ncontent-disposition:"
    for _ in range(MAX_LOOKED_AT):
        if (at := lower.find(wanted, at)) < 0:
            break
        at += len(wanted)
        found |= {kind for kind in (b"attachment", b"inline") if lower[at : at + 20].lstrip().startswith(kind)}
    return sorted(kind.decode() for kind in found)


def glance(head: bytes) -> dict[str, bytes]:
    """Return the raw, unfolded values of the first field of each name in GLANCED, as far as they are there."""
    found: dict[str, bytes] = {}
    lower = head.lower()
    for name, wanted in _GLANCED:
        if wanted not in lower:  # most mail has no Cc and no Reply-To
            continue
        values = (_VALUE.match(head, end) for end in _ends_of(wanted, lower))
        if (value := next(filter(None, values), None)) is not None:
            found[name] = value[1].replace(b"\r\n", b"").strip()
    return found


def _ends_of(name: bytes, lower: bytes) -> Iterator[int]:
    """Yield where `name` ends at the beginning of a line.

    Searched for and not matched line by line: each message on its way in is looked at, and a regular expression over
    the head of an ordinary mail took four times as long.
    """
    if lower.startswith(name):
        yield len(name)
    wanted, at = b"\n" + name, 0
    while (at := lower.find(wanted, at)) >= 0:
        at += len(wanted)
        yield at


def valid_name(name: str) -> bool:
    """Return whether this is a header field name (RFC 5322 section 3.6.8)."""
    return bool(_FIELD_NAME.match(name))


def _one_line(value: str, *, utf8: bool) -> bytes:
    """Return a value that cannot start another field or end the header: line breaks and controls become spaces.

    Words beyond ASCII become encoded words (RFC 2047), unless the message is one for SMTPUTF8 (RFC 6532).
    """
    line = _CONTROLS.sub(" ", value).encode("utf-8", "replace")
    if utf8 or line.isascii():
        return line
    runs = itertools.groupby(line.decode().split(), str.isascii)
    return " ".join(" ".join(words) if plain else _encoded(" ".join(words)) for plain, words in runs).encode()


def _encoded(text: str) -> str:
    """Return text as encoded words of at most 75 characters, with spaces between them that no reader shows."""
    return Header(text, "utf-8").encode(linesep="")


# A line may have 998 octets (RFC 5322 2.1.1); a value that would have more is folded where it has spaces.
_LONGEST = 900


def _folded(line: bytes) -> bytes:
    if len(line) <= _LONGEST:
        return line
    lines = [b""]
    for word in line.split(b" "):
        if lines[-1].strip() and len(lines[-1]) + len(word) >= 78:
            lines.append(b"")
        lines[-1] += b" " + word if lines[-1] or len(lines) > 1 else word
    return b"\r\n".join(lines)


def field_bytes(name: str, value: str, *, utf8: bool = False) -> bytes:
    """Return one field as bytes, ASCII unless `utf8`. Raises ValueError for a name that is no field name.

    Line breaks in the value become spaces: a value can never start another field.
    """
    if not valid_name(name):
        raise ValueError(f"not a header field name: {name!r}")
    return _folded(name.encode() + b": " + _one_line(value, utf8=utf8).strip()) + b"\r\n"


def edit(head: bytes, edits: Sequence[HeaderEdit], *, utf8: bool = False) -> bytes:
    """Return the header block after the edits, in their order. Fields that no edit names keep their bytes.

    With `utf8` the message is one for SMTPUTF8, and new text needs no encoding.
    """
    if all(isinstance(change, AddHeader) for change in edits):
        return b"".join(field_bytes(e.name, e.value, utf8=utf8) for e in edits if isinstance(e, AddHeader)) + head
    block = fields(head)
    rest = head[sum(len(field.raw) for field in block) :]
    for change in edits:
        block = _apply(block, change, utf8)
    return b"".join(field.raw for field in block) + rest


def _apply(block: list[Field], change: HeaderEdit, utf8: bool) -> list[Field]:
    match change:
        case AddHeader(name, value):
            return [Field(name, field_bytes(name, value, utf8=utf8)), *block]
        case RemoveHeader(name):
            return [field for field in block if field.name.lower() != name.lower()]
        case SetHeader(name, value):
            new = Field(name, field_bytes(name, value, utf8=utf8))
            places = [n for n, field in enumerate(block) if field.name.lower() == name.lower()]
            if not places:
                return [new, *block]
            gone = set(places[1:])
            return [new if n == places[0] else f for n, f in enumerate(block) if n not in gone]
    return _mark(block, change.mark, utf8)


def _mark(block: list[Field], mark: str, utf8: bool) -> list[Field]:
    for n, field in enumerate(block):
        if field.name.lower() == "subject":
            if decoded(field.value).startswith(mark.strip()):
                return block
            name, _, body = field.raw.partition(b":")
            raw = name + b": " + _in_front(mark, body.lstrip(b" \t"), utf8)
            return [*block[:n], Field(field.name, raw), *block[n + 1 :]]
    return [Field("Subject", field_bytes("Subject", mark, utf8=utf8)), *block]


def _in_front(mark: str, body: bytes, utf8: bool) -> bytes:
    line = _one_line(mark, utf8=utf8)
    if utf8 or mark.isascii():
        return line + body
    if body.startswith(b"=?"):  # readers show no space between two encoded words, so it stands in the first
        line = _encoded(decoded(line.decode()) + " ").encode()
    return line + b" " + body
