"""Rspamd against a real one: actions, envelope, header changes; large mail; broken, hanging, and none at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from sendswitch.bench.peers import free_port, public_folder
from sendswitch.bench.scanners import GTUBE, rspamd
from sendswitch.mail.content import InFile
from sendswitch.mail.edits import AddHeader, RemoveHeader, SetHeader
from sendswitch.mail.envelope import Client
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.mail.verdict_checks import checked
from sendswitch.processors.base import Context
from sendswitch.processors.rspamd import Rspamd, RspamdOptions
from sendswitch.testing import context, mail, message, opinion
from tests.conftest import need

PLAIN = mail("nothing to see\r\n", X_Other="1")


def marked(first: str) -> Mail:
    """A message that Rspamd's test patterns decide about: Y add header, Z rewrite subject, X reject."""
    return mail(f"{first}{GTUBE[1:]}\r\n")


@pytest.fixture(scope="module")
def scanner() -> Iterator[str]:
    need("rspamd", "rspamd")
    with public_folder("rspamd") as folder, rspamd(folder / "rspamd") as (_, port):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def asking(url: str, **options: Any) -> AsyncIterator[Rspamd]:
    processor = Rspamd(RspamdOptions(url=url, **options))
    try:
        yield processor
    finally:
        await processor.close()


async def said(url: str, mail: Mail, asked: Context | None = None, **options: Any) -> Verdict:
    async with asking(url, **options) as processor:
        verdict = await opinion(processor, mail, asked or context())
        assert verdict is not None
        return checked(verdict)


@pytest.mark.parametrize(
    ("first", "options", "action", "tags", "edits"),
    [
        ("Y", {}, None, ("SPAM",), ()),
        ("Z", {}, None, ("SPAM",), (SetHeader("Subject", "*** SPAM *** test"),)),
        ("X", {}, Action.DENY, ("SPAM",), ()),
        ("X", {"reject": "quarantine"}, Action.QUARANTINE, ("SPAM",), ()),
        ("X", {"reject": "tag"}, None, ("SPAM",), ()),
    ],
)
async def test_the_action_is_carried_out(
    scanner: str, first: str, options: dict[str, Any], action: Action | None, tags: Any, edits: Any
) -> None:
    verdict = await said(scanner, marked(first), **options)
    assert (verdict.action, verdict.tags, verdict.edits) == (action, tags, edits)
    assert " by GTUBE" in verdict.reason
    if action is Action.DENY:
        assert str(verdict.reply) == "550 5.7.1 Gtube pattern"


async def test_the_whole_envelope_is_known_to_it_and_its_header_changes_are_made(scanner: str) -> None:
    client = Client(address="198.51.100.7", name="mx.example.org", helo="mx.example.org", ident="4XYZ", login="ann")
    verdict = await said(scanner, PLAIN, replace(context("s@example.org", "Joe@example.test"), client=client))
    assert verdict.action is None
    assert AddHeader("X-Test", "198.51.100.7 mx.example.org s@example.org Joe@example.test 4XYZ ann") in verdict.edits
    assert verdict.score is not None
    assert verdict.reason.startswith(f"no action, score {verdict.score:g} of 15 by ")
    assert RemoveHeader("X-Other") in (await said(scanner, PLAIN)).edits
    assert (await said(scanner, PLAIN, headers=False)).edits == ()


async def test_one_address_that_is_no_ascii_and_a_helo_that_means_no_good(scanner: str) -> None:
    client = Client(address="198.51.100.7", helo="mx\r\nRcpt: other@example.test")
    verdict = await said(scanner, PLAIN, replace(context("jörg@example.org"), client=client))
    (added,) = [edit for edit in verdict.edits if isinstance(edit, AddHeader)]
    assert " ann@example.test " in added.value


async def test_a_file_is_streamed_and_a_large_one_is_not_sent(scanner: str, tmp_path: Path) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(message(f"{'x' * 70}\r\n" * 10_000))
    large = Mail(InFile(path, path.stat().st_size))
    assert "MIME_GOOD" in (await said(scanner, large)).reason  # it had the whole, or it would still wait
    assert (await said(scanner, large, largest="300kB")).tags == ("UNSCANNED",)
    assert (await said(scanner, large, largest="300kB", too_large="skip")).tags == ()
    with pytest.raises(ValueError, match="more than largest = 300000"):
        await said(scanner, large, largest="300kB", too_large="defer")


ANSWER: dict[str, Any] = {"action": "no action", "score": 1.5, "required_score": 15, "symbols": {}}


def told(**changes: Any) -> bytes:
    return orjson.dumps(ANSWER | changes)


@asynccontextmanager
async def speaking(body: bytes, status: str = "200 OK", *, hang: bytes = b"") -> AsyncIterator[str]:
    """Somebody who answers with this, whatever is asked, but not to what has `hang` in it."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if hang and hang in data:
                await reader.read()
                break
            if b"nothing to see\r\n" in data:
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", port := free_port())
    async with server:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("answer", "action", "reply"),
    [
        ({"action": "soft reject"}, Action.DENY, "451 4.7.1 Try again later"),
        (
            {"action": "soft reject", "messages": {"smtp_message": "Wait\r\n250 ok"}},
            Action.DENY,
            "451 4.7.1 Wait 250 ok",
        ),
        ({"action": "reject"}, Action.DENY, "550 5.7.1 Message refused as spam"),
        ({"action": "greylist"}, None, "None"),
        ({"action": "quarantine"}, Action.QUARANTINE, "None"),
        ({"action": "discard"}, Action.QUARANTINE, "None"),
    ],
)
async def test_actions_that_need_more_than_a_pattern(answer: dict[str, Any], action: Action | None, reply: str) -> None:
    async def inside() -> Verdict:
        async with speaking(told(**answer)) as url:
            return await said(url, PLAIN)

    verdict = await inside()
    assert (verdict.action, str(verdict.reply)) == (action, reply)


async def test_field_values_in_every_shape_that_a_milter_knows() -> None:
    add = {
        "X-One": "1",
        "X-Two": {"value": "a;\r\n\tb", "order": 1},
        "X-Three": ["1", {"value": "2"}],
    }
    remove = {"X-Other": 1, "X-Gone": 0, "To": 2, "Subject": 0}

    async def inside() -> Verdict:
        async with speaking(told(milter={"add_headers": add, "remove_headers": remove})) as url:
            return await said(url, PLAIN)

    assert (await inside()).edits == (
        *(RemoveHeader("X-Other"), RemoveHeader("Subject")),
        *(AddHeader("X-One", "1"), AddHeader("X-Two", "a; b"), AddHeader("X-Three", "1"), AddHeader("X-Three", "2")),
    )


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (b"", "200 OK", "said what is no answer: ''"),
        (b"{", "200 OK", "said what is no answer"),
        (b"[]", "200 OK", "said what is no answer"),
        (b"{}", "200 OK", "said what is no answer"),
        (told(score="high"), "200 OK", "said what is no answer"),
        (told(action="explode"), "200 OK", "'explode', which nobody knows"),
        (told(milter={"add_headers": {"Bad Name": "1"}}), "200 OK", "no header field name"),
        (b"x" * 2_000_000, "200 OK", "more than 1048576 bytes"),
        (b"Permission denied", "403 Forbidden", "answered 403: Permission denied"),
    ],
)
async def test_what_is_no_answer_is_a_failure(body: bytes, status: str, problem: str) -> None:
    async with speaking(body, status) as url:
        with pytest.raises(ValueError, match=problem):
            await said(url, PLAIN)


async def test_one_that_closes_halfway_or_is_not_there_is_named() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"to see\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + told())
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", port := free_port())
    async with server:
        with pytest.raises(OSError, match=f"http://127.0.0.1:{port}/checkv2 could not be asked"):
            await said(f"http://127.0.0.1:{port}", PLAIN)
    with pytest.raises(OSError, match=f"http://127.0.0.1:{port}/checkv2 could not be asked"):
        await said(f"http://127.0.0.1:{port}", PLAIN)


async def test_one_that_is_slow_for_one_mail_holds_up_no_other() -> None:
    async with speaking(told(), hang=b"Subject: slow") as url, asking(url, connections=2) as processor:
        slow = asyncio.create_task(
            asyncio.wait_for(opinion(processor, mail("nothing to see\r\n", Subject="slow"), context()), 3)
        )
        await asyncio.sleep(0)
        for _ in range(99):
            assert await opinion(processor, PLAIN, context()) is not None
        assert not slow.done()
        with pytest.raises(TimeoutError):
            await slow


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:11333", "http://", "http://[::1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL"):
        RspamdOptions(url=url)
