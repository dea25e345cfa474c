"""The parts of a message with where they stand in it, so that one can be taken out and every other byte stays.

Why not the standard `email` package alone: it tells no positions, and writes what it has read in another way. It reads
each part's own header and decodes its content here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import policy
from email.errors import MessageError
from email.message import Message as Parsed
from email.parser import BytesParser, HeaderParser

from sendswitch.mail.address import display
from sendswitch.mail.content import MAX_HEAD, head_of

# Nesting deeper than this is no mail anybody wrote; the standard parser recurses per level.
MAX_DEPTH = 50
MAX_PARTS = 2000
# What the standard parser was seen to raise for messages that mean it no good.
STUMBLES = (ValueError, LookupError, RecursionError, AttributeError, TypeError, AssertionError, MessageError)

_HEADER, _WHOLE = HeaderParser(policy=policy.compat32), BytesParser(policy=policy.compat32)


@dataclass(frozen=True, slots=True)
class Part:
    """A part without parts of its own: bytes `start` to `end` of the message, its content from `body` on.

    `name` is the file name, decoded, '' for none; `type` is in lower case; `charset` is as it says, '' for nothing.
    """

    start: int
    body: int
    end: int
    name: str
    type: str
    charset: str = ""

    @property
    def attached(self) -> bool:
        """True with a file name, and for what is not text."""
        return bool(self.name) or not self.type.startswith("text/")

    def data(self, raw: bytes) -> bytes:
        """Its content, decoded from its transfer encoding; as it is when it cannot be."""
        try:
            data = _WHOLE.parsebytes(raw[self.start : self.end]).get_payload(decode=True)
        except STUMBLES:
            data = None
        return data if isinstance(data, bytes) else raw[self.body : self.end]

    def text(self, raw: bytes) -> str:
        """Its content as text; what its charset does not know is read as Latin-1, so that nothing is lost."""
        data = self.data(raw)
        try:
            return data.decode(self.charset or "utf-8")
        except (LookupError, ValueError):
            return data.decode("latin-1")


def leaves(raw: bytes) -> list[Part]:
    """The parts that have none of their own, in order. Never raises; what nests too deeply counts as one part."""
    found: list[Part] = []
    for part in _leaves(raw, 0, len(raw), 0):
        found.append(part)
        if len(found) == MAX_PARTS:
            break
    return found


def _leaves(raw: bytes, start: int, end: int, depth: int) -> Iterator[Part]:
    head = head_of(raw[start : min(end, start + MAX_HEAD)])
    body = start + len(head)
    try:
        header = _HEADER.parsestr(_text(head))
        kind, boundary = header.get_content_type(), str(header.get_boundary() or "")
        charset = str(header.get_content_charset() or "")
        name = display(header.get_filename() or "")
    except STUMBLES:
        header, kind, boundary, charset, name = Parsed(), "application/octet-stream", "", "", "unreadable-name"
    if depth < MAX_DEPTH:
        if kind.startswith("multipart/") and boundary:
            for inner_start, inner_end in _between(raw, boundary.encode("utf-8", "replace"), body, end):
                yield from _leaves(raw, inner_start, inner_end, depth + 1)
            return
        if kind == "message/rfc822" and not name and _as_it_is(header):
            yield from _leaves(raw, body, end, depth + 1)
            return
    yield Part(start, body, end, name, kind, charset)


def _text(head: bytes) -> str:
    try:
        return head.decode("utf-8")
    except UnicodeDecodeError:
        return head.decode("latin-1")


def _as_it_is(header: Parsed) -> bool:
    return str(header.get("content-transfer-encoding", "7bit")).strip().lower() in ("7bit", "8bit", "binary", "")


def _between(raw: bytes, boundary: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the parts between the delimiter lines are (RFC 2046 5.1.1); the line end before one belongs to it."""
    delimiter = re.compile(rb"\n--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    begun = -1
    # The first may stand at the very beginning, behind the line end of the header.
    for found in delimiter.finditer(raw, max(0, start - 1), end):
        if begun >= 0:
            before = found.start() - (raw[found.start() - 1 : found.start()] == b"\r")
            yield begun, max(begun, before)
        if found[1]:
            return
        begun = min(_next_line(raw, found.end(), end), end)
    if begun >= 0:
        yield begun, end


def _next_line(raw: bytes, at: int, end: int) -> int:
    if raw[at : at + 2] == b"\r\n":
        return at + 2
    return at + 1 if at < end else end
