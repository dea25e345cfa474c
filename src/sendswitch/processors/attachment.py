"""Rules about attachments: by file name, by type, by size, and by the names of what is in an archive.

Archives are zip and tar, compressed or not, and archives in them; they are looked into as far as `DEEPEST`,
`MOST_NAMES` and `MOST_BYTES` allow. One that cannot be looked into counts as `unreadable` says: its sender may have
meant it so.

`strip` takes the part out and puts a note in its place; every other byte of the message stays as it was. A message that
cannot be parsed has no attachment that could be found; `when` and the scanners look at it as a whole.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import translate
from quopri import encodestring
from typing import ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from sendswitch.config.units import Size
from sendswitch.mail.headers import Cut, Edit, RemoveHeader, SetHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.parts import Part, leaves
from sendswitch.mail.verdict import MAX_EDITS, Action, Verdict, parse_refusal
from sendswitch.processors import base
from sendswitch.processors.threads import reading

# Archives in archives, names in all of them, bytes that are unpacked to find more: what honest mail stays far below.
DEEPEST, MOST_NAMES, MOST_BYTES = 4, 10_000, 50_000_000
# What packed data in bad shape was seen to raise; a program error in a library is not one of them.
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, struct.error),
)


class AttachmentOptions(base.Options):
    """Options of `attachment`."""

    names: tuple[str, ...] = Field((), description="File names, with * and ?; in archives, too.")
    types: tuple[str, ...] = Field((), description="Media types, such as 'application/x-msdownload' or 'video/*'.")
    larger: Size | None = Field(None, description="Attachments with more bytes than this.")
    encrypted: bool = Field(False, description="Archives with a password.")
    unreadable: bool = Field(True, description="With `names`: archives that cannot be looked into.")
    action: Literal["strip", "tag", "quarantine", "deny"] = Field("quarantine", description="What a match means.")
    tag: base.Tag = Field("ATTACHMENT", description="The tag that a match sets in any case.")
    note: str = Field(
        "The attachment {name} was removed: {why}.",
        max_length=2000,
        description="What stands in place of a stripped part.",
    )
    reply: base.Refusal = Field(
        "550 5.7.1 Message refused for what is attached", description="What a denied sender is told."
    )

    @model_validator(mode="after")
    def _something(self) -> AttachmentOptions:
        if not (self.names or self.types or self.larger is not None or self.encrypted):
            raise ValueError("say what to look for: names, types, larger or encrypted")
        return self


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Unreadable(Exception):
    """The archive is broken, or larger inside than anybody looks."""


@dataclass(slots=True)
class _Left:
    """What may still be looked at in one message."""

    names: int = MOST_NAMES
    size: int = MOST_BYTES

    def take(self, names: int, size: int) -> None:
        self.names -= names
        self.size -= size
        if self.names < 0 or self.size < 0:
            raise Unreadable("there is more in it than is looked at")


class Attachment:
    """Looks for attachments of some kind; has no opinion on mail without one."""

    Options: ClassVar[type[base.Options]] = AttachmentOptions
    version = "1"

    def __init__(self, options: AttachmentOptions) -> None:
        self._options = options
        self._names = _any_of(options.names)
        self._types = _any_of(options.types)

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """What the configured action is for what was found."""
        return await reading(self._judge, mail)

    def _judge(self, mail: Mail) -> Verdict | None:
        raw, left = mail.raw, _Left()
        found = [(part, why) for part in mail.parts if part.attached and (why := self._why(part, raw, left))]
        if not found:
            return None
        options = self._options
        reason = "; ".join(f"{_named(part)} {why}" for part, why in found[:5])
        reason += f" and {len(found) - 5} more" if len(found) > 5 else ""
        match options.action:
            case "strip" if len(found) * 4 < MAX_EDITS:
                edits = tuple(edit for part, why in found for edit in self._stripped(part, why, len(raw)))
                return Verdict(tags=(options.tag,), edits=edits, reason=reason)
            case "tag":
                return Verdict(tags=(options.tag,), reason=reason)
            case "deny":
                return Verdict(Action.DENY, tags=(options.tag,), reason=reason, reply=parse_refusal(options.reply))
        return Verdict(Action.QUARANTINE, tags=(options.tag,), reason=reason)

    def _why(self, part: Part, raw: bytes, left: _Left) -> str:
        """Why this part matches, '' when it does not."""
        options = self._options
        if self._names and any(self._names.match(_plain(name)) for name in part.names):
            return "has such a name"
        if self._types and self._types.match(part.type):
            return f"is {part.type}"
        if part.odd:
            return self._unreadable(part.odd)
        data = part.data(raw)
        if options.larger is not None and len(data) > options.larger:
            return f"has {len(data)} bytes"
        if not (options.names or options.encrypted):
            return ""
        try:
            for name, locked in members(data, left, stored=bool(options.names)):
                if options.encrypted and locked:
                    return "needs a password"
                if self._names and self._names.match(_plain(name)):
                    return f"has {name!r} in it"
        except Unreadable as error:
            return self._unreadable(str(error))
        return self._inside(data, left) if part.type in ("message/rfc822", "message/global") else ""

    def _inside(self, data: bytes, left: _Left) -> str:
        """Why mail that was encoded as a whole matches."""
        left.take(1, len(data))
        for part in leaves(data):
            if part.attached and (why := self._why(part, data, left)):
                return f"has {_named(part)} in it, which {why}"
        return ""

    def _unreadable(self, why: str) -> str:
        return f"cannot be looked into: {why}" if self._options.unreadable and self._options.names else ""

    def _stripped(self, part: Part, why: str, size: int) -> Iterator[Edit]:
        note = self._options.note.replace("{name}", _named(part)).replace("{why}", why)
        text = encodestring(note.encode("utf-8", "replace")).decode("ascii")
        how = {"Content-Type": "text/plain; charset=utf-8", "Content-Transfer-Encoding": "quoted-printable"}
        if part.start:
            head = "".join(f"{name}: {value}\n" for name, value in how.items())
            yield Cut(part.start, part.end, f"{head}\n{text}\n"[:9000])
            return
        # The whole message is the attachment, and its header says so.
        yield RemoveHeader("Content-Disposition")
        for name, value in how.items():
            yield SetHeader(name, value)
        if part.body < size:
            yield Cut(part.body, size, f"{text}\n"[:9000])


def _named(part: Part) -> str:
    return repr(part.name[:100]) if part.name else f"without a name ({part.type})"


def _plain(name: str) -> str:
    """A name as a mail program would use it: without a folder, and without the dots and spaces that Windows drops."""
    return name.replace("\\", "/").rpartition("/")[2].rstrip(". \t\0").lower()


def _any_of(globs: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(translate(glob.lower()) for glob in globs)) if globs else None


# Archives that nobody looks into here, by their first bytes.
_FOREIGN = ((b"Rar!", "RAR"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"MSCF", "CAB"), (b"\x78\x9f\x3e\x22", "TNEF"))
_STREAMS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))


def members(data: bytes, left: _Left, depth: int = 0, *, stored: bool = True) -> Iterator[tuple[str, bool]]:
    """Each name in an archive, and in archives in it, with whether a password protects it; none for what is no archive.

    With `stored` an archive that a password protects is an error as well as one that is broken. Raises Unreadable.
    """
    if depth >= DEEPEST:
        raise Unreadable(f"archives are nested more than {DEEPEST} deep")
    for begins, what in _FOREIGN:
        if data.startswith(begins):
            raise Unreadable(f"it is a {what} archive")
    try:
        if data.startswith(b"PK\3\4") or zipfile.is_zipfile(io.BytesIO(data)):
            yield from _zipped(data, left, depth, stored)
            return
        for begins, opened in _STREAMS:
            if data.startswith(begins):
                yield from _stored_name(data)
                with opened(io.BytesIO(data)) as file:
                    inner = _read(file, left)
                yield from members(inner, left, depth + 1, stored=stored)
                return
        if _is_tar(data):
            yield from _tarred(data, left, depth, stored)
    except _BROKEN as error:
        raise Unreadable(str(error) or type(error).__name__) from error


def _zipped(data: bytes, left: _Left, depth: int, stored: bool) -> Iterator[tuple[str, bool]]:
    # The library reads the whole directory at once.
    if data.count(b"PK\1\2") > left.names:
        raise Unreadable("there is more in it than is looked at")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            left.take(1, 0)
            locked = bool(entry.flag_bits & 1)
            yield entry.filename, locked
            if locked and stored and _is_archive(entry.filename):
                raise Unreadable(f"a password protects {entry.filename!r}")
            if not locked and not entry.is_dir():
                with archive.open(entry) as inner:
                    yield from _inside(inner, entry.filename, left, depth, stored)


def _tarred(data: bytes, left: _Left, depth: int, stored: bool) -> Iterator[tuple[str, bool]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for entry in archive:
            left.take(1, 0)
            yield entry.name, False
            if entry.isfile() and (inner := archive.extractfile(entry)) is not None:
                yield from _inside(inner, entry.name, left, depth, stored)


def _is_tar(data: bytes) -> bool:
    """True when the first block is a header with the right checksum, with the magic of POSIX or without."""
    if len(data) < 512:
        return False
    try:
        told = int(data[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return data[257:262] == b"ustar"
    return told == sum(data[:148]) + 8 * 32 + sum(data[156:512]) or data[257:262] == b"ustar"


def _stored_name(data: bytes) -> Iterator[tuple[str, bool]]:
    """The name that gzip keeps (RFC 1952 2.3.1)."""
    if data.startswith(b"\x1f\x8b") and len(data) > 10 and data[3] & 0x08 and not data[3] & 0x04:
        yield data[10 : data.find(b"\0", 10)][:255].decode("latin-1"), False


_PACKED = re.compile(r"\.(?:zip|jar|docx|docm|xlsx|xlsm|pptx|pptm|tar|tgz|tbz2?|txz|gz|bz2|xz|rar|7z|cab)\Z", re.I)


def _is_archive(name: str) -> bool:
    return _PACKED.search(name) is not None


def _inside(file: _Readable, name: str, left: _Left, depth: int, stored: bool) -> Iterator[tuple[str, bool]]:
    """What is in a member, if that is an archive by its name or its first bytes."""
    begins = file.read(512)
    left.take(0, len(begins))
    magic = (b"PK\3\4", *(known for known, _ in (*_FOREIGN, *_STREAMS)))
    if _is_archive(name) or begins.startswith(magic) or _is_tar(begins):
        yield from members(begins + _read(file, left), left, depth + 1, stored=stored)


def _read(file: _Readable, left: _Left) -> bytes:
    data = file.read(left.size + 1)
    left.take(0, len(data))
    return data
