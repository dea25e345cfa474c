"""The archive format of some data, and the members of an archive and of the archives in it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from sendswitch.mail.mime.archives import tar
from sendswitch.mail.mime.archives import zip as zipped
from sendswitch.mail.mime.archives.base import Budget, Member, Unreadable, bunzip, gunzip, unxz
from sendswitch.mail.mime.transfer import uuencoded

# Formats that nobody opens here, by bytes at a place; each is a finding.
_FOREIGN = (
    (0, b"RE\x7e\x5e", "a RAR archive"),
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
    (0, b"WARC/", "a web archive"),
    (0, b"#mtree", "a list of files"),
    (0, b"LRZI", "packed with lrzip"),
    (0, b"\x89LZO", "packed with lzop"),
    (0, b"GRZipII", "packed with grzip"),
)
# Formats that programs open even behind something else.
_ANYWHERE = (
    (b"Rar!\x1a\x07", "a RAR archive"),
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
# Documents that may have archives in them, which programs open in their own way.
_DOCUMENTS = (_OLE, b"%PDF", b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")
_LZMA_NAME = re.compile(r"\.(?:lzma|tlz)\Z", re.I)
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")


def members(data: bytes, name: str, budget: Budget) -> Iterator[Member]:
    """Yield the members of an archive, none for data that is no archive.

    Raises Unreadable for a broken archive, for a format that is not supported, and over budget.
    """
    what = foreign(data)
    if what:
        raise Unreadable(f"it is {what}, which nobody looks into")
    packed = False
    for begins, names, unpack in _streams(data, name):
        if begins:
            packed = True
            yield Member(tuple(dict.fromkeys(names)), unpack(data, budget))
    packed = packed or data.startswith(_DOCUMENTS)
    behind = 0
    if tar.looks_like(data):
        packed, behind = True, tar.end(data)
        yield from tar.members(data, budget)
    if zipped.looks_like(data) and (not behind or data.rfind(zipped.END) >= behind):
        found = zipped.members(data, budget)
        # What is something else in front may be a zip archive behind it, and is no worse for that.
        yield from (member for member in found if member.names) if packed else found
    elif not packed:
        yield from _as_text(data, name)


def _streams(data: bytes, name: str) -> Iterator[tuple[bool, list[str], Callable[[bytes, Budget], bytes]]]:
    """Yield for each compression of a single file whether the data has it, the names of the file, and its
    decompressor.
    """
    stem = _without_ending(name)
    yield data[:2] == b"\x1f\x8b", [*_stored_names(data), stem], gunzip
    yield data[:3] == b"BZh", [stem], bunzip
    yield data[:6] == b"\xfd7zXZ\0" or _is_lzma(data, name), [stem], unxz


def _is_lzma(data: bytes, name: str) -> bool:
    """Return whether it is LZMA without a container: by its name, or by properties, dictionary and size."""
    if len(data) < 13 or data[0] >= 225:
        return False
    dictionary, size = struct.unpack_from("<LQ", data, 1)
    plausible = dictionary == 0xFFFFFFFF or (
        dictionary >= 4096 and dictionary & (dictionary - 1) in (0, dictionary // 3 * 2)
    )
    return bool(_LZMA_NAME.search(name)) or (plausible and (size == 2**64 - 1 or size < 2**38))


def _as_text(data: bytes, name: str) -> Iterator[Member]:
    """Yield the content of files that are encoded as text. An archive's name on unknown data is an error."""
    found = False
    for inner, content in uuencoded(data):
        found = True
        yield Member((inner,), content)
    if not found and data and _NAMED.search(name):
        raise Unreadable(f"nobody looks into files like {name[-60:]!r}")


def foreign(data: bytes) -> str:
    """Return the format of an archive that is not supported, '' for other data."""
    for at, begins, what in _FOREIGN:
        if data[at : at + len(begins)] == begins:
            return what
    for begins, what in _ANYWHERE:
        if begins in data[: 4 * 1024 * 1024]:
            return what
    if any(data[at : at + 5] in (b"CD001", b"BEA01", b"NSR02", b"NSR03") for at in _DISKS):
        return "an ISO image"
    if _SKIPPABLE.match(data):
        return "packed with Zstandard or LZ4"
    if _LHA.match(data):
        return "an LHA archive"
    if data[-512:-508] == b"koly" or data[-512:-504] == b"conectix":
        return "a disk image"
    if data[:8] == _OLE and _MSG in data:
        return "a message of Outlook"
    return ""


def _without_ending(name: str) -> str:
    stem = re.sub(r"[.\-_](?:gz|bz2?|xz|lzma|z)\Z", "", name, flags=re.I)
    return re.sub(r"\.t(?:gz|bz2?|xz|lz)\Z", ".tar", stem, flags=re.I)


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
