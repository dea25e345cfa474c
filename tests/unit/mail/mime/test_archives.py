"""Archives as the union of what their readers see, in bounded time and memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.mime.archives import look, tar
from sendswitch.mail.mime.archives.base import Budget, Unreadable
from tests.evasions import DEFLATED, GOOD, ZIPS, local, patched
from tests.evasions import EVIL_ZIP as EVIL
from tests.mime_samples import tarred, v7, zipped
from tests.timing import took


def seen(data: bytes, name: str = "a.bin") -> tuple[set[str], set[str]]:
    """All names in an archive, and its findings."""
    names: set[str] = set()
    findings: set[str] = set()
    try:
        for member in look.members(data, name, Budget()):
            names |= set(member.names)
            findings |= {finding.text for finding in member.findings}
    except Unreadable as error:
        findings.add(error.finding.text)
    return names, findings


@pytest.mark.parametrize("data", ZIPS.values(), ids=ZIPS)
def test_a_zip_that_programs_read_differently_is_ambiguous(data: bytes) -> None:
    names, findings = seen(data)
    assert any("programs read differently" in text for text in findings), (names, findings)
    if b"evil.exe" in data:
        assert "evil.exe" in names


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_unpacked_however_it_is_packed(method: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("in.zip", EVIL * 3)
    (member,) = look.members(out.getvalue(), "a.zip", Budget())
    assert member.data == EVIL * 3
    number = out.getvalue().index(b"in.zip") + 6
    cut = patched(patched(out.getvalue(), b"PK\3\4", 18, b"\4\0\0\0"), b"PK\1\2", 20, b"\4\0\0\0")
    assert any("ends too early" in text for text in seen(cut)[1])
    broken = out.getvalue()[:number] + b"\xff" * 9 + out.getvalue()[number + 9 :]
    assert any("unpacked" in text or "memory" in text for text in seen(broken)[1])


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
}


@pytest.mark.parametrize("form", PACKERS)
def test_what_is_cut_or_broken_is_looked_into_as_far_as_it_goes(form: str) -> None:
    pack, name = PACKERS[form], f"a.tar.{form}"
    content = tarred({"evil.exe": b"MZ"}) + random.Random(1).randbytes(2_000_000)
    packed = pack(content)
    half = packed[: len(packed) // 2]
    for data in (half, half + b"\0\xff" * 1000):
        (member,) = look.members(data, name, Budget())
        assert member.data is not None
        assert content[:10_000] == member.data[:10_000]
    assert any("cannot be unpacked" in text for text in seen(packed[:14], name)[1])
    assert any("cannot be unpacked" in text for text in seen(packed[:14] + b"\xff" * 100, name)[1])


def streamed() -> bytes:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.data += bytes(memoryview(data))  # type: ignore[arg-type]
            return len(memoryview(data))  # type: ignore[arg-type]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("grün.txt", b"hi" * 100)
        archive.writestr("b.txt", b"")
    return bytes(pipe.data)


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        DEFLATED.getvalue(),
        streamed(),
        b"MZ a program that unpacks itself" + GOOD,
        zipped({"in.zip": EVIL, "folder/": b"", "x" * 300: b"1"}),
        tarred({"in.zip": GOOD}),
        zipped({}),
    ],
    ids=range(7),
)
def test_honest_archives_have_no_findings(data: bytes) -> None:
    assert seen(data)[1] == set()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (tarred({"evil.exe": b"MZ"}, tarfile.GNU_FORMAT), "a.tar"),
        (tarred({"a/" * 600 + "evil.exe": b"MZ"}, tarfile.GNU_FORMAT), "a.tar"),
        (tarred({"ü" * 200 + "/evil.exe": b"MZ"}, tarfile.PAX_FORMAT), "a.tar"),
        (v7({"evil.exe": b"MZ"}), "a.tar"),
        (b"\0" * 512 + tarred({"evil.exe": b"MZ"}), "a.tar"),
        (tarred({"evil.exe": b"MZ"}).replace(b"0000000\x000000000", b"zzzzzzz\x00zzzzzzz", 1), "a.tar"),
        (bz2.compress(b"MZ"), "evil.exe.bz2"),
        (gzip.compress(b"MZ"), "evil.exe-gz"),
        (b"\x1f\x8b\x08\x0c" + b"\0" * 6 + b"\4\0ABCD" + b"evil.exe\0" + gzip.compress(b"MZ")[10:], "a.gz"),
        (b"begin 644 evil.exe\r\n#0V%T\r\n`\r\nend\r\n", "a.uu"),
    ],
)
def test_every_name_is_found(data: bytes, name: str) -> None:
    names, _ = seen(data, name)
    assert any(found.endswith("evil.exe") for found in names)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_all_streams_of_a_packed_file_are_unpacked(pack: Callable[[bytes], bytes]) -> None:
    (member,) = look.members(pack(b"one") + pack(b"two"), "a", Budget())
    assert member.data == b"onetwo"
    (cut,) = look.members(pack(b"x" * 100_000)[:-5], "a", Budget())
    assert cut.data is not None


def test_lzma_without_a_container() -> None:
    (member,) = look.members(lzma.compress(b"MZ", lzma.FORMAT_ALONE), "a.bin", Budget())
    assert member.data == b"MZ"


def test_what_stands_in_front_hides_no_zip() -> None:
    for front in (gzip.compress(b"x"), bz2.compress(b"x"), lzma.compress(b"x"), tarred({"a": b"x"})):
        assert "evil.exe" in seen(front + EVIL)[0]


@pytest.mark.parametrize(
    ("begins", "what"),
    [
        (b"Rar!\x1a\x07\0", "a RAR archive"),
        (b"stub" * 100 + b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"MSCF", "a CAB archive"),
        (b"\0" * 32_769 + b"CD001", "an ISO image"),
        (b"xx-lh5-", "an LHA archive"),
        (b"\x50\x2a\x4d\x18", "packed with Zstandard or LZ4"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "__properties_version1.0".encode("utf-16-le"), "a message of Outlook"),
        (b"x" * 1000 + b"koly" + b"\0" * 508, "a disk image"),
    ],
)
def test_what_nobody_opens_is_a_finding(begins: bytes, what: str) -> None:
    assert any(what in text for text in seen(begins)[1])


def test_a_name_that_says_archive_for_something_unknown_is_a_finding() -> None:
    assert seen(b"something", "disk.iso")[1] != set()
    assert seen(b"something", "text.txt") == (set(), set())
    assert seen(b"", "disk.iso") == (set(), set())


def test_methods_of_zip() -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            archive.writestr("in.zip", EVIL)
        assert [m.data for m in look.members(out.getvalue(), "a", Budget())] == [EVIL]
    assert any(
        "packed with deflate64" in text
        for text in seen(patched(patched(GOOD, b"PK\3\4", 8, b"\t\0"), b"PK\1\2", 10, b"\t\0"))[1]
    )


@pytest.mark.parametrize(
    "data",
    [
        local(b"x" * 65_000, b"")[:65_030] * 15,
        b"".join(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 65_000, 65_000) for _ in range(33_000)),
        b"PK\1\2" * 250_000 + b"PK\5\6" + b"\0" * 18,
        b"PK\5\6" * 250_000,
        b"\x1f\x8b\x08\x08" * 250_000,
        tarred({f"{n}": b"" for n in range(1500)}),
        b"ustar" * 200_000,
    ],
    ids=range(7),
)
def test_a_megabyte_takes_seconds_not_minutes(data: bytes) -> None:
    began = time.process_time()
    seen(data)
    assert took(began) < 8


@given(st.sampled_from(list(ZIPS.values())), st.integers(0, 2**32), st.integers(1, 8))
def test_nothing_raises_but_what_is_unreadable(data: bytes, seed: int, changes: int) -> None:
    chosen = random.Random(seed)
    changed = bytearray(data)
    for _ in range(changes):
        changed[chosen.randrange(len(changed))] = chosen.randrange(256)
    seen(bytes(changed))
    seen(bytes(changed[: chosen.randrange(len(changed))]))


@given(st.binary(max_size=600))
def test_no_tar_raises(tail: bytes) -> None:
    head = tarred({"a": b"x"})[:512]
    list(tar.members(head + tail, Budget()))
    for kind in b"LKxgX":
        block = bytearray(head)
        block[124:136] = b"\x80" + b"\xff" * 11
        block[156] = kind
        list(tar.members(bytes(block) + tail, Budget()))
