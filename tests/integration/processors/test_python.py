"""A user's own program: answers, errors with the line, loops, deaths, prints, changes; others are not touched."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sendswitch.mail.content import InFile
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Deferral, Verdict
from sendswitch.pipeline.chain import Chain, build
from sendswitch.processors import registry
from sendswitch.testing import context, mail
from tests.conftest import need

# Those that look at processes from outside, or compare their numbers.
OUTSIDE = (
    "test_what_it_starts_ends_with_it",
    "test_who_does_not_want_to_end_holds_nobody_up",
    "test_who_fills_the_memory_is_not_the_one_who_finds_it_full",
)
_sandbox: list[str] = []


@pytest.fixture(autouse=True, params=["plain", "sandbox"])
def with_or_without_a_sandbox(request: pytest.FixtureRequest) -> Iterator[None]:
    """All that a program may do, it may do in a sandbox too."""
    if request.param == "sandbox":
        if request.node.originalname in OUTSIDE:
            pytest.skip("it looks from outside")
        need("bwrap", "bubblewrap")
        _sandbox.append('sandbox = "bwrap"\n')
    yield
    _sandbox.clear()


HEAD = "import asyncio, os, time\nfrom sendswitch.mail.verdict import Verdict\n"


async def ask(chain: Chain, **headers: str) -> Verdict:
    answer = await chain.run(mail(**headers), context())
    assert isinstance(answer, Verdict)
    return answer


def chain(folder: Path, body: str, **options: str) -> Chain:
    file = folder / "filter.py"
    file.write_text(
        f"{HEAD}async def process(mail, context):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    )
    extra = "".join(f"{key} = {value}\n" for key, value in options.items())
    text = f'[[step]]\nuse = "python"\nfile = "{file}"\n{extra}{"".join(_sandbox)}'
    return build(registry.check(text, "p"), 5)


async def once(chain: Chain, **headers: str) -> Any:
    try:
        return await chain.run(mail(**headers), context())
    finally:
        await chain.close()


async def test_who_fills_the_memory_is_not_the_one_who_finds_it_full(tmp_path: Path) -> None:
    """The one that finds no room is asked about by itself, and who comes then in a new process."""
    leak = "    os.kept = []\n    try:\n        while True: os.kept.append(bytes(10**7))\n"
    leak += "    except MemoryError: os.kept.pop()"
    body = f"if mail.subject == 'leak':\n{leak}\nelse:\n    bytes(5 * 10**7)\nreturn Verdict.passed(str(os.getpid()))"
    made = chain(tmp_path, body, memory="500_000_000")

    async def each() -> list[Any]:
        try:
            return [await made.run(mail(Subject=subject), context()) for subject in ("leak", "x", "y", "z")]
        finally:
            await made.close()

    answers = await each()
    assert [answer.action for answer in answers] == [Action.PASS] * 4
    full, alone, new, shared = (answer.reason for answer in answers)
    assert full != alone != new
    assert new == shared


async def test_it_sees_the_mail_and_answers(tmp_path: Path) -> None:
    reason = "f'{mail.subject} for {context.recipient.address}'"
    body = f"print('to stdout')\nreturn Verdict.deny({reason}, reply='550 5.7.1 go')"
    verdict = await once(chain(tmp_path, body), Subject="hi")
    assert (verdict.action, verdict.reason, verdict.reply.code) == (Action.DENY, "hi for ann@example.test", 550)
    assert len(verdict.trace[0].version) == 12


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero at filter.py:4: return 1 / 0"),
        ("return 'pass'", "process() returned str; return a Verdict or None"),
        ("return Verdict.forwarded('x>y')", "is no mail address"),
        ("return Verdict.deny('x', reply='250 ok')", "is no refusal"),
        ("raise SystemExit(3)", "the process ended 3 times"),
        ("os.write(2, b'my last words'); os._exit(1)", "the process ended 3 times; it said last: my last words"),
        ("x = [bytes(10**6) for n in range(10**6)]", "MemoryError:  at filter.py:4: x = [bytes(10**6)"),
        ("import json; json.loads('{')", "at filter.py:4: import json; json.loads('{')"),
        ("print('before'); return 1 / 0", "ZeroDivisionError"),
        ("return Verdict(tags=('a b',))", "tag 'a b' must be"),
        ("return {'action': 'pass'}", "process() returned dict; return a Verdict or None"),
        ("os.kill(os.getpid(), 9)", "the process ended 3 times"),
    ],
)
async def test_its_faults_are_told_in_its_authors_words(tmp_path: Path, body: str, told: str) -> None:
    answer = await once(chain(tmp_path, body))
    assert isinstance(answer, Deferral)
    assert told in answer.reason


async def test_what_it_prints_is_told_with_its_own_mail(tmp_path: Path) -> None:
    body = "print('one', mail.subject)\nawait asyncio.sleep(0.1)\nos.sys.stderr.write('two ' + mail.subject)\n"
    body += "if mail.subject == 'b': raise ValueError('no')\n"
    body += "return Verdict.tagged('A', reason='why') if mail.subject == 'a' else None"

    async def inside() -> list[Any]:
        pipeline = chain(tmp_path, body)
        answers = await asyncio.gather(*(pipeline.run(mail(Subject=s), context()) for s in ("a", "b", "c")))
        await pipeline.close()
        return answers

    a, b, c = await inside()
    assert a.trace[0].saw == "why; it printed: one a\ntwo a"
    assert a.reason == "why"
    assert (
        b.trace[0].saw
        == "ValueError: no at filter.py:7: if mail.subject == 'b': raise ValueError('no'); it printed: one b\ntwo b"
    )
    assert c.trace[0].saw == "it printed: one c\ntwo c"


async def test_what_it_prints_without_end_is_cut(tmp_path: Path) -> None:
    verdict = await once(chain(tmp_path, "for n in range(100_000): print('x' * 50)\nreturn Verdict.passed()"))
    assert verdict.action is Action.PASS
    assert len(verdict.trace[0].saw) < 600


async def test_what_it_starts_ends_with_it(tmp_path: Path) -> None:
    body = "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\n"
    body += f"open('{tmp_path}/pid', 'w').write(str(child.pid))\nwhile True: pass"
    pipeline = chain(tmp_path, body, limit='"1s"', on_error='"hold"')
    assert (await ask(pipeline)).action is Action.PENDING
    await pipeline.close()

    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    end = time.monotonic() + 10
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "body",
    [
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nreturn Verdict.passed(str(os.getpid()))",
        "import subprocess\nchild = subprocess.Popen(['sleep', '30'], start_new_session=True)\n"
        "return Verdict.passed(str(child.pid))",
    ],
    ids=["ignores the signal", "leaves somebody behind who holds its pipes"],
)
async def test_who_does_not_want_to_end_holds_nobody_up(tmp_path: Path, body: str) -> None:
    others = asyncio.all_tasks()
    pipeline = chain(tmp_path, body)
    pid = int((await ask(pipeline)).reason)
    began = time.monotonic()
    await pipeline.close()
    assert time.monotonic() - began < 15
    if "SIG_IGN" in body:
        assert not Path(f"/proc/{pid}").exists()
    else:
        os.kill(pid, 9)
    assert asyncio.all_tasks() <= others


async def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    pipeline = chain(tmp_path, "return None")
    (tmp_path / "filter.py").write_text("import nothing_of_that_name\n")
    answer = await once(pipeline)
    assert "nothing_of_that_name" in answer.reason


@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(60)", "await asyncio.sleep(60)"])
async def test_the_time_limit_holds_whatever_it_does(tmp_path: Path, body: str) -> None:
    guilty = f"if mail.subject == 'bad':\n    {body}\nreturn Verdict.passed()"
    pipeline = chain(tmp_path, guilty, limit='"1s"', on_error='"hold"')
    assert (await ask(pipeline, Subject="good")).action is Action.PASS
    began = time.monotonic()
    bad = asyncio.create_task(ask(pipeline, Subject="bad"))
    ticks = 0
    while not bad.done():
        await asyncio.sleep(0.05)
        ticks += 1
    assert ticks >= 5  # this loop was never blocked
    assert time.monotonic() - began < 15
    assert bad.result().action is Action.PENDING
    assert "no answer within 1 s" in bad.result().reason
    after = await asyncio.gather(*(ask(pipeline, Subject="good") for _ in range(5)))
    assert {verdict.action for verdict in after} == {Action.PASS}
    await pipeline.close()


async def test_an_edited_file_is_used_for_the_next_mail(tmp_path: Path) -> None:
    pipeline = chain(tmp_path, "return Verdict.passed('one')")
    first = await ask(pipeline)
    file = tmp_path / "filter.py"
    file.write_text(file.read_text().replace("one", "two"))
    second = await ask(pipeline)
    assert (first.reason, second.reason) == ("one", "two")
    assert first.trace[0].version != second.trace[0].version
    await pipeline.close()


async def test_it_has_none_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDSWITCH_SECRET", "hush")
    verdict = await once(chain(tmp_path, "return Verdict.passed(' '.join(sorted(os.environ)))"))
    assert "SECRET" not in verdict.reason


async def test_a_large_message_goes_by_its_file(tmp_path: Path) -> None:
    large = tmp_path / "large.eml"
    large.write_bytes(b"Subject: large\r\n\r\n" + b"x" * 3_000_000)

    pipeline = chain(tmp_path, "return Verdict.passed(f'{mail.subject} {mail.size} {len(mail.raw)}')")
    verdict = await pipeline.run(Mail(InFile(large, large.stat().st_size)), context())
    assert verdict.reason == "large 3000018 3000018"
    await pipeline.close()
