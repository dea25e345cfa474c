"""A message as a processor reads it: parsed when asked, and only what is asked, and never with an exception.

What cannot be parsed is still there as `raw`, and `defects` says what was wrong, so that a careful processor can
refuse what it cannot see into instead of being slipped past.
"""

from __future__ import annotations

from dataclasses import dataclass
from email import policy
from email.parser import BytesParser
from functools import cached_property

from sendswitch.mail.address import display
from sendswitch.mail.content import Content, read_all
from sendswitch.mail.headers import Field, dispositions, fields
from sendswitch.mail.parts import MAX_DEPTH, MAX_PARTS, STUMBLES, Part, leaves


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part with a file name, or one that is not text. `data` is decoded from its transfer encoding."""

    name: str
    type: str
    data: bytes

    @property
    def size(self) -> int:
        """Length of the decoded data in bytes."""
        return len(self.data)


class Mail:
    """One message. Reading an attribute parses at most once; nothing here raises for what a message contains."""

    def __init__(self, content: Content) -> None:
        self.content = content

    @property
    def size(self) -> int:
        """Bytes of the whole message."""
        return self.content.size

    @cached_property
    def fields(self) -> list[Field]:
        """The header fields in order, raw."""
        return fields(self.content.head())

    def header(self, name: str) -> str:
        """The first field of that name, decoded for reading; '' when there is none."""
        found = self.headers(name)
        return found[0] if found else ""

    def headers(self, name: str) -> list[str]:
        """All fields of that name, decoded for reading."""
        return [display(value) for value in self.raw_headers(name)]

    def raw_headers(self, name: str) -> list[str]:
        """All fields of that name, unfolded but with encoded words as they are: what addresses are read from."""
        wanted = name.lower()
        return [field.value for field in self.fields if field.name.lower() == wanted]

    @cached_property
    def dispositions(self) -> list[str]:
        """Which of `attachment` and `inline` parts say they are, in the first 256 KiB; nothing is parsed for it."""
        return dispositions(self.content.head(), next(self.content.chunks(), b""))

    @property
    def subject(self) -> str:
        """The Subject, decoded."""
        return self.header("subject")

    @cached_property
    def raw(self) -> bytes:
        """The whole message, byte for byte."""
        return read_all(self.content)

    @cached_property
    def text(self) -> str:
        """All text/plain parts that are not attachments, decoded; '' when there are none."""
        return self._texts("text/plain")

    @cached_property
    def html(self) -> str:
        """All text/html parts that are not attachments, decoded; '' when there are none."""
        return self._texts("text/html")

    @cached_property
    def attachments(self) -> list[Attachment]:
        """Every part with a file name and every part that is not text."""
        return [Attachment(part.name, part.type, part.data(self.raw)) for part in self.parts if part.attached]

    @cached_property
    def parts(self) -> list[Part]:
        """The parts that have none of their own, with where they stand in `raw`."""
        return leaves(self.raw)

    def _texts(self, kind: str) -> str:
        return "\n".join(part.text(self.raw) for part in self.parts if part.type == kind and not part.attached)

    @cached_property
    def defects(self) -> list[str]:
        """What is wrong with the structure; empty for a well-formed message."""
        if _nesting(self.raw) > MAX_DEPTH:
            return [f"parts nested deeper than {MAX_DEPTH}"]
        try:
            parts = list(BytesParser(policy=policy.compat32).parsebytes(self.raw).walk())
        except STUMBLES as error:
            return [f"cannot be parsed: {type(error).__name__}"]
        many = [f"{len(parts)} parts, only {MAX_PARTS} are read"] if len(parts) > MAX_PARTS else []
        return many + [type(defect).__name__ for part in parts for defect in part.defects]


def _nesting(raw: bytes) -> int:
    """An upper bound of the depth: no message nests deeper than it names boundaries or embeds messages."""
    lower = raw.lower()
    count = lower.count(b"boundary") + lower.count(b"message/rfc822")
    return count if count > MAX_DEPTH and _depth(lower) > MAX_DEPTH else 0


def _depth(lower: bytes) -> int:
    depth = deepest = 0
    for line in lower.split(b"\n"):
        if line.startswith((b"content-type: multipart/", b"content-type: message/", b"content-type:multipart/")):
            depth += 1
            deepest = max(deepest, depth)
        elif line.startswith(b"--") and line.rstrip().endswith(b"--") and depth:
            depth -= 1
    return deepest
