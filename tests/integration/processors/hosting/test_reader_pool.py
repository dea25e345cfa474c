"""Content is read in processes that can be killed, with a fair share for each user."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sendswitch.deadline import within
from sendswitch.mail.content import InFile, InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Deferral, Verdict
from sendswitch.pipeline.chain import build
from sendswitch.processors import base
from sendswitch.processors.attachment import Attachment, AttachmentOptions
from sendswitch.processors.hosting.reader_pool import InProcesses, Pool, ReaderFailed
from sendswitch.processors.sieve import Sieve, SieveOptions
from sendswitch.testing import context
from tests.mime_samples import HEAD, TEXT, multipart, part, zipped

RAW = HEAD + multipart(TEXT, part(zipped({"evil.exe": b"MZ"}), "a.zip"))


@pytest.fixture(scope="module")
def readers() -> Iterator[InProcesses]:
    made = InProcesses(1)
    yield made
    made.close()


def attachment(readers: base.Readers) -> Attachment:
    step = Attachment(AttachmentOptions(names=("*.exe",)))
    step.setup(base.Services(readers=readers))
    return step


async def test_the_same_is_read_there_as_here(readers: InProcesses, tmp_path: Path) -> None:
    here = await Attachment(AttachmentOptions(names=("*.exe",))).process(Mail(InMemory(RAW)), context())
    assert here is not None
    assert await attachment(readers).process(Mail(InMemory(RAW)), context()) == here
    file = tmp_path / "x.eml"
    file.write_bytes(RAW)
    assert await attachment(readers).process(Mail(InFile(file, len(RAW))), context()) == here
    script = Sieve(SieveOptions(script='require ["fileinto","body"]; if body :contains "hello" { fileinto "A"; }'))
    script.setup(base.Services(readers=readers))
    verdict = await script.process(Mail(InMemory(RAW)), context())
    assert verdict is not None
    assert verdict.tags == ("A",)
    mail = Mail(InMemory(b"Content-Type: multipart/mixed\r\n\r\nx\r\n"))
    assert not mail.examined
    await readers.findings(mail, context())
    assert mail.examined
    assert [str(finding) for finding in mail.findings] == ["unreadable: it is a multipart without a boundary"]
    told = await readers.described(Mail(InMemory(RAW)), context(), thin=True)
    assert [one["name"] for one in told["attachments"]] == ["a.zip"]


class Busy:
    """A step that computes for ever, in a reader."""

    use: ClassVar[str] = "sieve"
    waits_for_names: ClassVar[bool] = False

    def __init__(self, script: str) -> None:
        self._script = script

    def options_json(self) -> dict[str, Any]:
        return {"script": self._script}

    def read(self, mail: Mail, context: base.Context) -> Any:
        raise AssertionError


# A pattern that RE2 takes long for, so that one comparison is work for a minute.
SLOW = "a" * 60_000_000


def slow_file(folder: Path) -> Mail:
    file = folder / "slow.eml"
    if not file.exists():
        file.write_bytes(b"Subject: x\r\n\r\n" + SLOW.encode())
    return Mail(InFile(file, file.stat().st_size))


BUSY = Busy('require "body"; ' + "".join(f'if body :raw :contains "ab{n}" {{ discard; }}\n' for n in range(900)))


async def test_what_is_too_slow_is_killed_and_others_go_on(readers: InProcesses, tmp_path: Path) -> None:
    about = context(recipient="slow@example.test")
    began = time.monotonic()
    with suppress(TimeoutError, ReaderFailed):
        async with within(0.5):
            await readers.read(BUSY, slow_file(tmp_path), about)
    assert time.monotonic() - began < 15
    assert about.broke == ["the reader of sieve"]
    assert await attachment(readers).process(Mail(InMemory(RAW)), context()) is not None


async def test_one_user_does_not_keep_others_waiting(readers: InProcesses, tmp_path: Path) -> None:
    mail = slow_file(tmp_path)

    async def slow() -> None:
        with suppress(TimeoutError, ReaderFailed):
            async with within(12):
                await readers.read(BUSY, mail, context(recipient="slow@example.test"))

    busy = [asyncio.create_task(slow()) for _ in range(4)]
    await asyncio.sleep(0.3)
    began = time.monotonic()
    async with within(8):
        await attachment(readers).process(Mail(InMemory(RAW)), context(recipient="other@example.test"))
    assert time.monotonic() - began < 8
    for task in busy:
        task.cancel()
    await asyncio.wait(busy)


async def test_waiting_for_a_reader_costs_no_time_of_the_step(tmp_path: Path) -> None:
    single = InProcesses(1)

    async def inside() -> None:
        mail = slow_file(tmp_path)
        about = context(recipient="same@example.test")

        async def slow() -> None:
            with suppress(TimeoutError, ReaderFailed):
                async with within(1.5):
                    await single.read(BUSY, mail, about)

        first = asyncio.create_task(slow())
        await asyncio.sleep(0.2)
        async with within(0.8):  # less than the first takes, and it is the same user
            found = await attachment(single).process(Mail(InMemory(RAW)), about)
        assert found is not None
        await first

    try:
        await inside()
    finally:
        single.close()


async def test_memory_has_a_limit(tmp_path: Path) -> None:
    pool = InProcesses(1)
    pool.pools[False].close()
    pool.pools[False] = Pool(1, memory=60_000_000)

    async def inside() -> None:
        about = context()
        with pytest.raises(ReaderFailed, match=r"memory|ended"):
            await pool.read(BUSY, slow_file(tmp_path), about)
        assert about.broke
        assert await attachment(pool).process(Mail(InMemory(RAW)), context()) is not None

    try:
        await inside()
    finally:
        pool.close()


async def test_a_reader_that_is_killed_from_outside_is_a_failure_of_that_message(readers: InProcesses) -> None:
    await attachment(readers).process(Mail(InMemory(RAW)), context())
    for child in readers.pools[False].idle:
        os.kill(child.pid, 9)
    about = context()
    with suppress(ReaderFailed):
        await attachment(readers).process(Mail(InMemory(RAW)), about)
    for _ in range(3):
        with suppress(ReaderFailed):
            await attachment(readers).process(Mail(InMemory(RAW)), context())
    assert await attachment(readers).process(Mail(InMemory(RAW)), context()) is not None


async def test_a_nursery_that_died_is_started_again() -> None:
    pool = InProcesses(1)

    async def inside() -> None:
        await attachment(pool).process(Mail(InMemory(RAW)), context())
        nursery = pool.pools[False].nursery.process
        assert nursery is not None
        nursery.kill()
        nursery.wait()
        pool.pools[False].idle.pop().close()
        assert await attachment(pool).process(Mail(InMemory(RAW)), context()) is not None

    try:
        await inside()
    finally:
        pool.close()


async def test_what_a_step_raises_there_is_a_failure_of_the_step(readers: InProcesses) -> None:
    script = Sieve(SieveOptions(script="keep;"))
    with pytest.raises(ReaderFailed, match="line 1"):
        await readers.read(replace_script(script, "nonsense"), Mail(InMemory(RAW)), context())


def replace_script(step: Sieve, script: str) -> Sieve:
    step.options = step.options.model_copy(update={"script": script})
    step.options.model_fields_set.add("script")
    return step


async def test_a_condition_about_findings_reads_the_message_in_a_reader(readers: InProcesses) -> None:
    from sendswitch.processors.registry import check

    site = base.Services(readers=readers)
    chain = build(check('[[step]]\nuse = "tag"\ntags = ["ODD"]\nwhen = "is:unreadable"\n', "t"), 5.0, site)
    odd = await chain.run(Mail(InMemory(b"Content-Type: multipart/mixed\r\n\r\nx\r\n")), context())
    plain = await chain.run(Mail(InMemory(RAW)), context())
    assert isinstance(odd, Verdict)
    assert isinstance(plain, Verdict)
    assert (odd.tags, plain.tags) == (("ODD",), ())


async def test_a_step_whose_reader_is_killed_breaks_the_pipeline(readers: InProcesses, tmp_path: Path) -> None:
    from sendswitch.processors.registry import check

    text = f"[[step]]\nuse = \"sieve\"\nlimit = \"500ms\"\nscript = '''\n{BUSY.options_json()['script']}'''\n"
    chain = build(check(text, "t"), 5.0, base.Services(readers=readers))
    answer = await chain.run(slow_file(tmp_path), replace(context(), message="0000000000001"))
    assert isinstance(answer, Deferral)
    assert answer.why == "broke"
