"""The parts of a message with where they stand in it, so that one can be taken out and every other byte stays.

Mail programs disagree about malformed messages, and who looks for something forbidden must see what any of them may
show. So a part has every name that its header can be read to give, boundaries are taken in every reading, what stands
behind a closing delimiter is looked at, and what cannot be read is a part that says so (`odd`). Nothing here takes
longer than the message is long.

Why not the standard `email` package: it tells no positions, settles each doubt in one way, and reads long parameters in
quadratic time.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.errors import MessageError
from urllib.parse import unquote_to_bytes

from sendswitch.mail.address import display
from sendswitch.mail.content import MAX_HEAD, head_of
from sendswitch.mail.headers import fields

# Nesting deeper than this is no mail anybody wrote; more parts neither.
MAX_DEPTH = 50
MAX_PARTS = 2000
# Bytes of a part's header, and of one field with parameters: honest ones have some hundred.
LONGEST_HEAD, LONGEST_FIELD = 64 * 1024, 8000
# What the standard parser was seen to raise for messages that mean it no good.
STUMBLES = (ValueError, LookupError, RecursionError, AttributeError, TypeError, AssertionError, MessageError)

_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+\Z")
_COMMENT = re.compile(r"\([^()]*\)")
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:\\.|[^"\\])*"?|[^;]*)', re.S)
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


@dataclass(frozen=True, slots=True)
class Part:
    """A part: bytes `start` to `end` of the message, its content from `body` on.

    `names` are the file names its header gives, decoded; `type` is in lower case; `charset` and `encoding` are as it
    says, '' for nothing. `odd` says why nobody knows what is in it, '' for a part that is as it should be.
    """

    start: int
    body: int
    end: int
    type: str
    names: tuple[str, ...] = ()
    charset: str = ""
    encoding: str = ""
    declared: bool = False
    odd: str = ""

    @property
    def name(self) -> str:
        """The file name, '' for none."""
        return self.names[0] if self.names else ""

    @property
    def attached(self) -> bool:
        """True with a file name, for what says that it is attached, for what is not text, and for what is odd."""
        return bool(self.names or self.declared or self.odd) or not self.type.startswith("text/")

    def data(self, raw: bytes) -> bytes:
        """Its content, decoded from its transfer encoding as leniently as a mail program would."""
        data = raw[self.body : self.end]
        match self.encoding:
            case "base64":
                return b"".join(_unpacked(piece) for piece in re.split(rb"=+", data))
            case "quoted-printable":
                return binascii.a2b_qp(data)
        return data

    def text(self, raw: bytes) -> str:
        """Its content as text; what its charset does not know is read as Latin-1, so that nothing is lost."""
        data = self.data(raw)
        try:
            return data.decode(self.charset or "utf-8")
        except (LookupError, ValueError):
            return data.decode("latin-1")


def _unpacked(piece: bytes) -> bytes:
    piece = _NO_BASE64.sub(b"", piece)
    piece = piece[: len(piece) - (len(piece) % 4 == 1)]
    return binascii.a2b_base64(piece + b"=" * (-len(piece) % 4))


class _Enough(Exception):
    """There are more parts than anybody looks at."""


def leaves(raw: bytes) -> list[Part]:
    """The parts that have none of their own, in order, and mail that is attached under a name besides what is in it.

    Never raises. What nests too deeply, has too many parts, or is a multipart without any counts as one odd part.
    """
    found: list[Part] = []
    try:
        for part in _Reader(raw).parts(0, len(raw), 0, ""):
            found.append(part)
    except _Enough:
        at = found[-1].end if found else 0
        found.append(Part(at, at, len(raw), "multipart/mixed", odd=f"there are more than {MAX_PARTS} parts"))
    return found


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw, self._left = raw, MAX_PARTS

    def parts(self, start: int, end: int, depth: int, parent: str) -> Iterator[Part]:
        """The parts in a region that begins with a header."""
        self._left -= 1
        if self._left < 0:
            raise _Enough
        head = _Head(self._raw, start, end, parent)
        if depth >= MAX_DEPTH and head.type.startswith(("multipart/", "message/")):
            yield head.part("its parts are nested too deeply")
        elif head.boundaries:
            empty = True
            for inner_start, inner_end in _between(self._raw, head.boundaries, head.scan, end):
                empty = False
                yield from self.parts(inner_start, inner_end, depth + 1, head.type)
            if empty:
                yield head.part("it is a multipart without parts")
        elif head.type.startswith("multipart/"):
            yield head.part("it is a multipart without a boundary")
        elif head.type in ("message/rfc822", "message/global") and head.encoding not in ("base64", "quoted-printable"):
            if head.names:
                yield head.part()
            yield from self.parts(head.body, end, depth + 1, head.type)
        else:
            yield head.part()


class _Head:
    """A part's header in every reading. `scan` is where delimiters of its parts may begin to stand."""

    def __init__(self, raw: bytes, start: int, end: int, parent: str) -> None:
        self._start, self._end, self._odd = start, end, ""
        pairs = self._top(raw, end) if not parent else self._inner(raw, start, end)
        kinds = [self._field(value) for name, value in pairs if name == "content-type"]
        dispositions = [self._field(value) for name, value in pairs if name == "content-disposition"]
        encodings = [_token(value) for name, value in pairs if name == "content-transfer-encoding"]
        default = "message/rfc822" if parent == "multipart/digest" else "text/plain"
        types = [_type(main) for main, _ in kinds] or [default]
        self.type = next((one for one in types if one.startswith("multipart/")), types[0])
        self.encoding = next((one for one in encodings if one == "base64"), encodings[0] if encodings else "")
        parameters = [pair for _, some in (*dispositions, *kinds) for pair in some]
        self.names = tuple(dict.fromkeys(filter(None, map(_readable, _values(parameters, ("filename", "name"))))))
        self._declared = any(_token(main) == "attachment" for main, _ in dispositions)
        inner = [pair for _, some in kinds for pair in some]
        self._charset = next((_readable(value) for value in _values(inner, ("charset",))), "")
        wanted = _values(inner, ("boundary",)) if self.type.startswith("multipart/") else []
        self.boundaries = [value for value in dict.fromkeys(wanted) if value]

    def part(self, odd: str = "") -> Part:
        """The part whose header this is."""
        return Part(
            self._start,
            self.body,
            self._end,
            self.type,
            self.names,
            self._charset,
            self.encoding,
            self._declared,
            odd or self._odd,
        )

    def _top(self, raw: bytes, end: int) -> list[tuple[str, bytes]]:
        """The message's own header: as far as Postfix reads it, and as we close it when it is not closed."""
        block = fields(head_of(raw[: min(end, MAX_HEAD)]))
        at = sum(len(field.raw) for field in block)
        self.scan = at
        self.body = at + 2 if raw[at : at + 2] == b"\r\n" else at
        return [(field.name.lower(), field.raw.partition(b":")[2]) for field in block]

    def _inner(self, raw: bytes, start: int, end: int) -> list[tuple[str, bytes]]:
        """A part's header: every line up to the empty one; what is no field is passed over, or begins the body."""
        head = head_of(raw[start : min(end, start + 2 * LONGEST_HEAD)])
        self.body, self.scan = start + len(head), -1
        if len(head) > LONGEST_HEAD:
            self._odd = "its header is too large"
        pairs: list[tuple[str, bytes]] = []
        at = start
        for line in head[:LONGEST_HEAD].split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.rstrip(b" \t")
            if line[:1] in (b" ", b"\t") and pairs:
                pairs[-1] = (pairs[-1][0], pairs[-1][1] + b" " + line)
            elif colon and name and not re.search(rb"\s", name):
                pairs.append((name.decode("latin-1").lower(), value))
            elif line and self.scan < 0:
                self.scan = at
            at += len(line) + 2
        if self.scan < 0:
            self.scan = max(start, self.body - 2)
        return pairs

    def _field(self, value: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
        """What stands before the parameters, and these: names in lower case, values without quotes."""
        if len(value) > LONGEST_FIELD:
            self._odd = "a field of its header is too long"
        text = value[:LONGEST_FIELD].decode("latin-1")
        main, _, _ = text.partition(";")
        found = []
        for name, said in _PARAMETER.findall(text):
            for one in _readings(said.strip()):
                found.append((name.lower(), one.encode("latin-1")))
        return main.encode("latin-1"), found


def _readings(said: str) -> list[str]:
    """A parameter's value: what is in the quotes; else up to the next semicolon, and up to a space or comment."""
    if said.startswith('"'):
        inside = said[1:].removesuffix('"')
        return list(dict.fromkeys((re.sub(r"\\(.)", r"\1", inside), inside)))
    return list(dict.fromkeys((said, re.split(r"[\s(]", said, maxsplit=1)[0])))


def _values(parameters: Sequence[tuple[str, bytes]], names: Sequence[str]) -> list[bytes]:
    """Every value of these parameters: plain, extended, and in pieces (RFC 2231)."""
    found: list[bytes] = []
    for wanted in names:
        pieces: dict[int, bytes] = {}
        for name, value in parameters:
            base, star, rest = name.partition("*")
            if base != wanted:
                continue
            number = rest.rstrip("*")
            if star and number.isdecimal() and len(number) < 4:
                encoded = rest.endswith("*")
                pieces.setdefault(int(number), _extended(value, number == "0") if encoded else value)
            else:
                found.append(_extended(value, True) if star else value)
        if pieces:
            found.append(b"".join(pieces[n] for n in sorted(pieces)))
    return found


def _extended(value: bytes, first: bool) -> bytes:
    """Without charset and language, and percent signs decoded; what is not UTF-8 is made so."""
    charset, quote, rest = value.partition(b"'") if first else (b"", b"", b"")
    if quote and b"'" in rest:
        value = rest.partition(b"'")[2]
    data = unquote_to_bytes(value)
    try:
        return data.decode(charset.decode("ascii") or "utf-8").encode()
    except (LookupError, ValueError):
        return data


def _readable(value: bytes) -> str:
    try:
        return display(value.decode("utf-8"))
    except UnicodeDecodeError:
        return display(value.decode("latin-1"))


def _bare(value: bytes) -> str:
    """Without comments and spaces round it, in lower case."""
    text = value.decode("latin-1")
    while (bare := _COMMENT.sub(" ", text)) != text:
        text = bare
    return text.strip().lower()


def _token(value: bytes) -> str:
    """The first word of a value, without what stands round it."""
    found = re.search(r"[a-z0-9_-]+", _bare(value[:LONGEST_FIELD]))
    return found[0] if found else ""


def _type(value: bytes) -> str:
    text = re.sub(r"\s+", "", _bare(value))
    return text if _TYPE.match(text) else "application/octet-stream"


def _between(raw: bytes, boundaries: Sequence[bytes], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the parts between the delimiter lines are (RFC 2046 5.1.1); the line end before one belongs to it."""
    names = b"|".join(re.escape(boundary) for boundary in sorted(boundaries, key=len, reverse=True))
    delimiter = re.compile(rb"\n--(?:" + names + rb")(--)?[ \t\f]*(?=\r?\n|\Z)")
    begun = -1
    # The first may stand at the very beginning, behind the line end of the header.
    for found in delimiter.finditer(raw, max(0, start - 1), end):
        if begun >= 0:
            before = found.start() - (raw[found.start() - 1 : found.start()] == b"\r")
            yield begun, max(begun, before)
        # Behind a closing one there is nothing to be seen until the next: of a multipart round it with the same name.
        begun = -1 if found[1] else min(_next_line(raw, found.end(), end), end)
    if begun >= 0:
        yield begun, end


def _next_line(raw: bytes, at: int, end: int) -> int:
    if raw[at : at + 2] == b"\r\n":
        return at + 2
    return at + 1 if at < end else end
