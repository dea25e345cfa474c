"""Processors that keep a little for themselves: rate, delay, save, and the message as JSON."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from sendswitch.mail.content import InFile, InMemory
from sendswitch.mail.ids import first_at, to_text
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action
from sendswitch.processors import rate_counters
from sendswitch.processors.base import Services
from sendswitch.processors.delay import Delay, DelayOptions
from sendswitch.processors.rate import Rate, RateOptions
from sendswitch.processors.rate_counters import RateCounters
from sendswitch.processors.save import Save, SaveOptions
from sendswitch.processors.services.payload import described
from sendswitch.testing import context, mail, message
from tests.verdicts import verdict_of

NOW = 1_700_000_000.0


async def sent(processor: Rate, number: int, sender: str = "a@x.example", now: float = NOW) -> list[bool]:
    """Whether each of so many messages was let through."""
    start = first_at(now)
    asked = [replace(context(sender, now=now), message=to_text(start + n)) for n in range(number)]
    return [await processor.process(mail(), one) is None for one in asked]


async def test_no_more_than_the_most_are_let_through_in_a_period() -> None:
    processor = Rate(RateOptions(most=3, within=60))
    assert await sent(processor, 5) == [True, True, True, False, False]
    assert await sent(processor, 1, sender="b@x.example") == [True]
    # Half a period into the next, half of the last one still counts.
    assert await sent(processor, 3, now=NOW + 90) == [True, True, False]
    assert await sent(processor, 4, now=NOW + 1000) == [True, True, True, False]


@pytest.mark.parametrize(("per", "other"), [("domain", "b@x.example"), ("client", "b@y.example")])
async def test_what_is_counted(per: Any, other: str) -> None:
    processor = Rate(RateOptions(most=1, per=per))
    assert await sent(processor, 1) == [True]
    assert await sent(processor, 1, sender=other, now=NOW + 1) == [False]


async def test_a_message_that_is_offered_again_is_counted_once() -> None:
    processor = Rate(RateOptions(most=2))
    asked = context(now=NOW)
    assert [await processor.process(mail(), asked) for _ in range(5)] == [None] * 5
    assert await sent(processor, 2, sender=asked.sender) == [True, False]


@pytest.mark.parametrize(
    ("action", "expected", "reply"),
    [
        ("defer", Action.DENY, "451 4.7.1 Too many messages, try again later"),
        ("deny", Action.DENY, "554 5.7.1 Enough"),
        ("quarantine", Action.QUARANTINE, "None"),
        ("tag", None, "None"),
    ],
)
async def test_what_too_much_means(action: Any, expected: Action | None, reply: str) -> None:
    processor = Rate(RateOptions(most=1, within=60, action=action, tag="MUCH", reply="554 5.7.1 Enough"))
    await sent(processor, 1, sender="")
    asked = replace(context("", now=NOW), message=to_text(first_at(NOW + 1)))
    verdict = verdict_of(await processor.process(mail(), asked))
    assert (verdict.action, verdict.tags, str(verdict.reply)) == (expected, ("MUCH",), reply)
    assert verdict.reason == "the null sender sent more than 1 messages in 60 s"


async def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("PLACES", "SENDERS", "COUNTED"):
        monkeypatch.setattr(rate_counters, limit, 10)
    counters = RateCounters()
    for n in range(100):
        assert await counters.within_limit("step 1", f"{n}@x.example", str(n), 1, 60, NOW + n)
        await counters.within_limit(f"step {n}", "a@x.example", "1", 1, 60, NOW)
    assert len(counters.places) == 10
    assert not await counters.within_limit("step 99", "a@x.example", "2", 1, 60, NOW)
    steps = [counters.places[f"step {n}"] for n in range(91, 100)]
    assert {len(step.senders) for step in steps} == {1}


async def test_senders_and_messages_that_are_remembered_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_counters, "SENDERS", 10)
    monkeypatch.setattr(rate_counters, "COUNTED", 10)
    counters = RateCounters()
    for n in range(100):
        await counters.within_limit("step", f"{n}@x.example", str(n), 1, 60, NOW + n)
    assert len(counters.places["step"].senders) == len(counters.places["step"].counted) == 10


async def test_the_workers_of_a_node_count_together() -> None:
    counters = RateCounters()
    both = [Rate(RateOptions(most=3)) for _ in range(2)]
    other = Rate(RateOptions(most=3))
    for processor in both:
        processor.setup(Services(counters=counters, place="ann@example.test 1 1"))
    other.setup(Services(counters=counters, place="ann@example.test 1 2"))
    assert all(processor.waits for processor in both)
    assert not Rate.waits
    asked = [replace(context(now=NOW), message=to_text(first_at(NOW) + n)) for n in range(5)]
    found = [await both[n % 2].process(mail(), one) is None for n, one in enumerate(asked)]
    assert found == [True, True, True, False, False]
    assert await other.process(mail(), asked[4]) is None


async def test_mail_waits_until_it_is_old_enough() -> None:
    delay = Delay(DelayOptions(time="10m"))
    came = replace(context(now=NOW + 60), message=to_text(first_at(NOW)))
    verdict = verdict_of(await delay.process(mail(), came))
    assert (verdict.action, verdict.hold, verdict.then) == (Action.PENDING, 540, "ask")
    assert await delay.process(mail(), replace(came, now=NOW + 600)) is None
    assert await delay.process(mail(), replace(came, now=NOW + 599.995)) is None
    tried = verdict_of(await delay.process(mail(), context(now=NOW)))  # a message that never came
    assert tried.hold == 600


# Saving


@pytest.fixture
def asked() -> Any:
    return replace(context(now=NOW), message=to_text(first_at(NOW)))


async def test_a_message_is_saved_byte_for_byte_and_once(tmp_path: Path, asked: Any) -> None:
    save, raw = Save(SaveOptions(folder=tmp_path / "kept")), message("hello\r\n")
    verdict = verdict_of(await save.process(Mail(InMemory(raw)), asked))
    (file,) = (tmp_path / "kept").iterdir()
    assert file.read_bytes() == raw
    assert verdict.reason == f"saved as {file}"
    assert (file.stat().st_mode | file.parent.stat().st_mode) & 0o077 == 0
    stamp = file.stat().st_mtime_ns
    await save.process(Mail(InMemory(raw)), asked)
    assert [path.stat().st_mtime_ns for path in file.parent.iterdir()] == [stamp]
    await save.process(Mail(InMemory(raw)), replace(asked, recipient=context(recipient="joe@x").recipient))
    assert len(list(file.parent.iterdir())) == 2


async def test_nobody_can_lay_a_trap_in_a_folder_that_is_there(
    tmp_path: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda n: "known")
    folder, victim = tmp_path / "kept", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    save = Save(SaveOptions(folder=folder))
    await save.process(mail(), asked)
    (file,) = folder.iterdir()
    file.unlink()
    (folder / f".{file.name}.part.known").symlink_to(victim)
    with pytest.raises(FileExistsError):
        await save.process(mail(), asked)
    assert victim.read_text() == "mine"


async def test_nothing_is_saved_in_a_rehearsal(tmp_path: Path, asked: Any) -> None:
    await Save(SaveOptions(folder=tmp_path / "kept")).process(mail(), replace(asked, rehearsal=True))
    assert not (tmp_path / "kept").exists()


async def test_a_large_file_is_saved_in_pieces(tmp_path: Path, asked: Any) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(message("x" * 1_000_000))
    await Save(SaveOptions(folder=tmp_path / "kept")).process(Mail(InFile(path, path.stat().st_size)), asked)
    (file,) = (tmp_path / "kept").iterdir()
    assert file.read_bytes() == path.read_bytes()


async def test_a_maildir_as_mail_programs_know_it(tmp_path: Path, asked: Any) -> None:
    save, box = Save(SaveOptions(folder=tmp_path / "box", format="maildir")), tmp_path / "box"
    await save.process(mail(), asked)
    (file,) = (box / "new").iterdir()
    assert file.name.startswith("1700000000.")
    read = box / "cur" / f"{file.name}:2,S"
    file.rename(read)
    await save.process(mail(), asked)
    assert list((box / "new").iterdir()) == list((box / "tmp").iterdir()) == []


async def test_a_crash_leaves_nothing_under_the_name(
    tmp_path: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    save = Save(SaveOptions(folder=tmp_path / "kept"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            await save.process(mail(), asked)
    assert [path.name for path in (tmp_path / "kept").iterdir() if not path.name.startswith(".")] == []
    await save.process(mail(), asked)
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".eml"]


@pytest.mark.parametrize("folder", ["kept", "/tmp/../etc"])
def test_a_folder_must_be_named_whole(folder: str) -> None:
    with pytest.raises(ValueError, match="must be an absolute path"):
        SaveOptions(folder=Path(folder))


# As JSON

WITH_ALL = (
    b"From: =?utf-8?q?J=C3=B6rg?= <joe@example.org>\r\nTo: Ann <ann@example.test>, bob@example.test\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Sat, 21 Nov 2026 10:00:00 +0100\r\nMessage-ID: <x@y>\r\n"
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
    b"--b\r\nContent-Type: text/html\r\n\r\n<b>hello</b>\r\n"
    b'--b\r\nContent-Type: image/gif; name="a.gif"\r\nContent-Transfer-Encoding: base64\r\n\r\nR0lG\r\n--b--\r\n'
)


async def test_a_message_as_json(tmp_path: Path, asked: Any) -> None:
    asked = replace(asked, recipient=context(recipient="ann+news@example.test").recipient, tags=("SPAM",), score=5.5)
    await Save(SaveOptions(folder=tmp_path / "kept", format="json")).process(Mail(InMemory(WITH_ALL)), asked)
    (file,) = (tmp_path / "kept").iterdir()
    told = orjson.loads(file.read_bytes())
    headers = told.pop("headers")
    assert ["Message-ID", "<x@y>"] in headers
    assert told["attachments"][0].pop("sha256") == hashlib.sha256(b"GIF").hexdigest()
    assert told == {
        "id": asked.message,
        "envelope": {
            "from": "sender@example.org",
            "to": "ann+news@example.test",
            "client": {"ip": "192.0.2.1", "name": "", "helo": ""},
        },
        "size": len(WITH_ALL),
        "subject": "Grüße",
        "from": "Jörg <joe@example.org>",
        "to": ["ann@example.test", "bob@example.test"],
        "cc": [],
        "date": "2026-11-21T09:00:00+00:00",
        "message_id": "<x@y>",
        "mailbox_hash": "news",
        "text": "hello",
        "html": "<b>hello</b>",
        "attachments": [{"name": "a.gif", "type": "image/gif", "size": 3, "content": "R0lG"}],
        "tags": ["SPAM"],
        "score": 5.5,
    }


def test_thin_leaves_the_contents_out() -> None:
    told = described(Mail(InMemory(WITH_ALL)), context(), thin=True)
    assert "text" not in told
    assert "content" not in told["attachments"][0]


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("never", None),
        ("", None),
        ("Sat, 21 Nov 2026 10:00:00 -0000", "2026-11-21T10:00:00"),
        ("1 1 1 1:1:1:1 +9999", None),
    ],
)
def test_dates_and_rubbish_are_always_json(date: str, expected: str | None) -> None:
    raw = f"Date: {date}\r\n".encode() + b"Subject: \xff\xfe\x00 =?utf-7?q?+2AA-?=\r\n\r\n\xff\x00"
    told = described(Mail(InMemory(raw)), context())
    assert told["date"] == expected
    assert "\0" not in orjson.dumps(told).decode()
