"""The header block as bytes: found, counted and edited without re-writing what nobody changed.

Why not the standard `email` package: it re-folds and re-encodes what it parses, and a filter must hand on what
it got. Fields are kept as raw bytes with their folding; only a field that is edited changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OWN_PREFIX = b"x-sendswitch-"

_FIELD_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]+\Z")
_RECEIVED = re.compile(rb"^received[ \t]*:", re.I | re.M)


@dataclass(frozen=True, slots=True)
class Field:
    """One header field: its name as written, and the raw bytes of the whole field with its line ends."""

    name: str
    raw: bytes

    @property
    def value(self) -> str:
        """The unfolded value. Bytes that are not UTF-8 are read as Latin-1, so none is lost; never raises."""
        body = self.raw.partition(b":")[2].replace(b"\r\n", b"").strip()
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            return body.decode("latin-1")


def fields(head: bytes) -> list[Field]:
    """The fields of a header block in order. A line that is no field and continues none ends the block.

    That is how Postfix and most readers see it: what follows such a line is body. Only a mailbox's separator
    line (`From sender date`) at the very top is passed over, as a field without a name.
    """
    out: list[Field] = []
    for line in _lines(head):
        name, colon, _ = line.partition(b":")
        name = name.rstrip(b" \t")
        if line[:1] in (b" ", b"\t") and out:
            out[-1] = Field(out[-1].name, out[-1].raw + line)
        elif not out and line.startswith((b"From ", b">From ")):
            out.append(Field("", line))
        elif colon and name and not re.search(rb"[\s]", name):
            out.append(Field(name.decode("latin-1"), line))
        else:
            break
    return out


def _lines(head: bytes) -> list[bytes]:
    lines = head.split(b"\r\n")
    last = lines.pop()
    return [line + b"\r\n" for line in lines] + ([last] if last else [])


def hops(head: bytes) -> int:
    """How many Received fields there are (RFC 5321 6.3)."""
    return len(_RECEIVED.findall(head))


def count(head: bytes, name: bytes) -> int:
    """How many fields are called `name` (given in lower case)."""
    lower = head.lower()
    return lower.count(b"\n" + name + b":") + lower.startswith(name + b":")


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Put a field at the top."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class SetHeader:
    """Replace every field of that name by one; put it at the top if there was none."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class RemoveHeader:
    """Remove every field of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class MarkSubject:
    """Put `mark` before the Subject, once however often it is asked for."""

    mark: str


Edit = AddHeader | SetHeader | RemoveHeader | MarkSubject


def field_bytes(name: str, value: str) -> bytes:
    """One field as bytes. Raises ValueError for a name that is no field name.

    Line breaks in the value become spaces: a value can never start another field.
    """
    if not _FIELD_NAME.match(name):
        raise ValueError(f"not a header field name: {name!r}")
    safe = re.sub(r"[\x00-\x08\x0a-\x1f\x7f]+", " ", value).strip()
    return f"{name}: {safe}\r\n".encode("utf-8", "surrogateescape")


def edit(head: bytes, edits: tuple[Edit, ...]) -> bytes:
    """The header block after the edits, in their order. Fields that no edit names keep their bytes."""
    if all(isinstance(change, AddHeader) for change in edits):
        return b"".join(field_bytes(e.name, e.value) for e in edits if isinstance(e, AddHeader)) + head
    block = fields(head)
    rest = head[sum(len(field.raw) for field in block) :]
    for change in edits:
        block = _apply(block, change)
    return b"".join(field.raw for field in block) + rest


def _apply(block: list[Field], change: Edit) -> list[Field]:
    match change:
        case AddHeader(name, value):
            return [Field(name, field_bytes(name, value)), *block]
        case RemoveHeader(name):
            return [field for field in block if field.name.lower() != name.lower()]
        case SetHeader(name, value):
            new = Field(name, field_bytes(name, value))
            places = [n for n, field in enumerate(block) if field.name.lower() == name.lower()]
            if not places:
                return [new, *block]
            gone = set(places[1:])
            return [new if n == places[0] else f for n, f in enumerate(block) if n not in gone]
        case MarkSubject(mark):
            return _mark(block, mark)


def _mark(block: list[Field], mark: str) -> list[Field]:
    for n, field in enumerate(block):
        if field.name.lower() == "subject":
            if field.value.startswith(mark.strip()):
                return block
            name, _, body = field.raw.partition(b":")
            raw = name + b": " + mark.encode() + body.lstrip(b" \t")
            return [*block[:n], Field(field.name, raw), *block[n + 1 :]]
    return [Field("Subject", field_bytes("Subject", mark)), *block]
