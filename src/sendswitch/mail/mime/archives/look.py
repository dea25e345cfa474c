"""Which archive some data is, and the members of it and of archives in it."""

from __future__ import annotations

import io
import re
import struct
import tarfile
from collections.abc import Iterator

from sendswitch.mail.mime.archives import zip as zipped
from sendswitch.mail.mime.archives.base import Budget, Member, Unreadable, bunzip, gunzip, unxz

# Formats that nobody opens here, by bytes at a place; each is a finding.
_FOREIGN = (
    (0, b"MSCF", "a CAB archive"),
    (0, b"\x60\xea", "an ARJ archive"),
    (0, b"\x1f\x9d", "packed with compress"),
    (0, b"\x1f\xa0", "packed with compress"),
    (0, b"\x28\xb5\x2f\xfd", "packed with Zstandard"),
    (0, b"\x04\x22\x4d\x18", "packed with LZ4"),
    (0, b"LZIP", "packed with lzip"),
    (0, b"070701", "a cpio archive"),
    (0, b"070702", "a cpio archive"),
    (0, b"070707", "a cpio archive"),
    (0, b"\xc7\x71", "a cpio archive"),
    (0, b"\x71\xc7", "a cpio archive"),
    (0, b"MSWIM\0\0\0", "a WIM image"),
    (0, b"conectix", "a VHD disk"),
    (0, b"vhdxfile", "a VHDX disk"),
    (0, b"KDMV", "a VMDK disk"),
    (0, b"xar!", "a XAR archive"),
    (0, b"!<arch>\n", "an ar archive"),
    (0, b"ZOO ", "a ZOO archive"),
    (0, b"SIT!", "a StuffIt archive"),
    (0, b"StuffIt", "a StuffIt archive"),
    (0, b"ISc(", "an InstallShield archive"),
    (0, b"zPQ", "a ZPAQ archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (7, b"**ACE**", "an ACE archive"),
    (0, b"ITSF", "a compiled help file"),
)
# Formats that programs open even behind something else.
_ANYWHERE = (
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"RE\x7e\x5e", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)
# Sectors 16 to 18 of an image of sectors, and sector 16 of one of raw sectors.
_DISKS = (32_769, 34_817, 36_865, 37_633, 37_657)
_LHA = re.compile(rb"[\s\S]{2}-l[hz][0-9ds]-")
_NAMED = re.compile(
    r"\.(?:rar|r\d\d|7z|cab|arj|lzh|lha|ace|iso|img|udf|cpio|wim|swm|esd|vhd|vhdx|vmdk|z|zst|lz4|lz|xar|dmg|pkg|alz|egg"
    r"|uue|uu|xxe|b64|msg|zpaq|arc|zoo|sit|sitx|hqx)\Z",
    re.I,
)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_MSG = "__properties_version1.0".encode("utf-16-le")
_TAR_BLOCK = 512


def members(data: bytes, name: str, budget: Budget) -> Iterator[Member]:
    """Yield the members of an archive; none for what is no archive.

    Raises Unreadable for one that nobody opens here, for a broken one, and over budget.
    """
    what = foreign(data)
    if what:
        raise Unreadable(f"it is {what}, which nobody looks into")
    if data[:2] == b"\x1f\x8b":
        yield Member(tuple(_stored_names(data)) or (_without_ending(name),), gunzip(data, budget))
    elif data[:3] == b"BZh":
        yield Member((_without_ending(name),), bunzip(data, budget))
    elif data[:6] == b"\xfd7zXZ\0" or (data[:3] == b"\x5d\0\0" and data[5:6] in (b"\0", b"\xff")):
        yield Member((_without_ending(name),), unxz(data, budget))
    elif is_tar(data):
        yield from _tar(data, budget)
    elif zipped.looks_like(data):
        yield from zipped.members(data, budget)
    elif _NAMED.search(name) and data:
        raise Unreadable(f"nobody looks into files like {name[-60:]!r}")


def foreign(data: bytes) -> str:
    """Return what kind of archive it is that nobody opens here, '' for none."""
    for at, begins, what in _FOREIGN:
        if data[at : at + len(begins)] == begins:
            return what
    for begins, what in _ANYWHERE:
        if begins in data[: 4 * 1024 * 1024]:
            return what
    if any(data[at : at + 5] in (b"CD001", b"BEA01", b"NSR02", b"NSR03") for at in _DISKS):
        return "an ISO image"
    if _LHA.match(data):
        return "an LHA archive"
    if data[-512:-508] == b"koly" or data[-512:-504] == b"conectix":
        return "a disk image"
    if data[:8] == _OLE and _MSG in data:
        return "a message of Outlook"
    return ""


def _without_ending(name: str) -> str:
    stem = re.sub(r"\.(?:gz|bz2?|xz|lzma|z)\Z", "", name, flags=re.I)
    return re.sub(r"\.(t)(?:gz|bz2?|xz|lz)\Z", ".tar", stem, flags=re.I)


def _stored_names(data: bytes) -> Iterator[str]:
    """Yield the name that gzip keeps in each member that stands at a signature (RFC 1952 section 2.3)."""
    at, count = 0, 0
    while 0 <= at < len(data) - 10 and count < 100:
        count += 1
        flags, place = data[at + 3], at + 10
        if flags & 0x04:
            place += 2 + struct.unpack_from("<H", data + b"\0\0", place)[0]
        if flags & 0x08:
            end = data.find(b"\0", place)
            yield data[place : end if end >= 0 else len(data)][:255].decode("utf-8", "replace")
        at = data.find(b"\x1f\x8b\x08", at + 10)


def is_tar(data: bytes) -> bool:
    """Return whether the first block is a header with the right checksum, with the magic of POSIX or without."""
    if len(data) < _TAR_BLOCK:
        return False
    try:
        told = int(data[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return data[257:262] == b"ustar"
    return told == sum(data[:148]) + 8 * 32 + sum(data[156:512]) or data[257:262] == b"ustar"


def _tar(data: bytes, budget: Budget) -> Iterator[Member]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=True) as archive:
            for entry in archive:
                budget.take(1, 0)
                names = tuple(dict.fromkeys(filter(None, (entry.name, entry.linkname))))
                content = None
                if entry.isfile() and (file := archive.extractfile(entry)) is not None:
                    content = file.read(budget.size + 1)
                    budget.take(0, len(content))
                yield Member(names, content)
    except (tarfile.TarError, OSError, ValueError, EOFError, struct.error, RecursionError) as error:
        raise Unreadable(f"it is a tar archive that is broken: {error}") from error
