"""ClamAV against a real clamd: found and clean, over both kinds of sockets, large, broken, and none at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import free_port
from sendswitch.bench.scanners import EICAR, clamd
from sendswitch.mail.content import InFile, InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.processors.clamav import ClamAV, ClamAVOptions, TooLarge
from sendswitch.processors.services import connections as sharing
from sendswitch.testing import context, message, opinion
from tests.conftest import need

CLEAN = Mail(InMemory(message("nothing to see")))
VIRUS = Mail(InMemory(message(EICAR)))


@pytest.fixture(scope="module")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    need("clamd", "clamav-daemon")
    with clamd(tmp_path_factory.mktemp("clamd"), largest="1M") as (path, port):
        yield f"unix:{path}", f"127.0.0.1:{port}"


@asynccontextmanager
async def asking(address: str, **options: Any) -> AsyncIterator[ClamAV]:
    processor = ClamAV(ClamAVOptions(address=address, **options))
    try:
        yield processor
    finally:
        await processor.close()


def idle(processor: ClamAV) -> list[object]:
    clamd = processor.clamd.client
    assert clamd is not None
    return list(clamd.idle)


@pytest.mark.parametrize("socket", [0, 1], ids=["unix", "tcp"])
async def test_a_virus_is_found_and_clean_mail_goes_on(scanner: tuple[str, str], socket: int) -> None:
    async with asking(scanner[socket]) as clamav:
        await opinion(clamav, CLEAN, context())
        (session,) = idle(clamav)
        for _ in range(3):  # one connection for all
            found = await opinion(clamav, VIRUS, context())
            assert found == Verdict(Action.QUARANTINE, tags=("VIRUS",), reason="virus Eicar-Test-Signature.UNOFFICIAL")
            assert await opinion(clamav, CLEAN, context()) == Verdict(reason="no virus found")
        assert idle(clamav) == [session]


async def test_what_a_virus_means_is_configured(scanner: tuple[str, str]) -> None:
    async with asking(scanner[0], action="deny", reply="554 5.7.0 No thanks") as clamav:
        found = await opinion(clamav, VIRUS, context())
        assert found is not None
        assert (found.action, str(found.reply)) == (Action.DENY, "554 5.7.0 No thanks")
    async with asking(scanner[0], action="tag") as clamav:
        found = await opinion(clamav, VIRUS, context())
        assert found is not None
        assert (found.action, found.tags) == (None, ("VIRUS",))


async def test_a_file_is_streamed(scanner: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(message("x" * 700_000 + EICAR))

    async with asking(scanner[1]) as clamav:
        found = await opinion(clamav, Mail(InFile(path, path.stat().st_size)), context())
        assert found is not None
        assert found.tags == ("VIRUS",)


@pytest.mark.parametrize(("size", "largest"), [(1_100_000, "25MB"), (20_000_000, "25MB"), (1_100_000, "1MB")])
async def test_what_is_too_large_is_never_clean(
    scanner: tuple[str, str], size: int, largest: str, tmp_path: Path
) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(message("x" * size))
    large = Mail(InFile(path, path.stat().st_size))

    # Known from the configuration, or heard from clamd, which takes 1 MiB here.
    async with asking(scanner[1], largest=largest) as clamav:
        for _ in range(2):
            verdict = await opinion(clamav, large, context())
            assert verdict is not None
            assert (verdict.action, verdict.tags) == (Action.QUARANTINE, ("UNSCANNED",))
    async with asking(scanner[0], too_large="tag") as clamav:
        verdict = await opinion(clamav, large, context())
        assert verdict is not None
        assert (verdict.action, verdict.tags) == (None, ("UNSCANNED",))
    async with asking(scanner[0], too_large="defer") as clamav:
        with pytest.raises(TooLarge, match="StreamMaxLength"):
            await opinion(clamav, large, context())


async def test_no_more_are_scanned_at_once_than_configured(scanner: tuple[str, str]) -> None:
    async with asking(scanner[0], connections=3) as clamav:
        found = await asyncio.gather(*(opinion(clamav, VIRUS, context()) for _ in range(40)))
        assert all(verdict is not None and verdict.tags == ("VIRUS",) for verdict in found)
        assert len(idle(clamav)) <= 3


async def test_all_pipelines_share_the_connections(scanner: tuple[str, str]) -> None:
    many = [ClamAV(ClamAVOptions(address=scanner[0], connections=2)) for _ in range(20)]
    found = await asyncio.gather(*(opinion(one, VIRUS, context()) for one in many))
    assert all(verdict is not None and verdict.tags == ("VIRUS",) for verdict in found)
    assert 1 <= len(idle(many[0])) <= 2
    for one in many[1:]:
        await one.close()
    assert await opinion(many[0], CLEAN, context()) == Verdict(reason="no virus found")
    last = many[0].clamd.client
    await many[0].close()
    assert last is not None
    assert last.idle == []
    assert not sharing.CLIENTS[asyncio.get_running_loop()]


async def test_a_clamd_that_was_started_again_is_asked_again(tmp_path: Path) -> None:
    need("clamd", "clamav-daemon")
    port = free_port()

    async with asking(f"127.0.0.1:{port}") as clamav:
        with pytest.raises(OSError, match=f"clamd at 127.0.0.1:{port} cannot be reached"):
            await opinion(clamav, CLEAN, context())
        for _ in range(2):
            server = clamd(tmp_path, port=port)
            await asyncio.to_thread(server.__enter__)
            assert await opinion(clamav, VIRUS, context()) is not None
            await asyncio.to_thread(server.__exit__, None, None, None)


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (b"", "closed without an answer"),
        (b"1: stream: OK", "closed without an answer"),
        (b"1: stream: UNKNOWN COMMAND\0", "is no answer"),
        (b"x" * 100_000, "more than 4096 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n\0", "is no answer"),
        (b"1: stream: OK FOUND of nothing\0", "is no answer"),
    ],
)
async def test_what_is_no_answer_is_never_clean(says: bytes, problem: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\0\0\0\0")
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", port := free_port())
    async with server, asking(f"127.0.0.1:{port}") as clamav:
        for _ in range(2):
            with pytest.raises((EOFError, ValueError), match=problem):
                await opinion(clamav, CLEAN, context())


async def test_one_that_hangs_holds_up_only_who_asked_it() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", port := free_port())
    async with server, asking(f"127.0.0.1:{port}", connections=1) as clamav:
        for _ in range(3):  # each gives its place back
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await opinion(clamav, CLEAN, context())
        assert idle(clamav) == []
