"""What looks at and changes content: parts and where they stand, cuts, attachments, header fields, the subject."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import time
import tracemalloc
import zipfile
from base64 import encodebytes
from collections.abc import Callable, Coroutine
from email import message_from_bytes, policy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.delivery.compose import Composer
from sendswitch.mail.content import Content, Edited, InFile, InMemory, Spliced, read_all
from sendswitch.mail.envelope import Client
from sendswitch.mail.headers import AddHeader, Cut, MarkSubject, RemoveHeader, SetHeader, edit
from sendswitch.mail.message import Mail
from sendswitch.mail.parts import MAX_DEPTH, MAX_PARTS, Part, leaves
from sendswitch.mail.verdict import Action, Verdict, checked, verdict_from_json
from sendswitch.processors import attachment
from sendswitch.processors.attachment import Attachment, AttachmentOptions
from sendswitch.processors.headers import Headers, HeadersOptions, Subject, SubjectOptions
from sendswitch.testing import context, mail

Run = Callable[[Coroutine[Any, Any, Any]], Any]
COMPOSER = Composer("mx.example.test", {})


def part(data: bytes, name: str = "", kind: str = "application/octet-stream", *, encoded: bool = True) -> bytes:
    head = f"Content-Type: {kind}\r\n"
    if name:
        head += f'Content-Disposition: attachment; filename="{name}"\r\n'
    if encoded:
        head += "Content-Transfer-Encoding: base64\r\n"
        data = encodebytes(data).replace(b"\n", b"\r\n")
    return head.encode() + b"\r\n" + data


def multipart(*inner: bytes, boundary: str = "b1") -> bytes:
    between = b"".join(b"--" + boundary.encode() + b"\r\n" + one + b"\r\n" for one in inner)
    end = b"--" + boundary.encode() + b"--\r\n"
    return f'Content-Type: multipart/mixed; boundary="{boundary}"\r\n\r\npreamble\r\n'.encode() + between + end


HEAD = b"From: a@example.org\r\nSubject: hi\r\nMIME-Version: 1.0\r\n"
TEXT = part(b"hello\r\n", kind="text/plain", encoded=False)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def v7(files: dict[str, bytes]) -> bytes:
    """A tar from before there was a magic."""
    data = bytearray(tarred(files, tarfile.USTAR_FORMAT))
    data[257:265] = b"\0" * 8
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def tarred(files: dict[str, bytes], form: int = tarfile.DEFAULT_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def locked(data: bytes) -> bytes:
    """A zip whose directory says that a password is needed."""
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 8] + bytes([data[at + 8] | 1]) + data[at + 9 :]


# Parts


def test_parts_are_where_they_say() -> None:
    inner = multipart(TEXT, part(b"MZ", "setup.exe"), boundary="b2")
    raw = HEAD + multipart(inner, part(b"gif", kind="image/gif"))
    found = leaves(raw)
    assert [(p.name, p.type, p.attached) for p in found] == [
        ("", "text/plain", False),
        ("setup.exe", "application/octet-stream", True),
        ("", "image/gif", True),
    ]
    assert [p.data(raw) for p in found] == [b"hello\r\n", b"MZ", b"gif"]
    for p in found:
        assert raw[p.start : p.end].startswith(b"Content-Type:")
        assert raw[p.end :].lstrip(b"\r\n").startswith(b"--b")


def test_a_message_in_a_message_is_looked_into() -> None:
    forwarded = b"Content-Type: message/rfc822\r\n\r\n" + HEAD + multipart(TEXT, part(b"MZ", "a.exe"), boundary="x")
    assert [p.name for p in leaves(HEAD + multipart(forwarded))] == ["", "a.exe"]
    packed = part(forwarded, kind="message/rfc822")
    (one,) = leaves(HEAD + multipart(packed))
    assert one.type == "message/rfc822"
    named = b"Content-Type: message/rfc822; name=f.eml" + forwarded[len(b"Content-Type: message/rfc822") :]
    assert [p.name for p in leaves(HEAD + multipart(named))] == ["f.eml", "", "a.exe"]


@pytest.mark.parametrize(
    ("raw", "types"),
    [
        (b"", ["text/plain"]),
        (b"Subject: no mime\r\n\r\nhello\r\n", ["text/plain"]),
        (b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n", ["multipart/mixed"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\nnothing\r\n", ["multipart/mixed"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nnot closed\r\n", ["text/plain"]),
        (b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n", ["multipart/mixed"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\n\nx\n--b--\n", ["text/plain"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\nX: \xff\r\n\r\n--b", ["text/plain"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b--x\r\n", ["text/plain"]),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b--", ["text/plain"]),
    ],
)
def test_what_is_no_tidy_message(raw: bytes, types: list[str]) -> None:
    found = leaves(raw)
    assert [p.type for p in found] == types
    for p in found:
        assert 0 <= p.start <= p.body <= p.end <= len(raw)
        p.data(raw)


def test_deep_and_many_are_told() -> None:
    deep = TEXT
    for n in range(MAX_DEPTH + 5):
        deep = multipart(deep, boundary=f"d{n}")
    (one,) = leaves(deep)
    assert (one.type, one.odd) == ("multipart/mixed", "its parts are nested too deeply")
    many = leaves(multipart(*[TEXT] * (MAX_PARTS + 10), part(b"MZ", "evil.exe")))
    assert len(many) <= MAX_PARTS + 1
    assert many[-1].odd == f"there are more than {MAX_PARTS} parts"
    assert leaves(multipart(*[multipart(boundary="n")] * (MAX_PARTS + 10)))[-1].odd


EVIL = b"\r\n\r\nMZ\r\n--b--\r\n"
IN_B = b"Content-Type: multipart/mixed; boundary=b\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        # A header that is not closed, or has a line that is none: Postfix and we close it before that line.
        IN_B + b"--b\r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
        IN_B + b"junk\r\n--b\r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
        IN_B + b"\r\n--b\r\njunk\r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition : attachment; filename=evil.exe" + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment;\r\n filename=evil.exe" + EVIL,
        # A name in every reading.
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment; filename=\"a.pdf\"; filename*=utf-8''evil.exe" + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment; filename=evil.exe; filename=a.pdf" + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment; filename*0=evil; filename*1*=%2eexe" + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment; filename*0*=utf-8''ev; filename*1=il.exe" + EVIL,
        IN_B + b"\r\n--b\r\nContent-Type: a/b; name=evil.exe\r\nContent-Disposition: inline; filename=a.pdf" + EVIL,
        IN_B
        + b"\r\n--b\r\nContent-Disposition: inline; filename=a.pdf\r\nContent-Disposition: x; filename=evil.exe"
        + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment; filename=evil.exe (x)" + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment; filename=evil.exe." + EVIL,
        IN_B + b'\r\n--b\r\nContent-Disposition: attachment; filename="evil.exe. ."' + EVIL,
        IN_B + b'\r\n--b\r\nContent-Disposition: attachment; filename="c:\\\\evil.exe"' + EVIL,
        IN_B + b"\r\n--b\r\nContent-Disposition: attachment; filename==?utf-8?q?evil=2Eexe?=" + EVIL,
        # Boundaries in every reading.
        b'Content-Type: multipart/mixed; boundary="b\xe9"\r\n\r\n--b\xe9\r\nContent-Type: a/b; name=evil.exe\r\n\r\n',
        b"Content-Type: multipart/mixed; boundary=zz; boundary*=utf-8''b\r\n\r\n--b\r\nContent-Type: a/b; name=evil.exe"
        + EVIL,
        b"Content-Type: (x) multipart / mixed; boundary=b\r\n\r\n--b\r\nContent-Type: a/b; name=evil.exe" + EVIL,
        IN_B + b"\r\n--b\r\n\r\nx\r\n--b--\r\n--b\r\nContent-Type: a/b; name=evil.exe" + EVIL,
        IN_B + b"\r\n--b\x0c\r\nContent-Type: a/b; name=evil.exe" + EVIL,
        # Mail in mail, named, encoded, by default.
        IN_B + b"\r\n--b\r\nContent-Type: message/rfc822; name=fwd.eml\r\n\r\nContent-Type: a/b; name=evil.exe" + EVIL,
        b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\nContent-Type: a/b; name=evil.exe" + EVIL,
        multipart(part(b"Content-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n", kind="message/rfc822")),
        # What nobody can look into counts as if it were it.
        b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\nnothing\r\n",
        IN_B + b"\r\n--b\r\nContent-Type: a/b; name=x" + b";a=b" * 3000 + EVIL,
        IN_B + b"\r\n--b\r\nX: " + b"y" * 100_000 + b"\r\nContent-Type: a/b; name=a.pdf" + EVIL,
    ],
)
def test_nothing_is_slipped_past_by_a_malformed_message(run: Run, raw: bytes) -> None:
    assert judged(run, raw, names=["*.exe"]) is not None


def encoded(how: bytes, data: bytes) -> bytes:
    return multipart(b"Content-Type: a/b\r\nContent-Disposition: attachment\r\n" + how + b"\r\n" + data)


@pytest.mark.parametrize(
    "how",
    [
        b"Content-Transfer-Encoding: base64 \r\n",
        b"Content-Transfer-Encoding: base64;\r\n",
        b'Content-Transfer-Encoding: "BASE64"\r\n',
        b"Content-Transfer-Encoding: (x) base64 (y)\r\n",
        b"Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64\r\n",
    ],
)
@pytest.mark.parametrize(
    "change", [lambda b: b, lambda b: b + b"A", lambda b: b"AA==\r\n" + b, lambda b: b"!*\r\n" + b]
)
def test_an_encoding_is_read_as_a_mail_program_would(run: Run, how: bytes, change: Callable[[bytes], bytes]) -> None:
    raw = encoded(how, change(encodebytes(EXE)))
    if change(b"") != b"AA==\r\n":
        assert judged(run, raw, names=["*.exe"]) is not None
    (one,) = leaves(raw)
    assert EXE[:40] in one.data(raw)


def test_other_encodings_and_charsets() -> None:
    raw = b'Content-Type: text/plain; charset="latin-1"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'
    raw += b"f=FCr=\r\n dich"
    (one,) = leaves(raw)
    assert one.text(raw) == "für dich"
    assert Part(0, 0, 2, "text/plain", charset="nonsense").text(b"\xff\x00") == "\xff\x00"
    assert Part(0, 0, 2, "text/plain").text(b"\xff\xfe") == "\xff\xfe"
    raw = b"Content-Type: a/b; name*=nonsense''%ff; name*xx=1; name*1234=2; x=y\r\n\r\n"
    assert leaves(raw)[0].names[0] == "\xff"


def test_a_long_header_takes_no_longer_than_it_is() -> None:
    for junk in (b'\\";' * 100_000, b";" * 300_000, b"(" * 300_000, b'="' * 100_000):
        began = time.perf_counter()
        leaves(IN_B + b'\r\n--b\r\nContent-Type: application/x; name="' + junk + b'"\r\n\r\nx\r\n--b--\r\n')
        assert time.perf_counter() - began < 2


@given(
    st.lists(st.sampled_from([b"--b", b"--b--", b"\r\n", b"x", b"Content-Type: multipart/mixed; boundary=b", b"\n"]))
)
def test_parts_of_rubbish_lie_in_it_and_in_order(pieces: list[bytes]) -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"".join(pieces)
    at = 0
    for p in leaves(raw):
        assert at <= p.start <= p.body <= p.end <= len(raw)
        at = p.end


# Cuts


@pytest.fixture(params=["memory", "file"])
def content(request: pytest.FixtureRequest, tmp_path: Any) -> Callable[[bytes], Content]:
    def make(data: bytes) -> Content:
        if request.param == "memory":
            return InMemory(data)
        path = tmp_path / "x.eml"
        path.write_bytes(data)
        return InFile(path, len(data))

    return make


def test_bytes_are_cut_out_and_put_in(content: Callable[[bytes], Content]) -> None:
    original = content(b"A: 1\r\n\r\n0123456789")
    spliced = Spliced(original, ((9, 11, b"xyz"), (11, 12, b""), (17, 18, b"!")))
    expected = b"A: 1\r\n\r\n0xyz45678!"
    assert read_all(spliced) == expected
    assert spliced.size == len(expected)
    assert spliced.head() == b"A: 1\r\n\r\n"
    for start in range(len(expected) + 1):
        assert b"".join(spliced.chunks(start)) == expected[start:]
    edited = Edited(spliced, b"B: 2\r\n\r\n", 8)
    assert read_all(edited) == b"B: 2\r\n\r\n" + expected[8:]


def test_a_large_file_is_spliced_without_being_read_whole(tmp_path: Any) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(b"A: 1\r\n\r\n" + b"x" * 2_000_000)
    spliced = Spliced(InFile(path, 2_000_008), ((1_000_000, 1_000_001, b"-"),))
    assert spliced.whole() is None
    assert max(map(len, spliced.chunks())) <= 256 * 1024
    assert read_all(spliced) == b"A: 1\r\n\r\n" + b"x" * 999_992 + b"-" + b"x" * 1_000_007


def test_cuts_are_made_on_the_way_out_behind_the_header_and_once() -> None:
    raw = b"From: a@b\r\n\r\n0123456789\r\n"
    cuts = (Cut(15, 17, "a\nb"), Cut(16, 18, "overlaps"), Cut(2, 4, "header"), Cut(20, 99, "beyond"))
    verdict = checked(verdict_from_json(Verdict(edits=(*cuts, AddHeader("X-A", "1"))).to_json()))
    out = read_all(COMPOSER.compose(InMemory(raw), message="0" * 13, client=Client(), received=0.0, verdict=verdict))
    assert out.endswith(b"X-A: 1\r\nFrom: a@b\r\n\r\n01a\r\nb56789\r\n")


@pytest.mark.parametrize(
    "cut", [Cut(0, 1, ""), Cut(5, 5, ""), Cut(-1, 5, ""), Cut(1, 2, "x" * 10_001), Cut(1, 2, "\0")]
)
def test_a_cut_that_cannot_be_made_is_refused(cut: Cut) -> None:
    with pytest.raises(ValueError, match="not a place"):
        checked(Verdict(edits=(cut,)))


def test_a_long_value_is_folded_where_it_has_spaces() -> None:
    value = " ".join(["word"] * 300)
    out = edit(b"", [AddHeader("X-Long", value)])
    assert max(map(len, out.split(b"\r\n"))) <= 80
    assert Mail(InMemory(out + b"\r\n")).header("x-long") == value
    unbroken = edit(b"", [AddHeader("X-Long", "x" * 2000)])
    assert unbroken.count(b"\r\n") == 2


# Attachments


def judged(run: Run, raw: bytes, **options: Any) -> Verdict | None:
    verdict = run(Attachment(AttachmentOptions(**options)).process(Mail(InMemory(raw)), context()))
    assert verdict is None or isinstance(checked(verdict), Verdict)
    result: Verdict | None = verdict
    return result


EXE = zipped({"folder/setup.exe": b"MZ", "readme.txt": b"hi"})


@pytest.mark.parametrize(
    ("inner", "options", "why"),
    [
        (part(b"MZ", "Setup.EXE"), {"names": ["*.exe"]}, "'Setup.EXE' has such a name"),
        (part(b"MZ", "setup.txt"), {"names": ["*.exe"]}, None),
        (part(b"x", "a", "application/x-msdownload"), {"types": ["application/x-*"]}, "is application/x-msdownload"),
        (part(b"x", kind="image/gif"), {"types": ["image/*"]}, "without a name (image/gif) is image/gif"),
        (part(b"x" * 100, "a.bin"), {"larger": 99}, "has 100 bytes"),
        (part(b"x" * 100, "a.bin"), {"larger": 100}, None),
        (part(EXE, "a.zip"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(EXE, "photo.jpg"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(zipped({"in.zip": EXE}), "a.zip"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(tarred({"setup.exe": b"MZ"}), "a.tar"), {"names": ["*.exe"]}, "has 'setup.exe' in it"),
        (part(gzip.compress(tarred({"setup.exe": b"MZ"})), "a.tgz"), {"names": ["*.exe"]}, "has 'setup.exe' in it"),
        (part(bz2.compress(tarred({"a.zip": EXE})), "a.tbz"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(lzma.compress(tarred({"setup.exe": b""})), "a.txz"), {"names": ["*.exe"]}, "has 'setup.exe' in it"),
        (part(gzip.compress(b"just text"), "a.gz"), {"names": ["*.exe"]}, None),
        (part(EXE[:40], "a.zip"), {"names": ["*.exe"]}, "cannot be looked into: File is not a zip file"),
        (part(EXE + b"x" * 70_000, "a.zip"), {"names": ["*.exe"]}, "cannot be looked into: File is not a zip file"),
        (part(EXE[:30] + EXE[60:], "a.zip"), {"names": ["*.pdf"], "unreadable": False}, None),
        (part(gzip.compress(EXE), "a.zip.gz"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (
            part(b"\x1f\x8b\x08\x08\0\0\0\0\0\3evil.exe\0" + gzip.compress(b"MZ")[10:], "a.gz"),
            {"names": ["*.exe"]},
            "'evil.exe' in it",
        ),
        (
            part(tarred({"setup.exe": b"MZ"}, tarfile.USTAR_FORMAT).replace(b"ustar\x0000", b"\0" * 8), "a.tar"),
            {"names": ["*.exe"]},
            None,
        ),
        (part(v7({"setup.exe": b"MZ"}), "a.tar"), {"names": ["*.exe"]}, "has 'setup.exe' in it"),
        (part(zipped({"x.dat": EXE}), "a.zip"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(tarred({"x.dat": EXE}), "a.tar"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(locked(zipped({"in.zip": EXE})), "a.zip"), {"names": ["*.exe"]}, "a password protects 'in.zip'"),
        (part(zipped({"Setup.EXE. ": b""}), "a.zip"), {"names": ["*.exe"]}, "in it"),
        (part(b"Rar!\x1a\x07\x00", "a.rar"), {"names": ["*.exe"]}, "it is a RAR archive"),
        (part(b"Rar!\x1a\x07\x00", "a.rar"), {"names": ["*.exe"], "unreadable": False}, None),
        (part(gzip.compress(EXE)[:-12], "a.tgz"), {"names": ["*.exe"]}, "cannot be looked into: Compressed file ended"),
        (part(gzip.compress(EXE)[:-12], "a.tgz"), {"names": ["*.exe"], "unreadable": False}, None),
        (part(locked(EXE), "a.zip"), {"encrypted": True}, "needs a password"),
        (part(locked(EXE), "a.zip"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(EXE, "a.zip"), {"encrypted": True}, None),
        (part(b"MZ", "a.exe", "text/plain"), {"names": ["*.exe"]}, "has such a name"),
        (TEXT, {"types": ["text/*"]}, None),
    ],
)
def test_what_is_attached(run: Run, inner: bytes, options: dict[str, Any], why: str | None) -> None:
    verdict = judged(run, HEAD + multipart(TEXT, inner), **options)
    if why is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert (verdict.action, verdict.tags) == (Action.QUARANTINE, ("ATTACHMENT",))
        assert why in verdict.reason


def test_an_archive_that_never_ends_is_not_followed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = EXE
    for _ in range(6):
        nested = zipped({"in.zip": nested})
    found = judged(run, HEAD + multipart(part(nested, "a.zip")), names=["*.exe"])
    assert found is not None
    assert "nested more than 4 deep" in found.reason
    bomb = zipped({"in.zip": b"\0" * 60_000_000})
    found = judged(run, HEAD + multipart(part(bomb, "a.zip")), names=["*.exe"])
    assert found is not None
    assert "more in it than is looked at" in found.reason
    monkeypatch.setattr(attachment, "MOST_NAMES", 3)
    many = zipped({f"{n}.txt": b"" for n in range(5)})
    left = attachment._Left(names=3)
    with pytest.raises(attachment.Unreadable):
        list(attachment.members(many, left))


def test_more_parts_than_edits_are_put_aside(run: Run) -> None:
    verdict = judged(
        run, HEAD + multipart(*[part(b"MZ", f"{n}.exe") for n in range(101)]), names=["*.exe"], action="strip"
    )
    assert verdict is not None
    assert (verdict.action, verdict.edits) == (Action.QUARANTINE, ())


def test_bombs_are_harmless(run: Run) -> None:
    header = bytearray(tarfile.TarInfo("././@LongLink").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 1_500_000_000
    header[156:157] = b"L"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    bomb = gzip.compress(gzip.compress(bytes(header) + b"\0" * 60_000_000))
    directory = zipped({"a.zip": b"PK\1\2" * 5_000_000})
    for data in (bomb, directory):
        tracemalloc.start()
        found = judged(run, HEAD + multipart(part(data, "a.bin")), names=["*.exe"])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found is not None
        assert "there is more in it than is looked at" in found.reason
        assert peak < 250_000_000


@pytest.mark.parametrize(
    ("action", "expected"), [("tag", None), ("deny", Action.DENY), ("quarantine", Action.QUARANTINE)]
)
def test_what_a_match_means(run: Run, action: str, expected: Action | None) -> None:
    raw = HEAD + multipart(*[part(b"MZ", f"{n}.exe") for n in range(7)])
    verdict = judged(run, raw, names=["*.exe"], action=action, tag="PROGRAM", reply="554 5.7.1 No programs")
    assert verdict is not None
    assert (verdict.action, verdict.tags) == (expected, ("PROGRAM",))
    assert str(verdict.reply) == ("554 5.7.1 No programs" if expected is Action.DENY else "None")
    assert verdict.reason.endswith(" and 2 more")


def stripped(run: Run, raw: bytes, **options: Any) -> bytes:
    verdict = judged(run, raw, action="strip", **options)
    assert verdict is not None
    content = InMemory(raw)
    out = COMPOSER.compose(content, message="0" * 13, client=Client(), received=0.0, verdict=verdict)
    return read_all(out)


def test_a_part_is_stripped_and_every_other_byte_stays(run: Run) -> None:
    raw = HEAD + multipart(TEXT, part(b"MZ" * 100, "böse.exe"), part(b"gif", kind="image/gif"))
    out = stripped(run, raw, names=["*.exe"], note="{name} nicht für dich: {why}.")
    before, _, rest = raw.partition(part(b"MZ" * 100, "böse.exe"))
    assert before.partition(b"--b1")[2] in out
    assert out.endswith(rest)
    found = message_from_bytes(out, policy=policy.default)
    assert [p.get_content_type() for p in found.walk()] == ["multipart/mixed", "text/plain", "text/plain", "image/gif"]
    note = list(found.iter_parts())[1].get_content().strip()
    assert note == "'böse.exe' nicht für dich: has such a name."


def test_a_message_that_is_an_attachment_becomes_the_note(run: Run) -> None:
    out = stripped(run, HEAD + part(b"MZ" * 100, "a.exe"), names=["*.exe"])
    found = message_from_bytes(out, policy=policy.default)
    assert found.get_content_type() == "text/plain"
    assert "Content-Disposition" not in found
    assert found.get_content().strip() == "The attachment 'a.exe' was removed: has such a name."
    empty = stripped(run, HEAD + part(b"", "a.exe"), names=["*.exe"])
    assert message_from_bytes(empty, policy=policy.default).get_content_type() == "text/plain"


@pytest.mark.parametrize("options", [{}, {"names": []}, {"names": ["*"], "tag": "two words"}])
def test_rules_that_look_for_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"say what to look for|must be 1 to"):
        AttachmentOptions(**options)


# Header fields


def test_fields_are_added_set_and_removed_with_what_is_known(run: Run) -> None:
    options = HeadersOptions(
        add={"X-By": "{sender} for {recipient} {unknown}"},
        set={"X-Score": "{score}", "X-Id": "{id} {client} {helo} {tags}"},
        remove=("X-Mailer", "X-Absent"),
    )
    verdict = run(Headers(options).process(mail(X_Mailer="me", X_Score="0"), context("s@x", "r@x")))
    assert verdict.edits == (
        RemoveHeader("X-Mailer"),
        SetHeader("X-Score", ""),
        SetHeader("X-Id", "0000000000000 192.0.2.1  "),
        AddHeader("X-By", "s@x for r@x {unknown}"),
    )
    assert run(Headers(HeadersOptions(remove=("X-Absent",))).process(mail(), context())) is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "name 1 to 100 fields"),
        ({"remove": ["Received"]}, "Received cannot be changed"),
        ({"set": {"return-path": "x"}}, "return-path cannot be changed"),
        ({"add": {"X-SendSwitch-Tags": "x"}}, "X-SendSwitch-Tags cannot be changed"),
        ({"add": {"Bad Name": "x"}}, "is no name of a header field"),
    ],
)
def test_fields_that_tell_the_way_are_left_alone(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        HeadersOptions(**options)


def test_the_subject_is_marked(run: Run) -> None:
    verdict = run(Subject(SubjectOptions(mark="[NEWS] ")).process(mail(), context()))
    assert verdict == Verdict(edits=(MarkSubject("[NEWS] "),))
    once = edit(b"Subject: hi\r\n\r\n", verdict.edits)
    assert once == edit(once, verdict.edits) == b"Subject: [NEWS] hi\r\n\r\n"
