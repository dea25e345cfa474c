"""A message as a processor reads it: each part is parsed when it is needed, and never with an exception.

`findings` reports content that can be read in several ways or not at all, so that a careful processor can refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sendswitch.mail.address import in_header
from sendswitch.mail.content import Content, read_all
from sendswitch.mail.headers import Field, dispositions, fields
from sendswitch.mail.mime.findings import Finding
from sendswitch.mail.mime.reader import Part, Reading, read
from sendswitch.mail.mime.words import decoded

# Bytes of a header that is read on the event loop; honest ones have some thousand.
LARGE_HEADER = 32 * 1024


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part with a file name, or a part that is no text, and attached mail with its own attachments.

    `names` are all file names that a reader may use, `name` the usual one. `data` is decoded from its transfer
    encoding.
    """

    name: str
    type: str
    data: bytes
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Return the length of the decoded data in bytes."""
        return len(self.data)


class Mail:
    """One message. Each attribute is parsed at most once. Nothing here raises because of a message's content."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self._known: tuple[Finding, ...] | None = None

    def know(self, findings: tuple[Finding, ...]) -> None:
        """Know the findings that another process found."""
        self._known = findings

    @property
    def examined(self) -> bool:
        """Return whether the findings are known, so that they cost nothing."""
        return self._known is not None or "_reading" in self.__dict__

    def prepare(self) -> None:
        """Read the header now. Blocks: takes a second for a header of a megabyte."""
        _ = (self.subject, self.authors)

    @cached_property
    def large_header(self) -> bool:
        """Return whether the header is so large that reading its fields would hold up the event loop."""
        return len(self.content.head()) > LARGE_HEADER

    @cached_property
    def authors(self) -> list[str]:
        """Return every address that a reader could take for the author's (see `address.in_header`)."""
        return in_header(self.raw_headers("from"))

    @property
    def size(self) -> int:
        """Return how many bytes the whole message has."""
        return self.content.size

    @cached_property
    def fields(self) -> list[Field]:
        """Return the header fields in order, raw."""
        return fields(self.content.head())

    @cached_property
    def _named(self) -> dict[str, list[Field]]:
        """Return the fields by name in lower case, so that a header of a megabyte is searched once."""
        found: dict[str, list[Field]] = {}
        for one in self.fields:
            found.setdefault(one.name.lower(), []).append(one)
        return found

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        """Return the unfolded values of the names that were asked for."""
        return {}

    def header(self, name: str) -> str:
        """Return the first field of that name, decoded for reading; '' when there is none."""
        found = self.headers(name)
        return found[0] if found else ""

    def headers(self, name: str) -> list[str]:
        """Return all fields of that name, decoded for reading."""
        return [decoded(value) for value in self.raw_headers(name)]

    def raw_headers(self, name: str) -> list[str]:
        """Return all fields with that name, unfolded but with encoded words as they are, for reading addresses."""
        name = name.lower()
        if name not in self._values:
            self._values[name] = [one.value for one in self._named.get(name, ())]
        return self._values[name]

    @cached_property
    def dispositions(self) -> list[str]:
        """Return which of `attachment` and `inline` parts say they are, in the first 256 KiB. Parses nothing."""
        return dispositions(self.content.head(), next(self.content.chunks(), b""))

    @cached_property
    def subject(self) -> str:
        """Return the Subject, decoded."""
        return self.header("subject")

    @cached_property
    def raw(self) -> bytes:
        """Return the whole message, byte for byte."""
        return read_all(self.content)

    @cached_property
    def text(self) -> str:
        """Return all text/plain parts that do not say that they are attached, decoded; '' when there are none."""
        return self._texts("text/plain")

    @cached_property
    def html(self) -> str:
        """Return all text/html parts that do not say that they are attached, decoded; '' when there are none."""
        return self._texts("text/html")

    @cached_property
    def attachments(self) -> list[Attachment]:
        """Return every part with a file name and every part that is no text, those of attached mail included."""
        return [Attachment(part.name, part.type, part.data, part.names) for part in self.parts if part.attached]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts that have none of their own, in every reading, with where they stand."""
        return self._reading.parts

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return why readers may show something that is not in `parts`, or show different things."""
        return self._reading.findings if self._known is None else self._known

    @cached_property
    def _reading(self) -> Reading:
        return read(self.raw)

    def _texts(self, kind: str) -> str:
        return "\n".join(part.text for part in self.parts if part.type == kind and part.readable_text)
