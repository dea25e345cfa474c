"""The header of an entity (a message, or a part of one) in every reading.

A header ends at the first empty line; for some readers also at the first line that is no field, or at a line of spaces.
A field begins a line; for some readers also behind spaces or control characters. Every reading counts, and where one
of them changes the structure, the header is ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sendswitch.mail.mime import parameters
from sendswitch.mail.mime.findings import Finding, Kind
from sendswitch.mail.mime.names import readable
from sendswitch.mail.mime.transfer import encodings
from sendswitch.mail.mime.words import decoded

# Bytes of a part's header, of the message's, and of one field with parameters: honest ones have some hundred.
LONGEST_HEAD, LONGEST_TOP, LONGEST_FIELD = 64 * 1024, 1024 * 1024, 8000
# Bytes of a line without a colon that may be part of the field before it.
LONGEST_LOOSE = 1000
# Fields of one name that are read; honest headers have one.
MOST_FIELDS = 20
# Lines of a header; honest ones have some hundred.
MOST_LINES = 10_000
# Different boundaries that are tried.
MOST_BOUNDARIES = 24

_FIELD = re.compile(rb"([\x21-\x39\x3b-\x7e]+)[ \t]*:")
# Bytes before a colon that may be a name with junk in it.
_LONGEST_LOOSE_NAME = 100
_NO_NAME = re.compile(rb"[^A-Za-z-]+")
# Values that mean something: the list of fields in a DKIM-Signature may be folded before the name of one, too.
_MEANT = {
    b"content-type": re.compile(rb"[^;]*(?:/|multipart)", re.I),
    b"content-transfer-encoding": re.compile(rb"[^;]*(?:base|quoted|uu|bit|binary|=\?)", re.I),
    b"content-disposition": re.compile(rb".*(?:attachment|inline|name|=\?)", re.I),
}
_BLANKS = b" \t\0\x0b\x0c"
_CONTENT = (b"content-type", b"content-transfer-encoding", b"content-disposition")
# Fields from which some programs take a file name when no parameter gives one.
_LABELS = (b"content-description", b"content-location", b"content-name", b"x-sun-data-name")
_PAIRED = re.compile(r"[a-z0-9!#$%&'*+.^_`{|}~-]+/[a-z0-9!#$%&'*+.^_`{|}~-]+")
_STRICT = re.compile(r"[a-z0-9!#$%&'*+.^_`{|}~-]+/[a-z0-9!#$%&'*+.^_`{|}~-]+\Z")
_COMPOSITE = re.compile("multipart|message")


@dataclass(slots=True)
class Entity:
    """A header, and where the content behind it may begin (`bodies`, the usual place first).

    `types`, `names`, `labels` (see `reader.Part`), `charsets`, `encodings` and `boundaries` hold every reading, the
    preferred one first. `scan` is the first place where a delimiter line of its parts may stand. `shortened` are
    boundaries that only some readers see. `attached` is True for a Content-Disposition with `attachment`.
    """

    start: int
    bodies: list[int]
    scan: int
    types: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    charsets: list[str] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)
    boundaries: list[str] = field(default_factory=list)
    shortened: frozenset[str] = frozenset()
    attached: bool = False
    smime: str = ""
    looked_at: int = 0  # characters of fields with parameters
    findings: list[Finding] = field(default_factory=list)

    @property
    def type(self) -> str:
        """Return the media type, in lower case."""
        return self.types[0]

    @property
    def multipart(self) -> bool:
        """Return whether a reader may take the entity for a multipart."""
        return bool(self.boundaries) or any("multipart" in one for one in self.types)

    @property
    def plain(self) -> bool:
        """Return whether the header says only that the content is plain text without a transfer encoding."""
        other = any(one != "text/plain" for one in self.types)
        return not (other or any(self.encodings) or self.names or self.boundaries or self.attached or self.findings)

    def doubt(self, text: str) -> None:
        """Add the finding that the header is ambiguous; `text` says how."""
        self.findings.append(Finding(Kind.AMBIGUOUS, text))


@dataclass(slots=True)
class _Lines:
    """The fields of a header, by the grammar and as lenient readers see them.

    `blank` is the end of the first line of spaces, `no_field` the start of the first line that is no field; both are
    -1 for none.
    """

    doubts: list[str] = field(default_factory=list)
    blank: int = -1
    no_field: int = -1
    too_many: bool = False
    _values: dict[bytes, list[list[bytes]]] = field(default_factory=dict)
    _last: list[bytes] | None = None
    _pending: bytes = b"x"  # a name whose colon is on the next line

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of the fields of that name, unfolded."""
        return [b"".join(pieces) for pieces in self._values.get(name, [])]

    def has(self, names: Iterable[bytes]) -> bool:
        """Return whether there is a field of one of these names."""
        return any(name in self._values for name in names)

    def take(self, line: bytes, at: int, behind: int, *, first: bool, top: bool) -> None:
        """Take the line at `at`, which ends before `behind`."""
        if not line.strip(_BLANKS) and not first and self.blank < 0:
            self.blank = behind
            self._extend(line)
        elif line[:1] in (b" ", b"\t") and (not first or not line.strip()):
            self._folded(line)
        elif (strict := _FIELD.match(line)) is not None:
            self._add(strict[1], line[strict.end() :])
            if strict[1].lower() not in _CONTENT and (loose := _loosely(line)):
                self._odd(f"the name of the field {_text(strict[1])} has odd characters", loose, line)
        elif not (first and top and line.startswith((b"From ", b">From "))):  # the separator line of a mailbox
            self.no_field = at if self.no_field < 0 else self.no_field
            self._no_field(line)

    def _folded(self, line: bytes) -> None:
        self._extend(line)
        if (loose := _loosely(line)) and _MEANT[loose].match(line.partition(b":")[2]) is not None:
            self._odd(f"a folded line looks like the field {_text(loose)}", loose, line)
        elif line.lstrip().startswith(b":"):
            self._add(self._pending, line.lstrip()[1:])

    def _no_field(self, line: bytes) -> None:
        """Keep a line that is no field: perhaps one for lenient readers, perhaps more of the field before."""
        name = line.strip(b" \t\0").lower()
        if loose := _loosely(line):
            self._odd(f"a line with odd characters looks like the field {_text(loose)}", loose, line)
        elif name in _CONTENT:
            self.doubts.append(f"the field {_text(name)} is folded before its colon")
            self._pending = name
        elif b"=" in line and len(line) < LONGEST_LOOSE:
            self._extend(b"\r\n " + line)

    def _odd(self, doubt: str, name: bytes, line: bytes) -> None:
        self.doubts.append(doubt)
        self._add(name, line.partition(b":")[2])

    def _add(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name not in _CONTENT and name not in _LABELS:
            self._last = None  # nobody asks for it here
            return
        values = self._values.setdefault(name, [])
        self.too_many = self.too_many or len(values) >= MOST_FIELDS
        self._last = [value] if len(values) < MOST_FIELDS else None
        if self._last is not None:
            values.append(self._last)

    def _extend(self, line: bytes) -> None:
        if self._last is not None:
            self._last.append(line)


def read(raw: bytes, start: int, end: int, parent: str) -> Entity:
    """Read the header that begins at `start`. `parent` is the type of the enclosing part, '' for the message."""
    found, entity = _Lines(), Entity(start, [], -1)
    at, limit, lines = start, min(end, start + (LONGEST_HEAD if parent else LONGEST_TOP)), 0
    while at < limit and lines < MOST_LINES:
        lines += 1
        stop = raw.find(b"\n", at, limit)
        behind = stop + 1 if stop >= 0 else limit
        line = raw[at:behind].rstrip(b"\r\n")
        if not line and stop >= 0:
            entity.bodies.append(behind)
            break
        found.take(line, at, behind, first=at == start, top=not parent)
        at = behind
    else:
        if limit < end or at < limit:
            entity.findings.append(Finding(Kind.TOO_LARGE, "the header of a part is too large"))
    if found.too_many:
        entity.findings.append(Finding(Kind.TOO_LARGE, "a part's header has too many fields of one name"))
    _places(entity, found, at, end, parent)
    _facts(entity, found, parent)
    for doubt in list(dict.fromkeys(found.doubts))[:5]:
        entity.doubt(doubt)
    return entity


def _places(entity: Entity, found: _Lines, at: int, end: int, parent: str) -> None:
    """Fill in where the content may begin, and whether readers disagree about it."""
    closed = bool(entity.bodies)
    if not closed:
        entity.bodies.append(min(at, end))
    entity.scan = at
    if found.no_field >= 0:
        entity.bodies.append(found.no_field)
        entity.scan = max(entity.start, found.no_field - 2)
        if parent or found.has(_CONTENT):
            found.doubts.append("a line in the header is no field, so the header may end there")
    elif not closed:
        entity.scan = max(entity.start, at - 2)
    if found.blank >= 0:
        entity.bodies.append(found.blank)
        if parent:
            found.doubts.append("a line of spaces stands in the header, so the header may end there")


def _facts(entity: Entity, found: _Lines, parent: str) -> None:
    kinds = _read_values(entity, found, b"content-type")
    dispositions = _read_values(entity, found, b"content-disposition")
    coded = [_value(entity, value) for value in found.values(b"content-transfer-encoding")]
    _types(entity, kinds, parent)
    inside = [parameters.pairs(value) for value in kinds]
    beside = [parameters.pairs(value) for value in dispositions]
    every = parameters.values([*beside, *inside], ("filename", "name", "file"))
    if len(every) >= parameters.MOST_VALUES or any(map(parameters.too_many, (*kinds, *dispositions))):
        entity.findings.append(Finding(Kind.TOO_LARGE, "a field of a part's header has too many parameters"))
    entity.names = readable(every)
    entity.labels = readable(_value(entity, value).strip() for name in _LABELS for value in found.values(name))
    entity.attached = any("attachment" in parameters.main_value(value) for value in dispositions)
    entity.charsets = parameters.values(inside, ("charset",))
    entity.smime = " ".join(parameters.values(inside, ("smime-type",))).lower()
    entity.encodings, doubt = encodings(coded)
    if doubt:
        found.doubts.append(doubt)
    boundaries = parameters.values(inside, ("boundary",), empty=True)
    if any(not boundary.strip() for boundary in boundaries):
        found.doubts.append("a boundary is empty")
    if boundaries := [boundary for boundary in boundaries if boundary]:
        entity.boundaries, entity.shortened = _spelled(boundaries)
        if len(entity.boundaries) > MOST_BOUNDARIES:
            entity.findings.append(Finding(Kind.TOO_LARGE, "the type of a part has too many boundaries"))
            del entity.boundaries[MOST_BOUNDARIES:]


def _read_values(entity: Entity, found: _Lines, name: bytes) -> list[str]:
    """Return the values of a field, and the values that a reader sees who decodes encoded words first."""
    values = [_value(entity, value) for value in found.values(name)]
    for value in list(values):
        if "=?" in value and (other := decoded(value)) != value:
            values.append(other)
            if "multipart" in other.lower() and "multipart" not in value.lower():
                entity.doubt("its type is written as an encoded word")
    return values


def _value(entity: Entity, value: bytes) -> str:
    if len(value) > LONGEST_FIELD:
        entity.findings.append(Finding(Kind.TOO_LARGE, "a field of a part's header is too long"))
        value = value[:LONGEST_FIELD]
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _types(entity: Entity, kinds: list[str], parent: str) -> None:
    default = "message/rfc822" if parent == "multipart/digest" else "text/plain"
    found: dict[str, None] = {}
    for kind in kinds:
        main = parameters.main_value(kind).replace(" ", "").replace("\t", "")
        if _STRICT.match(main):
            found[main] = None
            continue
        loose = _PAIRED.findall(kind.lower().replace("\0", "").partition(";")[0][:200])
        if "multipart" in kind.lower() and not any(one.startswith("multipart/") for one in loose):
            loose.insert(0, "multipart/mixed")
        found.update(dict.fromkeys(loose[:5]))
        if not loose:
            found[{"text": "text/plain", "html": "text/html"}.get(main, default if not main else "text/plain")] = None
        if _COMPOSITE.search(kind.lower().partition(";")[0]) and (len(loose) != 1 or not main.startswith(loose[0])):
            entity.doubt(f"the type {kind.strip()[:60]!r} is read in several ways")
    types = list(found) or [default]
    types.sort(key=lambda one: not one.startswith("multipart/"))
    entity.types = types
    entity.looked_at = sum(map(len, kinds))
    composite = {one.partition("/")[0] for one in types}
    if len(types) > 1 and composite & {"multipart", "message"}:
        entity.doubt(f"its type can be {' or '.join(types[:3])}")


def _spelled(boundaries: list[str]) -> tuple[list[str], frozenset[str]]:
    """Return boundaries in every spelling: folded or not, up to a space, a semicolon or a NUL, and without NULs; and
    which of them are not written like that."""
    out: dict[str, None] = {}
    for value in boundaries:
        value = value.replace("\r\n", "")
        for one in (value, value.rstrip(), value.strip(), value.partition("\0")[0], value.replace("\0", "")):
            out[one[:200]] = None
    written = frozenset(out)
    for value in list(out):
        for one in (
            value.split()[0] if value.split() else "",
            value.partition(";")[0],
            re.sub(r"\s+", "", value),
            re.sub(r"\s+", " ", value),
            value.strip("\"'"),
            re.sub(r"\\(.)", r"\1", value),
            decoded(value) if "=?" in value else value,
        ):
            out[one] = None
    out.pop("", None)
    return list(out), frozenset(out) - written


def _loosely(line: bytes) -> bytes:
    """Return the Content field that readers see in a line when they skip junk in it, b"" for none."""
    name, colon, _ = line.partition(b":")
    if not colon or len(name) > _LONGEST_LOOSE_NAME or b"-" not in name:
        return b""
    bare = _NO_NAME.sub(b"", name).strip(b"-").lower()
    return bare if bare in _CONTENT else b""


def _text(name: bytes) -> str:
    return name.decode("latin-1")
