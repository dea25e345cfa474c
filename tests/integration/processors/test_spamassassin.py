"""SpamAssassin against a real spamd: score, bands, preferences; large mail; broken, hanging, and none at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import free_port, public_folder
from sendswitch.bench.scanners import GTUBE, spamd
from sendswitch.mail.content import InFile
from sendswitch.mail.edits import SetHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.processors.spamassassin import SpamAssassin, SpamAssassinOptions
from sendswitch.testing import context, mail, message, opinion
from tests.conftest import need

HAM, SPAM = mail("nothing to see\r\n"), mail(f"{GTUBE}\r\n")
JOE, ANN = context(recipient="Joe+x@example.test"), context(recipient="Ann@example.test")


@pytest.fixture(scope="module")
def scanner() -> Iterator[tuple[str, str]]:
    need("spamd", "spamd")
    with public_folder("spamd") as folder, spamd(folder / "spamd") as (path, port):
        yield f"unix:{path}", f"127.0.0.1:{port}"


@asynccontextmanager
async def asking(address: str, **options: Any) -> AsyncIterator[SpamAssassin]:
    processor = SpamAssassin(SpamAssassinOptions(address=address, **options))
    try:
        yield processor
    finally:
        await processor.close()


async def said(address: str, mail: Mail = SPAM, **options: Any) -> Verdict:
    async with asking(address, **options) as processor:
        verdict = await opinion(processor, mail, JOE)
        assert verdict is not None
        return verdict


@pytest.mark.parametrize("socket", [0, 1], ids=["unix", "tcp"])
async def test_spam_is_tagged_and_other_mail_goes_on(scanner: tuple[str, str], socket: int) -> None:
    spam, ham = await said(scanner[socket]), await said(scanner[socket], HAM)
    assert (spam.action, spam.tags) == (None, ("SPAM",))
    assert spam.score is not None
    assert spam.score > 1000
    assert spam.reason.startswith(f"score {spam.score:g} of 5 by GTUBE, ")
    assert (ham.action, ham.tags, ham.edits) == (None, (), ())
    assert ham.score is not None
    assert 0 < ham.score < 5
    assert "MISSING_DATE" in ham.reason


@pytest.mark.parametrize(
    ("bands", "action", "tags"),
    [
        ({"quarantine": 900}, Action.QUARANTINE, ("SPAM",)),
        ({"quarantine": 900, "deny": 950}, Action.DENY, ("SPAM",)),
        ({"deny": 5000}, None, ("SPAM",)),
        ({"tag": 5000}, None, ()),
        ({"tag": 5000, "quarantine": 6000, "deny": 7000}, None, ()),
    ],
)
async def test_what_comes_of_it_goes_by_the_score(
    scanner: tuple[str, str], bands: dict[str, Any], action: Action | None, tags: tuple[str, ...]
) -> None:
    verdict = await said(scanner[1], reply="554 5.7.0 No", **bands)
    assert (verdict.action, verdict.tags) == (action, tags)
    assert str(verdict.reply) == ("554 5.7.0 No" if action is Action.DENY else "None")


def test_bands_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="must rise"):
        SpamAssassinOptions(quarantine=9, deny=8)


async def test_each_recipient_has_preferences(scanner: tuple[str, str]) -> None:
    async with (
        asking(scanner[1]) as own,
        asking(scanner[1], user="") as site,
        asking(scanner[1], user="{local}@{domain}") as parts,
    ):
        for processor, who, tagged in ((own, ANN, False), (own, JOE, True), (site, ANN, True), (parts, ANN, False)):
            verdict = await opinion(processor, SPAM, who)
            assert verdict is not None
            assert bool(verdict.tags) is tagged


async def test_the_field_replaces_what_a_stranger_wrote(scanner: tuple[str, str]) -> None:
    (edit,) = (await said(scanner[1], header=True)).edits
    assert isinstance(edit, SetHeader)
    assert edit.name == "X-Spam-Status"
    assert edit.value.startswith("Yes, score=100")
    assert " required=5 tests=GTUBE," in edit.value


async def test_a_file_is_streamed_and_a_large_one_is_not_sent(scanner: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(message(f"{'x' * 70}\r\n" * 5000 + f"{GTUBE}\r\n"))
    large = Mail(InFile(path, path.stat().st_size))

    async def inside() -> None:
        async with asking(scanner[1], largest="300kB", too_large="defer") as processor:
            with pytest.raises(ValueError, match=r"more than largest = 300000"):
                await opinion(processor, large, JOE)

    assert (await said(scanner[1], large)).tags == ("SPAM",)
    assert await said(scanner[1], large, largest="300kB") == Verdict(
        reason=f"{large.size} bytes are more than largest = 300000, so it was not scanned"
    )
    assert (await said(scanner[1], large, largest="300kB", too_large="tag")).tags == ("UNSCANNED",)
    await inside()


async def test_other_scores_judge_what_is_on_record(scanner: tuple[str, str]) -> None:
    async with asking(scanner[1]) as processor:
        answer = await processor.query(SPAM, JOE)
    stricter = SpamAssassin(SpamAssassinOptions(deny=10))
    verdict = stricter.evaluate(answer, SPAM, JOE)
    assert verdict is not None
    assert verdict.action is Action.DENY


WHOLE = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 5\r\nSpam: True ; 9.0 / 5.0\r\n\r\nGTUBE"


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (b"", "closed without an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no answer"),
        (WHOLE[:-1], "closed in the middle"),
        (WHOLE[:-8], "closed in the middle"),
        (WHOLE.replace(b"Spam: True ; 9.0 / 5.0\r\n", b""), "closed in the middle"),
        (WHOLE.replace(b"9.0", b"nan"), "closed in the middle"),
        (b"SPAMD/1.0 74 EX_IOERR\r\n\r\n", "could not scan it: EX_IOERR"),
        (b"x" * 100_000, "more than 65536 bytes"),
    ],
)
async def test_what_is_no_whole_answer_is_a_failure(says: bytes, problem: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"nothing to see\r\n")
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", port := free_port())
    async with server:
        with pytest.raises((EOFError, ValueError), match=problem):
            await said(f"127.0.0.1:{port}", HAM)


async def test_nobody_there_is_named() -> None:
    with pytest.raises(OSError, match=r"spamd at 127\.0\.0\.1:1 cannot be reached"):
        await said("127.0.0.1:1")


async def test_one_that_is_slow_for_one_mail_holds_up_no_other() -> None:
    """Each hangs until its limit and gives its place back; meanwhile the other places are used."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"Subject: slow" in await reader.readuntil(b"see\r\n"):
            await reader.read()
        writer.write(WHOLE)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", port := free_port())
    async with server, asking(f"127.0.0.1:{port}", connections=2) as processor:
        slow = asyncio.create_task(
            asyncio.wait_for(opinion(processor, mail("nothing to see\r\n", Subject="slow"), JOE), 2)
        )
        await asyncio.sleep(0)
        for _ in range(99):
            assert await opinion(processor, HAM, JOE) is not None
        assert not slow.done()
        with pytest.raises(TimeoutError):
            await slow
