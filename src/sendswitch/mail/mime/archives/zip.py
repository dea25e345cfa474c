"""Zip archives (APPNOTE 6.3.10) as the union of what their readers see.

Some readers take the central directory, some the local headers from front to back; they find the directory in
different ways, and believe different ones of two sizes, names or flags. So every header is collected: from each end
record and each directory, and by its signature wherever no member's content is that all agree on. Where they disagree
the archive is ambiguous. Basis: "My ZIP isn't your ZIP" (USENIX Security 2025).
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise

from sendswitch.mail.mime.archives.base import MEMORY, Budget, Member, Unreadable, bunzip, inflate, unlzma, unxz
from sendswitch.mail.mime.charsets import decode
from sendswitch.mail.mime.findings import Finding, Kind

LOCAL, CENTRAL, END, END64, FIND64 = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_FULL = 0xFFFFFFFF
_ENCRYPTED, _DESCRIPTOR, _STRONG, _UTF8, _HIDDEN = 0x0001, 0x0008, 0x0040, 0x0800, 0x2000
_UNICODE_PATH, _ZIP64 = 0x7075, 0x0001
_STORED, _DEFLATED = 0, 8
_METHODS = {
    1: "shrink",
    6: "implode",
    9: "deflate64",
    93: "Zstandard",
    96: "JPEG",
    97: "WavPack",
    98: "PPMd",
    99: "AES",
}
# Bytes of a name; no system takes longer ones.
LONGEST_NAME = 4096
# Methods that are plausible in a header found by its signature, and extra fields of one header that are read.
_KNOWN = frozenset((*range(21), *range(92, 100)))
MOST_EXTRAS = 50
# Files inside of another's content that are looked at.
MOST_INSIDE = 100


@dataclass(frozen=True, slots=True)
class _Header:
    """A local header, or one of a directory, with its position and its description of the member."""

    at: int
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    names: tuple[str, ...]
    local: int = -1  # of a directory: where the local header stands
    data: int = -1  # of a local header: where the content begins
    odd: str = ""

    @property
    def encrypted(self) -> bool:
        return bool(self.flags & (_ENCRYPTED | _STRONG | _HIDDEN)) or self.method == 99


@dataclass(slots=True)
class _Archive:
    data: bytes
    locals: dict[int, _Header] = field(default_factory=dict)
    central: list[_Header] = field(default_factory=list)
    covered: list[tuple[int, int]] = field(default_factory=list)
    doubts: dict[str, None] = field(default_factory=dict)

    def doubt(self, text: str) -> None:
        """Note why programs read it differently."""
        self.doubts[text] = None


def looks_like(data: bytes) -> bool:
    """Return whether a program may open it as a zip archive, wherever in it that begins."""
    if data[:4] == LOCAL or END in data:
        return True
    at = -1
    while (at := data.find(LOCAL, at + 1)) >= 0:
        if _local(data, at) is not None:
            return True
    return False


def members(data: bytes, budget: Budget) -> Iterator[Member]:
    """Yield every member that a reader may see. The last item has no names; its findings are about the whole archive.

    Raises Unreadable over budget, and for data that begins like an archive and is none.
    """
    archive = _Archive(data)
    _read_directory(archive, budget)
    _read_files(archive, budget)
    _read_others(archive, budget)
    if not archive.central and not archive.locals and not archive.covered:
        if data[:2] != b"PK":
            return  # its signature is there by chance
        raise Unreadable("it is no zip archive that can be read")
    used: set[int] = set()
    for header in archive.central:
        local = archive.locals.get(header.local)
        if local is None:
            archive.doubt("an entry of its directory has no content")
            yield Member(header.names)
            continue
        used.add(header.local)
        yield from _member(archive, header, local, budget)
    for at, local in list(archive.locals.items()):
        if at not in used:
            archive.doubt("a file in it is in no directory")
            yield from _member(archive, None, local, budget)
    if archive.doubts:
        text = "; ".join(list(archive.doubts)[:3])
        finding = Finding(Kind.AMBIGUOUS, f"it is a zip archive that programs read differently: {text}")
        yield Member((), None, (finding,))


def _read_directory(archive: _Archive, budget: Budget) -> None:
    """Read the directory at the place that the last end record names."""
    data = archive.data
    at = data.rfind(END)
    while at >= 0 and at + _END.size > len(data):
        at = data.rfind(END, 0, at)
    if at < 0:
        archive.doubt("it has no end record")
        return
    _, disk, first_disk, here, total, size, offset, comment = _END.unpack_from(data, at)
    if data[at + _END.size + comment :].strip(b"\0\r\n \t"):
        archive.doubt("something stands behind its end")
    if disk or first_disk not in (0, disk):
        archive.doubt("it is one of several disks")
    wide = _end64(archive, at, (here, total, size, offset))
    if wide is None:
        return
    end, total, size, offset = wide
    start = end - size
    entries, behind = _entries(data, start, total, budget) if 0 <= start <= end else ([], -1)
    if behind != end:
        archive.doubt("its directory is not where its end record says")
        return
    prefix = start - offset
    if prefix < 0 or (prefix and _local(data, 0) is not None):
        archive.doubt("its directory is not where its end record says")
    elif prefix:
        # A program stands in front of it; offsets count from behind the program, or from the beginning.
        entries = [_moved(header, prefix, data) for header in entries]
    archive.central = entries
    archive.covered.append((start, min(at + _END.size + comment, len(data))))


def _entries(data: bytes, at: int, count: int, budget: Budget) -> tuple[list[_Header], int]:
    """Return `count` entries of a directory, and where they end; -1 when there are fewer."""
    entries: list[_Header] = []
    while data[at : at + 4] == CENTRAL and (found := _central(data, at)) is not None:
        budget.take(1, 0)
        entries.append(found[0])
        at = found[1]
    return entries, at if len(entries) == count else -1


def _end64(archive: _Archive, end: int, narrow: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """Return where the directory ends, how many files it has, its size and where it begins; None without a zip64 end
    record where one is named."""
    data = archive.data
    locator = data[end - 20 : end] if end >= 20 and data[end - 20 : end - 16] == FIND64 else b""
    if not locator:
        return (end, *narrow[1:])
    at: int = struct.unpack_from("<Q", locator, 8)[0]
    if data[at : at + 4] != END64:
        at = data.rfind(END64, 0, end)
    if at < 0 or at + 56 > len(data):
        archive.doubt("its zip64 end record is missing")
        return None
    wide = struct.unpack_from("<4Q", data, at + 24)
    for small, large, full in zip(narrow, wide, (0xFFFF, 0xFFFF, _FULL, _FULL), strict=True):
        if small not in (large, full):
            archive.doubt("its two end records differ")
    return (at, *wide[1:])


def _moved(header: _Header, prefix: int, data: bytes) -> _Header:
    at = header.local if data[header.local : header.local + 4] == LOCAL else header.local + prefix
    return replace(header, local=at)


def _read_files(archive: _Archive, budget: Budget) -> None:
    """Read the local headers that the directory names, and record the bytes that their content covers."""
    data = archive.data
    spans: list[tuple[int, int]] = []
    for header in archive.central:
        if header.local in archive.locals:
            archive.doubt("two entries of its directory share one file")
            continue
        local = _local(data, header.local, strict=False)
        if local is None:
            continue
        archive.locals[header.local] = local
        spans.append((header.local, min(local.data + header.packed, len(data))))
    spans.sort()
    if any(one[1] > other[0] for one, other in pairwise([*spans, *archive.covered])):
        archive.doubt("files in it overlap")
    archive.covered = sorted([*spans, *archive.covered])


def _read_others(archive: _Archive, budget: Budget) -> None:
    """Collect every header that stands where no content is that the directory knows."""
    data = archive.data
    for at in _outside(archive, CENTRAL):
        if (found := _central(data, at)) is not None:
            budget.take(1, 0)
            archive.central.append(found[0])
            archive.doubt("it has a directory that its end record does not tell")
    for magic, what in ((END, "end records"), (END64, "zip64 end records")):
        if next(_outside(archive, magic), None) is not None:
            archive.doubt(f"it has several {what}")
    for at in _outside(archive, LOCAL):
        local = _local(data, at)
        if local is not None and at not in archive.locals:
            budget.take(1, local.data - at)
            archive.locals[at] = local


def _outside(archive: _Archive, magic: bytes) -> Iterator[int]:
    """Yield the places of signatures outside the covered bytes."""
    spans, n, at = archive.covered, 0, 0
    while (at := archive.data.find(magic, at)) >= 0:
        while n < len(spans) and spans[n][1] <= at:
            n += 1
        if n < len(spans) and spans[n][0] <= at:
            at = max(spans[n][1], at + 4)
            continue
        yield at
        at += 4


def _local(data: bytes, at: int, *, strict: bool = True) -> _Header | None:
    """Return the local header at `at`; None when there is none, or with `strict` none that is plausible."""
    if at < 0 or at + _LOCAL.size > len(data):
        return None
    magic, _, flags, method, _, _, crc, packed, size, name, extra = _LOCAL.unpack_from(data, at)
    if magic != LOCAL:
        return None
    begin = at + _LOCAL.size
    if begin + name + extra > len(data) or (strict and (not name or method not in _KNOWN)):
        return None
    raw = data[begin : begin + name]
    extras = data[begin + name : begin + name + extra]
    names, odd = _names(raw, flags, extras)
    (size, packed), _ = _widened(extras, size, packed)
    return _Header(at, method, flags, crc, packed, size, names, data=begin + name + extra, odd=odd)


def _central(data: bytes, at: int) -> tuple[_Header, int] | None:
    """Return the entry of a directory at `at`, and where it ends; None when there is none."""
    if at + _CENTRAL.size > len(data):
        return None
    _, _, _, flags, method, _, _, crc, packed, size, *rest = _CENTRAL.unpack_from(data, at)
    name, extra, comment, _, _, _, local = rest
    begin = at + _CENTRAL.size
    end = begin + name + extra + comment
    if end > len(data) or not name or method not in _KNOWN:
        return None
    raw = data[begin : begin + name]
    extras = data[begin + name : begin + name + extra]
    names, odd = _names(raw, flags, extras)
    (size, packed, local), doubt = _widened(extras, size, packed, local)
    return _Header(at, method, flags, crc, packed, size, names, local=local, odd=odd or doubt), end


def _widened(extras: bytes, *narrow: int) -> tuple[list[int], str]:
    """Return numbers with those of the zip64 extra field in place of full ones, and the findings about that field."""
    values, needed = list(narrow), sum(value == _FULL for value in narrow)
    extra = b"".join(value for number, value in _fields(extras) if number == _ZIP64)
    wide = [value for (value,) in struct.iter_unpack("<Q", extra[: len(extra) // 8 * 8])]
    doubt = "an entry misses its zip64 sizes" if len(wide) < needed else ""
    if extra and len(wide) > needed:
        doubt = "an entry has zip64 sizes that it does not need"
    for n, value in enumerate(values):
        if value == _FULL and wide:
            values[n] = wide.pop(0)
    return values, doubt


def _fields(extras: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and value of each extra field. Raises Unreadable for too many."""
    at = count = 0
    while at + 4 <= len(extras):
        number, size = struct.unpack_from("<HH", extras, at)
        yield number, extras[at + 4 : at + 4 + size]
        at += 4 + size
        count += 1
        if count > MOST_EXTRAS:
            raise Unreadable("a file in it has more extra fields than are looked at", Kind.TOO_LARGE)


def _names(raw: bytes, flags: int, extras: bytes) -> tuple[tuple[str, ...], str]:
    """Return a member's names in every reading, and why they differ, '' if they agree."""
    kept = raw[:LONGEST_NAME]
    found = dict.fromkeys((decode(kept, "utf-8" if flags & _UTF8 else ""), kept.decode("cp437")))
    odd = "the name of a file in it has a NUL" if b"\0" in raw else ""
    for number, value in _fields(extras):
        if number == _UNICODE_PATH and len(value) > 5:
            name = decode(value[5 : 5 + LONGEST_NAME], "utf-8")
            right = value[0] == 1 and struct.unpack_from("<L", value, 1)[0] == zlib.crc32(raw)
            if not right or _ascii(name) != _ascii(decode(raw, "")):
                odd = "a file in it has two names"
            found[name] = None
    return tuple(name for name in found if name), odd


def _ascii(name: str) -> str:
    """Return the common part of two spellings of a name: the text behind its last character that is not ASCII."""
    for n in range(len(name) - 1, -1, -1):
        if not name[n].isascii():
            return name[n + 1 :].lower()
    return name.lower()


def _member(archive: _Archive, entry: _Header | None, local: _Header, budget: Budget) -> Iterator[Member]:
    """Yield a member with its content in each reading of its sizes and its method."""
    names = tuple(dict.fromkeys((*(entry.names if entry else ()), *local.names)))
    _compare(archive, entry, local)
    readings: dict[tuple[int, int], None] = {}
    for header in filter(None, (entry, local)):
        packed = header.packed
        if header is local and (local.flags & _DESCRIPTOR) and not packed:
            packed = (entry.packed if entry else 0) or _until_next(archive.data, local)
        readings[header.method, packed] = None
    if any(header.encrypted for header in (entry, local) if header):
        yield Member(names, None, (Finding(Kind.ENCRYPTED, f"a password protects {names[0] if names else ''!r}"),))
        return
    if names and all(name.endswith("/") for name in names) and not any(packed for _, packed in readings):
        yield Member(names)
        return
    _see_behind(archive, local, readings)
    for method, packed in readings:
        try:
            data = _content(archive.data[local.data : local.data + packed], method, budget)
        except Unreadable as error:
            if error.finding.kind is Kind.TOO_LARGE:
                raise
            yield Member(names, None, (error.finding,))
        else:
            yield Member(names, data)
    yield from _from_front(archive, names, local, budget)


def _see_behind(archive: _Archive, local: _Header, readings: dict[tuple[int, int], None]) -> None:
    """Note that another file may begin inside of this one for a reader that finds its end by itself."""
    length = max(packed for _, packed in readings)
    packed = archive.data[local.data : local.data + length]
    if LOCAL not in packed:
        return
    if local.method == _DEFLATED:
        unpacker = zlib.decompressobj(-15)
        with suppress(zlib.error):
            rest = packed
            while rest and not unpacker.eof:
                unpacker.decompress(rest, 256 * 1024)
                rest = unpacker.unconsumed_tail
            if LOCAL in unpacker.unused_data:
                archive.doubt("another file begins inside of one")
                _read_inside(archive, local.data, local.data + length)
    elif local.flags & _DESCRIPTOR:
        archive.doubt("another file may begin inside of one, whose size stands behind it")
        _read_inside(archive, local.data, local.data + length)


def _read_inside(archive: _Archive, start: int, end: int) -> None:
    """Collect the local headers inside of a file's content."""
    at = start
    for _ in range(MOST_INSIDE):
        at = archive.data.find(LOCAL, at, end)
        if at < 0:
            return
        if (local := _local(archive.data, at)) is not None:
            archive.locals.setdefault(at, local)
        at += 4


def _from_front(archive: _Archive, names: tuple[str, ...], local: _Header, budget: Budget) -> Iterator[Member]:
    # A reader that goes from front to back unpacks what is there, whatever the sizes say.
    if archive.doubts and local.method == _DEFLATED:
        try:
            yield Member(names, inflate(archive.data[local.data :], budget)[0])
        except Unreadable as error:
            if error.finding.kind is Kind.TOO_LARGE:
                raise


def _compare(archive: _Archive, entry: _Header | None, local: _Header) -> None:
    """Note where the two headers of a file disagree."""
    for header in filter(None, (entry, local)):
        if header.odd:
            archive.doubt(header.odd)
    if entry is None:
        return
    described = bool(local.flags & _DESCRIPTOR)
    if entry.method != local.method:
        archive.doubt("its headers name two methods for one file")
    if entry.encrypted != local.encrypted:
        archive.doubt("a file in it is encrypted in one header only")
    if set(map(str.lower, entry.names)) != set(map(str.lower, local.names)) and not (
        set(entry.names) & set(local.names)
    ):
        archive.doubt("a file in it has two names")
    for one, other in ((entry.packed, local.packed), (entry.size, local.size), (entry.crc, local.crc)):
        if one != other and not (described and other in (0, _FULL)):
            archive.doubt("its headers give two sizes for one file")
    if entry.method == _STORED and entry.packed != entry.size and not entry.encrypted:
        archive.doubt("a file in it is not packed, but has two sizes")


def _until_next(data: bytes, local: _Header) -> int:
    """Return the length of content whose size stands behind it."""
    ends = [data.find(magic, local.data) for magic in (b"PK\7\x08", LOCAL, CENTRAL, END)]
    return min((end for end in ends if end >= 0), default=len(data)) - local.data


def _content(packed: bytes, method: int, budget: Budget) -> bytes:
    match method:
        case 0:
            budget.take(0, len(packed))
            return packed
        case 8:
            return inflate(packed, budget)[0]
        case 12:
            return bunzip(packed, budget)
        case 14:
            return unlzma(packed[9:], budget, _lzma(packed))
        case 95:
            return unxz(packed, budget)
    raise Unreadable(f"a file in it is packed with {_METHODS.get(method, f'method {method}')}")


def _lzma(packed: bytes) -> lzma.LZMADecompressor:
    if len(packed) < 9:
        raise Unreadable("a file in it ends too early")
    properties, dictionary = packed[4], struct.unpack_from("<L", packed, 5)[0]
    if properties >= 225 or dictionary > MEMORY:
        raise Unreadable("a file in it needs more memory than it may have", Kind.TOO_LARGE)
    chain = [
        {
            "id": lzma.FILTER_LZMA1,
            "dict_size": max(dictionary, 4096),
            "lc": properties % 9,
            "lp": properties // 9 % 5,
            "pb": properties // 45,
        }
    ]
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)
    except (lzma.LZMAError, ValueError) as error:
        raise Unreadable(f"a file in it cannot be unpacked: {error}") from error
