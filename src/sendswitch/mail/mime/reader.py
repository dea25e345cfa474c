"""The parts of a message in every reading, with where they stand in it.

Mail programs disagree about malformed messages, and a filter must see everything that any of them may show. So
boundaries are taken in every reading, delimiter lines strictly and loosely, content from every place where it may begin
and in every transfer encoding that may be meant; matching uses the union. Where readings differ in what they show, the
message is `ambiguous`; what cannot be read is `unreadable` or `encrypted`. Source:
draft-chen-email-mime-ambiguity-defense.

Time and memory are bounded before the work is done: by depth, by parts, by bytes looked at.

Why not the standard `email` package: it reports no positions, settles each doubt in one way, and reads long parameters
in quadratic time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sendswitch.mail.mime import entity as header
from sendswitch.mail.mime import tnef, transfer
from sendswitch.mail.mime.charsets import decode
from sendswitch.mail.mime.cms import Encrypted, NotCms, signed_content
from sendswitch.mail.mime.entity import Entity
from sendswitch.mail.mime.findings import Finding, Kind
from sendswitch.mail.mime.names import readable

# Nesting deeper than this is no mail anybody wrote; more parts neither.
MAX_DEPTH, MAX_PARTS, MAX_DELIMITERS = 50, 2000, 10_000
# Characters of all fields with parameters; honest mail with a thousand parts has a hundred thousand.
MAX_FIELDS = 400_000
# Bytes of a line that are looked at round a delimiter; RFC 5322 allows 998.
LONGEST_LINE = 1000
# Bytes that are looked at for each byte of the message, and besides, before it counts as too intricate.
LOOKED_AT, LOOKED_AT_BESIDES = 60, 2_000_000
# Bytes of content decoded to look for messages in it, for each byte of the message, and besides.
DECODED, DECODED_BESIDES = 3, 1_000_000
# Findings of one message, and results of one part, that are kept.
MOST_FINDINGS, MOST_RESULTS = 50, 12

_CONTENT_FIELD = re.compile(rb"^[ \t\0]*content-(?:type|transfer-encoding|disposition)[ \t]*:", re.I | re.M)
# The first line of a field; that, or more of one; a line that looks like a delimiter.
_FIELD = re.compile(rb"[\x21-\x39\x3b-\x7e]+[ \t]*:")
_ANY_FIELD = re.compile(_FIELD.pattern + rb"|[ \t]")
_DELIMITER = re.compile(rb"--(?=[^\s]*[^-\s])[^\s]*[ \t]*\Z")
# A line that may be meant as a delimiter: not one like "----- Message truncated -----".
_DASHES = re.compile(rb"^(?!-----[ ][\w ]{1,60}[ ]-----[ \t]*\r?$)--", re.M)
# Bytes at the beginning of content that is no text, in which a header is looked for.
FAR = 4000
_TNEF_BEGINS = (tnef.MAGIC, b"eJ8+Ig")
_TOKEN = re.compile(rb"[^\s]+")
# What programs add to the blocks of a report.
_HARMLESS = re.compile(
    rb"^content-(?:type[ \t]*:[ \t]*text/plain(?:;[ \t]*charset=[^;\r\n]*)?|transfer-encoding[ \t]*:[ \t]*[78]bit)"
    rb"[ \t]*\r?$",
    re.I | re.M,
)
_LINE_END = re.compile(rb"[ \t\f\x0b]*(?=\r?\n|\Z)")
MESSAGE_NAME = re.compile(r"\.(?:eml|mht|mhtml|nws|email)\Z", re.I)
_TEXT_BEGINS = re.compile(rb"^[ \t]*begin(?:-base64)?[ \t]+[0-7]{3,6}[ \t]+\S", re.M | re.I)
# Types whose content is a message or an entity by itself.
_MESSAGES = frozenset(("message/rfc822", "message/global", "message/news", "message/rfc822-headers"))
_SAVED_HEADERS = frozenset(("text/rfc822-headers", "text/rfc822-header"))
_PIECES = frozenset(("message/partial",))
_REPORTS = frozenset(
    (
        "message/delivery-status",
        "message/disposition-notification",
        "message/feedback-report",
        "message/external-body",
        "message/global-delivery-status",
        "message/global-disposition-notification",
        "message/tracking-status",
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part: bytes `start` to `end` of the message, or of what it was found in when `inside` is True.

    `names` are the file names that its header can be read to give, decoded; `labels` are those that only some programs
    take for names (of Content-Description, Content-Location and the like); `types` the media types, in lower case.
    `charsets`, `encodings` and `bodies` (where the content begins) are every reading, the usual one first. `declared`
    is True for a disposition `attachment`. `opened` is True for a part that was read as mail; the parts of that mail
    follow it. `findings` say why the content is not known.
    """

    source: bytes = field(repr=False)
    start: int
    end: int
    bodies: tuple[int, ...]
    types: tuple[str, ...]
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    charsets: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ("",)
    declared: bool = False
    inside: bool = False
    findings: tuple[Finding, ...] = ()
    opened: bool = False

    @property
    def type(self) -> str:
        """Return the media type, in lower case."""
        return self.types[0]

    @property
    def body(self) -> int:
        """Return where the content begins."""
        return self.bodies[0]

    @property
    def name(self) -> str:
        """Return the file name, '' for none."""
        return self.names[0] if self.names else ""

    @property
    def attached(self) -> bool:
        """Return whether the part has a file name, a disposition `attachment`, another type than text, or findings."""
        return bool(self.names or self.declared or self.findings) or not self.type.startswith("text/")

    @property
    def readable_text(self) -> bool:
        """Return whether readers show the part as text of the message: a text without a disposition `attachment`."""
        return self.type.startswith("text/") and not self.declared

    @property
    def data(self) -> bytes:
        """Return the content, decoded from its transfer encoding as a reader would."""
        return next(self.contents(), b"")

    def contents(self) -> Iterator[bytes]:
        """Yield each distinct content that a reader may decode, the usual one first."""
        seen: set[tuple[int, int]] = set()
        for body in self.bodies:
            coded = self.source[body : self.end]
            for encoding in self.encodings:
                for data in transfer.decodings(coded, encoding):
                    mark = (len(data), hash(data))
                    if mark not in seen:
                        seen.add(mark)
                        yield data
                    if len(seen) >= MOST_RESULTS:
                        return

    @property
    def text(self) -> str:
        """Return the content as text; bytes that its charset does not know are replaced."""
        return decode(self.data, self.charsets[0] if self.charsets else "")


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that readers may see: parts without parts of their own, attached mail with its parts, and findings
    about the message."""

    parts: tuple[Part, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """The places of parts in one reading. The findings of a `quiet` view are left out: another view shows its parts."""

    regions: list[tuple[int, int]]
    quiet: bool = False


@dataclass(slots=True)
class _Before:
    """The lines of a part's content before a field, which decide whether a reader may take the field for a part's.

    `fields` is True while all lines are fields. `delimited` is True while all lines are fields since one that looks
    like a delimiter, which counts in a multipart only. `empty` is True while all lines are empty.
    """

    multipart: bool
    empty: bool = True
    fields: bool = True
    delimited: bool = False

    def take(self, line: bytes) -> None:
        """Take the next line, without its line end."""
        line = line.lstrip(b"\0")
        if line.startswith(b"--") and _DELIMITER.match(line) is not None:
            self.delimited = self.multipart
        else:
            self.delimited = self.delimited and _ANY_FIELD.match(line) is not None
        if line.strip():
            self.fields = self._goes_on(line)
            self.empty = False

    def may_begin(self, field_: bytes) -> bool:
        """Return whether the field on the next line may be one of a part's header."""
        return self.delimited or self._goes_on(field_.lstrip(b"\0"))

    def _goes_on(self, line: bytes) -> bool:
        return self.fields and (_FIELD if self.empty else _ANY_FIELD).match(line) is not None


class _TooMuch(Exception):
    """There is more in the message than is looked at."""


def read(raw: bytes) -> Reading:
    """Read a message with CRLF line ends. Never raises; content beyond the limits is a finding."""
    reader = _Reader(len(raw))
    try:
        for part in reader.entity(raw, 0, len(raw), 0, "", inside=False):
            reader.found.append(part)
    except _TooMuch as error:
        reader.find(Kind.TOO_LARGE, str(error))
    except RecursionError:
        reader.find(Kind.TOO_LARGE, "its parts are nested too deeply")
    return Reading(tuple(reader.found), tuple(dict.fromkeys(reader.findings))[:MOST_FINDINGS])


@dataclass(slots=True)
class _Left:
    looked_at: int
    decoded: int
    parts: int = MAX_PARTS
    delimiters: int = MAX_DELIMITERS
    fields: int = MAX_FIELDS


class _Reader:
    def __init__(self, size: int) -> None:
        self._left = _Left(LOOKED_AT * size + LOOKED_AT_BESIDES, DECODED * size + DECODED_BESIDES)
        self.found: list[Part] = []
        self.findings: list[Finding] = []
        self._seen: set[tuple[int, int, int, str]] = set()
        self._sources: list[bytes] = []

    def find(self, kind: Kind, text: str) -> None:
        """Note a finding about the message."""
        if len(self.findings) < 4 * MOST_FINDINGS:
            self.findings.append(Finding(kind, text))

    def _look(self, size: int) -> None:
        self._left.looked_at -= size
        if self._left.looked_at < 0:
            raise _TooMuch("it can be read in more ways than are looked at")

    def _part(self) -> None:
        self._left.parts -= 1
        if self._left.parts < 0:
            raise _TooMuch(f"there are more than {MAX_PARTS} parts")

    def _delimiter(self) -> None:
        self._left.delimiters -= 1
        if self._left.delimiters < 0:
            raise _TooMuch(f"there are more than {MAX_DELIMITERS} delimiter lines")

    def entity(self, raw: bytes, start: int, end: int, depth: int, parent: str, *, inside: bool) -> Iterator[Part]:
        """Yield the parts in a region that begins with a header."""
        place = (id(raw), start, end, parent)
        if place in self._seen:
            return
        self._seen.add(place)
        self._part()
        one = header.read(raw, start, end, parent)
        self._look(one.bodies[0] - start)
        self._left.fields -= one.looked_at
        if self._left.fields < 0:
            raise _TooMuch("the fields of its parts are longer than is looked at")
        self.findings += one.findings[:MOST_FINDINGS]
        if depth >= MAX_DEPTH and (one.multipart or one.type.startswith("message/")):
            self.find(Kind.TOO_LARGE, "its parts are nested too deeply")
            yield self._leaf(raw, one, end, inside, Finding(Kind.TOO_LARGE, "its parts are nested too deeply"))
        elif one.multipart:
            yield from self._multipart(raw, one, end, depth, inside=inside)
        else:
            yield from self._single(raw, one, end, depth, parent, inside=inside)

    def _leaf(self, raw: bytes, one: Entity, end: int, inside: bool, *findings: Finding) -> Part:
        bodies = tuple(dict.fromkeys(min(body, end) for body in one.bodies))
        return Part(
            raw,
            one.start,
            end,
            bodies,
            tuple(one.types),
            one.names,
            one.labels,
            tuple(one.charsets),
            tuple(one.encodings),
            one.attached,
            inside,
            findings,
        )

    # Multiparts

    def _multipart(self, raw: bytes, one: Entity, end: int, depth: int, *, inside: bool) -> Iterator[Part]:
        views = self._views(raw, one, end)
        if not views:
            yield from self._without_parts(raw, one, end, depth, inside=inside)
            return
        if not one.type.startswith("multipart/"):
            self.find(Kind.AMBIGUOUS, f"it is {one.type}, but has a boundary and parts")
            yield self._leaf(raw, one, end, inside)
        elif sum(not view.quiet for view in views) > 1 and not one.findings:
            self.find(Kind.AMBIGUOUS, "its boundary can be read in ways that give different parts")
        if one.type == "multipart/encrypted":
            self.find(Kind.ENCRYPTED, "it is encrypted for its recipient")
        if one.names:
            yield Part(raw, one.start, end, (), tuple(one.types), one.names, declared=one.attached, inside=inside)
        for view in views:
            before = len(self.findings)
            for inner_start, inner_end in view.regions:
                for part in self.entity(raw, inner_start, inner_end, depth + 1, one.type, inside=inside):
                    yield replace(part, findings=()) if view.quiet else part
            if view.quiet:
                del self.findings[before:]
        yield from self._besides(raw, one, views[0].regions, end, depth, inside=inside)

    def _without_parts(self, raw: bytes, one: Entity, end: int, depth: int, *, inside: bool) -> Iterator[Part]:
        """Yield what declares a multipart, or a boundary, and has no parts."""
        if not one.type.startswith("multipart/"):
            yield from self._single(raw, one, end, depth, inside=inside)
        elif self._cut(raw, one, end, depth):
            yield self._leaf(raw, one, end, inside)
        else:
            why = "it is a multipart without parts" if one.boundaries else "it is a multipart without a boundary"
            self.find(Kind.UNREADABLE, why)
            yield self._leaf(raw, one, end, inside, Finding(Kind.UNREADABLE, why))

    def _cut(self, raw: bytes, one: Entity, end: int, depth: int) -> bool:
        """Return whether no reader finds a part in it: it was cut behind its header, or before its first part as the
        mail in a bounce may be."""
        self._look(end - one.bodies[0])
        content = raw[min(one.bodies) : end]
        if any(one.encodings) or _CONTENT_FIELD.search(content) is not None:
            return False
        return not content.strip() or (depth > 0 and _DASHES.search(content) is None)

    def _views(self, raw: bytes, one: Entity, end: int) -> list[_View]:
        """Return the parts in each reading of the boundary and of its delimiter lines."""
        views: list[_View] = []
        lines: set[int] = set()
        for boundary in one.boundaries:
            strict, loose, places = self._delimited(raw, boundary, one.scan, end)
            if places <= lines or (boundary in one.shortened and not strict):
                continue  # another spelling of it, which finds the same lines
            lines |= places
            if strict and strict not in [view.regions for view in views]:
                views.append(_View(strict))
            if loose and loose != strict and boundary not in one.shortened:
                told = self._declared(raw, boundary, places - {line for line, _ in strict})
                if not told:
                    one.doubt(f"delimiter lines of the boundary {boundary[:60]!r} are seen by some readers only")
                    self.findings.append(one.findings[-1])
                views.append(_View(loose, quiet=told and bool(strict)))
        return views

    def _declared(self, raw: bytes, boundary: str, places: set[int]) -> bool:
        """Return whether all these lines are delimiters of other boundaries, which only begin like this one.

        Readers that take them for its own (RFC 2046 section 5.1.1) show the same parts in another order.
        """
        tokens = {_TOKEN.match(raw, place + 2) for place in places if raw[place : place + 2] == b"--"}
        names = {token[0].removesuffix(b"--") for token in tokens if token is not None}
        if len(names) > header.MOST_BOUNDARIES or len(tokens) < len(places):
            return False
        for name in names:
            self._look(len(raw))
            if not any(raw.find(b"boundary=" + quote + name, 0) >= 0 for quote in (b"", b'"')):
                return False
        return bool(names)

    def _delimited(
        self, raw: bytes, boundary: str, scan: int, end: int
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]], set[int]]:
        """Return the regions between strict delimiter lines (RFC 2046 section 5.1.1), those between loose ones (every
        place where the boundary stands behind two hyphens), and these places."""
        strict: list[tuple[int, int, bool]] = []  # where the line begins, where the part behind it does, if it closes
        loose: list[tuple[int, int, bool]] = []
        odd = False
        for at, wanted in self._places(raw, boundary, scan, end):
            self._delimiter()
            behind = at + len(wanted)
            line_start = at <= scan or raw[at - 1 : at] == b"\n"
            closes = raw[behind : behind + 2] == b"--"
            after = behind + 2 * closes
            blank = _LINE_END.match(raw, after, end)
            if line_start and blank is not None:
                strict.append((at, _next_line(raw, blank.end(), end), closes))
                loose.append(strict[-1])
            else:
                odd = True
                line = raw.rfind(b"\n", max(scan, at - LONGEST_LINE), at) + 1 or at
                begin = line if not raw[line:at].strip(b" \t\0-") else at
                loose.append((begin, after, False))
                stop = raw.find(b"\n", after, min(end, after + LONGEST_LINE))
                if stop >= 0 and raw[after:stop].strip():
                    loose.append((begin, stop + 1, False))
        regions = _regions(raw, strict, end, after_close=False)
        places = {place for place, _, _ in loose}
        return regions, (_regions(raw, loose, end, after_close=True) if odd else regions), places

    def _places(self, raw: bytes, boundary: str, scan: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield where a boundary stands behind two hyphens, in each encoding that it may have."""
        spelled = dict.fromkeys((boundary.encode("utf-8", "replace"), boundary.encode("latin-1", "replace")))
        for bytes_ in spelled:
            self._look(end - scan)
            wanted, at = b"--" + bytes_, max(0, scan - 1)
            while (at := raw.find(wanted, at, end)) >= 0:
                yield at, wanted
                at += len(wanted)

    def _besides(
        self, raw: bytes, one: Entity, regions: Sequence[tuple[int, int]], end: int, depth: int, *, inside: bool
    ) -> Iterator[Part]:
        """Yield the text before the first part and behind the last, when it looks like a part."""
        first = raw.rfind(b"\n--", one.bodies[0] - 1, regions[0][0]) + 1 if regions else end
        for start, stop, what in ((one.bodies[0], first, "before the first"), (regions[-1][1], end, "behind the last")):
            if start >= stop:
                continue
            self._look(stop - start)
            if (found := _CONTENT_FIELD.search(raw, start, stop)) is not None:
                self.find(Kind.AMBIGUOUS, f"fields of a part stand {what} delimiter line")
                yield from self.entity(raw, found.start(), stop, depth + 1, one.type, inside=inside)

    # Single parts

    def _single(
        self, raw: bytes, one: Entity, end: int, depth: int, parent: str = "", *, inside: bool
    ) -> Iterator[Part]:
        yield from self._second_header(raw, one, end, depth, parent, inside=inside)
        kind, name = one.type, one.names
        if any(t in _PIECES for t in one.types):
            found = Finding(Kind.UNREADABLE, "it is one piece of a message, which only the whole shows")
            self.findings.append(found)
            yield self._leaf(raw, one, end, inside, found)
        elif self._is_message(raw, one, end):
            leaf = replace(self._leaf(raw, one, end, inside), opened=True)
            yield leaf
            yield from self._attached(leaf, depth)
        elif "pkcs7-mime" in kind or any(text.lower().endswith((".p7m", ".p7z")) for text in name):
            yield from self._smime(self._leaf(raw, one, end, inside), depth)
        elif (
            kind in ("application/ms-tnef", "application/vnd.ms-tnef")
            or any(text.lower() == "winmail.dat" for text in name)
            or raw[one.bodies[0] : end].lstrip()[:6].startswith(_TNEF_BEGINS)
        ):
            leaf = self._leaf(raw, one, end, inside)
            yield leaf
            yield from self._tnef(leaf, depth)
        else:
            leaf = self._leaf(raw, one, end, inside)
            yield leaf
            if "" in leaf.encodings or transfer.UUENCODE in leaf.encodings:
                yield from self._uuencoded(leaf)

    def _is_message(self, raw: bytes, one: Entity, end: int) -> bool:
        """Return whether a reader may show the content as mail: by its type, by its name, and a report that has fields
        of a part in it."""
        if any(MESSAGE_NAME.search(text) for text in one.names) or any(t in _MESSAGES for t in one.types):
            return True
        if not any(t.startswith("message/") for t in one.types):
            return False
        if not any(t in _REPORTS for t in one.types):
            return True
        fields = _CONTENT_FIELD.search(_HARMLESS.sub(b"", raw[one.bodies[0] : end])) is not None
        if fields and "message/external-body" not in one.types:  # which has them (RFC 2046 section 5.2.3)
            self.find(Kind.AMBIGUOUS, "fields of a part stand in a report")
        return fields or any(one.encodings)

    def _second_header(
        self, raw: bytes, one: Entity, end: int, depth: int, parent: str, *, inside: bool
    ) -> Iterator[Part]:
        """Yield the parts of readers that go on reading fields in the content, or take another line for a delimiter.

        In content that is no text, only the beginning is searched. A header in the middle is no finding; its part is
        added to the others.
        """
        text = one.type.startswith("text/")
        if one.type.startswith("message/") or one.type in _SAVED_HEADERS:
            return
        if one.encodings[0] == transfer.BASE64 and not text:
            return
        limit = end if text else min(end, one.bodies[0] + FAR)
        delimited = parent if text else ""  # files that are saved mail have delimiter lines in them
        for inner, begins in self._headers_in(raw, one.bodies[0], limit, end, delimited, only_begun=text):
            if inner.plain and not any(one.encodings):
                continue  # a reader that takes it for a header shows the same text without it
            inner.names = tuple(dict.fromkeys((*inner.names, *one.names)))
            if inner.types == ["text/plain"] and one.type != "text/plain":
                inner.types = list(one.types)
            yield self._leaf(raw, inner, end, inside)
            if begins:
                self.find(Kind.AMBIGUOUS, "fields of a header stand in the content of a part")
                if inner.multipart:
                    yield from self._multipart(raw, inner, end, depth + 1, inside=inside)
                return

    def _headers_in(
        self, raw: bytes, body: int, limit: int, end: int, parent: str, *, only_begun: bool
    ) -> Iterator[tuple[Entity, bool]]:
        """Yield each header with a Content field in content, and whether a reader may take it for a part's."""
        before, at, taken = _Before(parent.startswith("multipart/")), body, body
        while (found := _CONTENT_FIELD.search(raw, at, limit)) is not None:
            self._look(found.start() - taken)
            for line in raw[taken : found.start()].split(b"\r\n")[:-1]:
                before.take(line)
            at, taken = found.end(), found.start()
            begins = before.may_begin(raw[found.start() : found.end()])
            if only_begun and not begins:
                continue
            self._part()
            start = found.start()
            while raw[start : start + 1] in (b"\r", b"\n", b" ", b"\t"):
                start += 1
            inner = header.read(raw, start, end, "multipart/mixed")
            yield inner, begins
            at = max(at, inner.bodies[0])

    def _take(self, size: int) -> None:
        self._left.decoded -= size
        if self._left.decoded < 0:
            raise _TooMuch("there is more encoded mail in it than is looked at")

    def _attached(self, leaf: Part, depth: int) -> Iterator[Part]:
        """Yield the parts of attached mail, whatever its transfer encoding."""
        for body in leaf.bodies:  # as it stands there, too: not every reader decodes it (RFC 2046 section 5.2.1)
            if "" in leaf.encodings or _CONTENT_FIELD.search(leaf.source, body, leaf.end) is not None:
                yield from self.entity(leaf.source, body, leaf.end, depth + 1, "", inside=leaf.inside)
        for encoding in leaf.encodings:
            if encoding:
                yield from self._decoded(leaf, encoding, depth)

    def _decoded(self, leaf: Part, encoding: str, depth: int) -> Iterator[Part]:
        for body in leaf.bodies:
            self._take(leaf.end - body)
            for data in transfer.decodings(leaf.source[body : leaf.end], encoding):
                yield from self._in_data(data, depth)

    def _in_data(self, data: bytes, depth: int) -> Iterator[Part]:
        """Yield the parts of a message that was decoded from a part."""
        for message in with_line_ends(data):
            self._sources.append(message)  # which keeps its identity its own
            yield from self.entity(message, 0, len(message), depth + 1, "", inside=True)

    def _smime(self, leaf: Part, depth: int) -> Iterator[Part]:
        for data in leaf.contents():
            self._take(len(data))
            try:
                inner = signed_content(data)
            except Encrypted:
                found = Finding(Kind.ENCRYPTED, "it is encrypted for its recipient")
            except NotCms as error:
                found = Finding(Kind.UNREADABLE, f"it is no S/MIME message that can be read: {error}")
            else:
                yield leaf
                yield from self._in_data(inner, depth)
                return
        self.findings.append(found)
        yield self._with(leaf, found)

    def _tnef(self, leaf: Part, depth: int) -> Iterator[Part]:
        data = leaf.data
        self._take(len(data))
        try:
            for told, content in tnef.attachments(data):
                self._part()
                self._take(len(content))
                names = readable(told)
                yield Part(content, 0, len(content), (0,), ("application/octet-stream",), names, inside=True)
                if content[:4] == tnef.MAGIC and depth < MAX_DEPTH:
                    inner = Part(content, 0, len(content), (0,), ("application/ms-tnef",), (), inside=True)
                    yield from self._tnef(inner, depth + 1)
        except tnef.NotTnef as error:
            found = Finding(Kind.UNREADABLE, f"it is no TNEF that can be read: {error}")
            self.findings.append(found)
            yield self._with(leaf, found)

    def _uuencoded(self, leaf: Part) -> Iterator[Part]:
        self._look(leaf.end - leaf.body)
        if _TEXT_BEGINS.search(leaf.source, leaf.body, leaf.end) is None:
            return
        for name, data in transfer.uuencoded(leaf.source[leaf.body : leaf.end]):
            self._part()
            self._take(len(data))
            names = readable([name])
            yield Part(data, 0, len(data), (0,), ("application/octet-stream",), names, inside=True)

    def _with(self, leaf: Part, found: Finding) -> Part:
        return replace(leaf, findings=(*leaf.findings, found))


def _regions(
    raw: bytes, delimiters: Sequence[tuple[int, int, bool]], end: int, *, after_close: bool
) -> list[tuple[int, int]]:
    """Return where the parts between delimiter lines are; the line end before one belongs to it."""
    regions: list[tuple[int, int]] = []
    places = sorted(set(delimiters))
    for n, (line, begin, closes) in enumerate(places):
        if closes and not after_close:
            continue  # behind it there is nothing to be seen until the next: of a multipart round it with the same name
        following = next((other for other, _, _ in places[n + 1 : n + 4] if other > line), end)
        if closes and following == end:
            continue
        stop = following
        if following < end:
            stop -= raw[following - 1 : following] == b"\n"
            stop -= raw[stop - 1 : stop] == b"\r"
        regions.append((min(begin, end), max(min(begin, end), stop)))
    return regions


def _next_line(raw: bytes, at: int, end: int) -> int:
    if raw[at : at + 2] == b"\r\n":
        return min(at + 2, end)
    return min(at + 1, end)


def with_line_ends(data: bytes) -> list[bytes]:
    """Return decoded mail with CRLF line ends, in each reading: a CR alone ends a line for some readers only.

    Nothing for no data. A reading is at most one byte longer for each line.
    """
    data = data.replace(b"\r\n", b"\n")
    readings = dict.fromkeys((data, data.replace(b"\r", b"\n")))
    return [one.replace(b"\n", b"\r\n") for one in readings if one]
