"""What looks at and changes content: parts and where they stand, cuts, attachments, header fields, the subject."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable
from email import message_from_bytes, policy
from typing import Any

import pytest

from sendswitch.delivery.compose import Composer
from sendswitch.mail import results
from sendswitch.mail.content import Content, Edited, InFile, InMemory, Spliced, read_all
from sendswitch.mail.edits import AddHeader, Cut, MarkSubject, RemoveHeader, SetHeader
from sendswitch.mail.envelope import Client
from sendswitch.mail.headers import edit
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.archives import look
from sendswitch.mail.mime.archives.base import DEEPEST, Budget, Unreadable
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.mail.verdict_checks import checked
from sendswitch.mail.verdict_json import verdict_from_json
from sendswitch.processors import base
from sendswitch.processors.attachment import Attachment, AttachmentOptions
from sendswitch.processors.headers import Headers, HeadersOptions, Subject, SubjectOptions
from sendswitch.testing import context, mail
from tests.mime_samples import HEAD, TEXT, locked, multipart, part, tarred, v7, zipped
from tests.verdicts import verdict_of

COMPOSER = Composer("mx.example.test", {})


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


async def judged(raw: bytes, **options: Any) -> Verdict | None:
    verdict = await Attachment(AttachmentOptions(**options)).process(Mail(InMemory(raw)), context())
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
        (part(EXE[:40], "a.zip"), {"names": ["*.exe"]}, "is unreadable: it is no zip archive that can be read"),
        (part(EXE + b"x" * 70_000, "a.zip"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(EXE + b"x" * 70_000, "a.zip"), {"names": ["*.pdf"]}, "something stands behind its end"),
        (part(EXE[:30] + EXE[60:], "a.zip"), {"names": ["*.pdf"], "unreadable": False, "ambiguous": False}, None),
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
        (part(gzip.compress(EXE)[:-12], "a.tgz"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (
            part(b"\x1f\x8b\x08\0rubbish! and more", "a.gz"),
            {"names": ["*.exe"]},
            "is unreadable: it cannot be unpacked",
        ),
        (part(b"\x1f\x8b\x08\0rubbish! and more", "a.gz"), {"names": ["*.exe"], "unreadable": False}, None),
        (part(locked(EXE), "a.zip"), {"encrypted": True}, "a password protects 'readme.txt'"),
        (part(locked(EXE), "a.zip"), {"names": ["*.exe"]}, "has 'folder/setup.exe' in it"),
        (part(EXE, "a.zip"), {"encrypted": True}, None),
        (part(b"MZ", "a.exe", "text/plain"), {"names": ["*.exe"]}, "has such a name"),
        (TEXT, {"types": ["text/*"]}, None),
    ],
)
async def test_what_is_attached(inner: bytes, options: dict[str, Any], why: str | None) -> None:
    verdict = await judged(HEAD + multipart(TEXT, inner), **options)
    if why is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert (verdict.action, verdict.tags) == (Action.QUARANTINE, ("ATTACHMENT",))
        assert why in verdict.reason


async def test_an_archive_that_never_ends_is_not_followed() -> None:
    nested = EXE
    for _ in range(8):
        nested = zipped({"in.zip": nested})
    found = await judged(HEAD + multipart(part(nested, "a.zip")), names=["*.exe"])
    assert found is not None
    assert f"nested more than {DEEPEST} deep" in found.reason
    bomb = zipped({"in.zip": b"\0" * 60_000_000})
    found = await judged(HEAD + multipart(part(bomb, "a.zip")), names=["*.exe"])
    assert found is not None
    assert "more in it than is looked at" in found.reason
    many = zipped({f"{n}.txt": b"" for n in range(5)})
    with pytest.raises(Unreadable, match="more in it than is looked at"):
        list(look.members(many, "a.zip", Budget(names=3)))


async def test_more_parts_than_edits_are_put_aside() -> None:
    verdict = await judged(
        HEAD + multipart(*[part(b"MZ", f"{n}.exe") for n in range(101)]), names=["*.exe"], action="strip"
    )
    assert verdict is not None
    assert (verdict.action, verdict.edits) == (Action.QUARANTINE, ())


async def test_bombs_are_harmless() -> None:
    header = bytearray(tarfile.TarInfo("././@LongLink").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 1_500_000_000
    header[156:157] = b"L"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    bomb = gzip.compress(gzip.compress(bytes(header) + b"\0" * 60_000_000))
    directory = zipped({"a.zip": b"PK\1\2" * 500_000 + b"PK\5\6" + b"\1" * 18})
    for data in (bomb, directory):
        tracemalloc.start()
        found = await judged(HEAD + multipart(part(data, "a.bin")), names=["*.exe"])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found is not None
        assert "there is more in it than is looked at" in found.reason or "no zip archive" in found.reason
        assert peak < 250_000_000


@pytest.mark.parametrize(
    ("action", "expected"), [("tag", None), ("deny", Action.DENY), ("quarantine", Action.QUARANTINE)]
)
async def test_what_a_match_means(action: str, expected: Action | None) -> None:
    raw = HEAD + multipart(*[part(b"MZ", f"{n}.exe") for n in range(7)])
    verdict = await judged(raw, names=["*.exe"], action=action, tag="PROGRAM", reply="554 5.7.1 No programs")
    assert verdict is not None
    assert (verdict.action, verdict.tags) == (expected, ("PROGRAM",))
    assert str(verdict.reply) == ("554 5.7.1 No programs" if expected is Action.DENY else "None")
    assert verdict.reason.endswith(" and 2 more")


async def test_findings_are_written_for_later_hops() -> None:
    async def written(raw: bytes, **options: Any) -> list[str]:
        step = Attachment(AttachmentOptions(names=("*.exe",), results=True, **options))
        step.setup(base.Services(host="mx.example"))
        verdict = verdict_of(await step.process(Mail(InMemory(raw)), context()))
        edits = [one for one in verdict.edits if not isinstance(one, Cut)]
        out = edit(Mail(InMemory(raw)).content.head(), edits)
        return Mail(InMemory(out)).raw_headers("mime-ambiguity-results")

    clean = HEAD + b"MIME-Ambiguity-Results: mx.example; mime=forged\r\n" + multipart(part(b"x", "a.txt"))
    assert await written(clean) == ["mx.example; mime=none"]
    both = b"Content-Type: multipart/mixed; boundary=a\r\nContent-Type: text/plain\r\n\r\n--a\r\n\r\nx\r\n--a--\r\n"
    (value,) = await written(HEAD + both, ambiguous=False)
    assert value.startswith('mx.example; mime=ambiguous reason="its type can be multipart/mixed or text/plain"')
    assert results.parse(value).host == "mx.example"


async def stripped(raw: bytes, **options: Any) -> bytes:
    verdict = await judged(raw, action="strip", **options)
    assert verdict is not None
    content = InMemory(raw)
    out = COMPOSER.compose(content, message="0" * 13, client=Client(), received=0.0, verdict=verdict)
    return read_all(out)


async def test_a_part_is_stripped_and_every_other_byte_stays() -> None:
    raw = HEAD + multipart(TEXT, part(b"MZ" * 100, "böse.exe"), part(b"gif", kind="image/gif"))
    out = await stripped(raw, names=["*.exe"], note="{name} nicht für dich: {why}.")
    before, _, rest = raw.partition(part(b"MZ" * 100, "böse.exe"))
    assert before.partition(b"--b1")[2] in out
    assert out.endswith(rest)
    found = message_from_bytes(out, policy=policy.default)
    assert [p.get_content_type() for p in found.walk()] == ["multipart/mixed", "text/plain", "text/plain", "image/gif"]
    note = list(found.iter_parts())[1].get_content().strip()
    assert note == "'böse.exe' nicht für dich: has such a name."


async def test_a_message_that_is_an_attachment_becomes_the_note() -> None:
    out = await stripped(HEAD + part(b"MZ" * 100, "a.exe"), names=["*.exe"])
    found = message_from_bytes(out, policy=policy.default)
    assert found.get_content_type() == "text/plain"
    assert "Content-Disposition" not in found
    assert found.get_content().strip() == "The attachment 'a.exe' was removed: has such a name."
    empty = await stripped(HEAD + part(b"", "a.exe"), names=["*.exe"])
    assert message_from_bytes(empty, policy=policy.default).get_content_type() == "text/plain"


@pytest.mark.parametrize("options", [{}, {"names": []}, {"names": ["*"], "tag": "two words"}])
def test_rules_that_look_for_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"say what to look for|must be 1 to"):
        AttachmentOptions(**options)


# Header fields


async def test_fields_are_added_set_and_removed_with_what_is_known() -> None:
    options = HeadersOptions(
        add={"X-By": "{sender} for {recipient} {unknown}"},
        set={"X-Score": "{score}", "X-Id": "{id} {client} {helo} {tags}"},
        remove=("X-Mailer", "X-Absent"),
    )
    verdict = verdict_of(await Headers(options).process(mail(X_Mailer="me", X_Score="0"), context("s@x", "r@x")))
    assert verdict.edits == (
        RemoveHeader("X-Mailer"),
        SetHeader("X-Score", ""),
        SetHeader("X-Id", "0000000000000 192.0.2.1  "),
        AddHeader("X-By", "s@x for r@x {unknown}"),
    )
    assert await Headers(HeadersOptions(remove=("X-Absent",))).process(mail(), context()) is None


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


async def test_the_subject_is_marked() -> None:
    verdict = verdict_of(await Subject(SubjectOptions(mark="[NEWS] ")).process(mail(), context()))
    marks = (MarkSubject("[NEWS] "),)
    assert verdict == Verdict(edits=marks)
    once = edit(b"Subject: hi\r\n\r\n", marks)
    assert once == edit(once, marks) == b"Subject: [NEWS] hi\r\n\r\n"
