"""Programs as processors: what they answer, what they get, and what those do that mean no good."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import public_folder
from sendswitch.mail.content import InFile, InMemory
from sendswitch.mail.envelope import Client
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.pipeline.chain import BoundStep, Chain
from sendswitch.processors.exec import Exec, ExecOptions, ProgramFailed
from sendswitch.processors.hosting import supervise
from sendswitch.testing import context, mail, message
from tests.verdicts import verdict_of

Make = Callable[..., Exec]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(script: str, **options: Any) -> Exec:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return Exec(ExecOptions(command=(str(program), "one", "two words"), **options))

    return make


@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        ("cat > /dev/null", {}, None),
        ("echo looks fine >&2", {}, Verdict(reason="looks fine")),
        ("echo '{}'", {}, None),
        ('echo \'{"tags": ["NEWS"], "reason": "a list"}\'', {}, Verdict(tags=("NEWS",), reason="a list")),
        ("echo not wanted >&2; exit 77", {"reply": "554 5.7.1 No"}, Verdict.deny("not wanted", reply="554 5.7.1 No")),
        ("exit 3", {"exits": {"3": "quarantine"}}, Verdict.quarantine("{} ended with status 3")),
        ("exit 3", {"exits": {"3": "tag"}, "tag": "ODD"}, Verdict.tagged("ODD", reason="{} ended with status 3")),
        ("exit 3", {"exits": {"3": "pass"}}, Verdict.passed("{} ended with status 3")),
        ("exit 3", {"exits": {"3": "none"}}, Verdict(reason="{} ended with status 3")),
    ],
)
async def test_what_a_program_says(
    make: Make, script: str, options: dict[str, Any], expected: Verdict | None, tmp_path: Path
) -> None:
    if expected is not None:
        expected = replace(expected, reason=expected.reason.format(tmp_path / "program"))
    assert await make(script, **options).process(mail(), context()) == expected


async def test_what_a_program_gets(make: Make, tmp_path: Path) -> None:
    os.environ["SECRET"] = "ours"
    client = Client(address="192.0.2.7", name="mx.example", helo="he\0lo", ident="4XYZ", protocol="ESMTP", login="ann")
    asked = replace(context("", "joe+x@example.test"), client=client, tags=("A", "B"), score=1.5, rehearsal=True)
    script = f'env | sort > {tmp_path}/env; cat > {tmp_path}/mail; pwd > {tmp_path}/pwd; echo "$@" > {tmp_path}/args'
    await make(script).process(mail("hello\r\n"), asked)
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    env.pop("PWD")
    assert env == {
        **{"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "SENDER": "", "RECIPIENT": "joe+x@example.test"},
        **{"LOCAL": "joe+x", "DOMAIN": "example.test", "CLIENT_ADDRESS": "192.0.2.7", "CLIENT_HOSTNAME": "mx.example"},
        **{"CLIENT_HELO": "helo", "CLIENT_PROTOCOL": "ESMTP", "QUEUE_ID": "4XYZ", "LOGIN": "ann", "TAGS": "A B"},
        **{"MESSAGE": "0000000000000", "SIZE": str(len(message("hello\r\n"))), "ATTEMPT": "1", "SCORE": "1.5"},
        "REHEARSAL": "1",
    }
    assert (tmp_path / "mail").read_bytes() == message("hello\r\n")
    assert (tmp_path / "pwd").read_text() == "/\n"
    assert (tmp_path / "args").read_text() == "one two words\n"


async def test_a_large_message_is_streamed_and_need_not_be_read(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "large.eml"
    path.write_bytes(message("x" * 3_000_000))
    large = Mail(InFile(path, path.stat().st_size))
    await make(f"wc -c > {tmp_path}/size").process(large, context())
    assert int((tmp_path / "size").read_text()) == large.size
    assert await make("exit 0").process(large, context()) is None


@pytest.mark.parametrize(
    ("script", "options", "problem"),
    [
        ("echo first; echo boom >&2; exit 1", {}, "ended with status 1: boom"),
        ("kill -SEGV $$", {}, "was ended by SIGSEGV"),
        ("echo nonsense", {}, "printed what is no verdict"),
        ("echo '[1]'", {}, "printed what is no verdict"),
        ('echo \'{"acton": "pass"}\'', {}, "a verdict has no field 'acton'"),
        ("head -c 2000000 /dev/zero | tr '\\0' ' '; echo 1", {}, "printed more than 1048576 bytes"),
        ("exec /nowhere", {}, "ended with status 127: .*not found"),
        # Without an end in memory, in time, in files.
        ("exec python3 -c 'x = [bytes(10**6) for n in range(10**6)]'", {"memory": "100MB"}, "MemoryError"),
        ("while :; do :; done", {"cpu": "1s"}, "was ended by SIG(XCPU|KILL)"),
        ("exec head -c 2000000 /dev/zero > $0.out", {"files": "1MB"}, "was ended by SIGXFSZ|File too large"),
    ],
)
async def test_what_a_program_must_not_do_is_its_failure(
    make: Make, script: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ProgramFailed, match=problem):
        await make(script, **options).process(mail(), context())


async def test_at_its_limit_everything_it_started_is_killed(make: Make, tmp_path: Path) -> None:
    program = make(f"sleep 1000 & echo $! > {tmp_path}/pid; sleep 1000")
    link = BoundStep("exec", program, "hold", 0.5)
    verdict = verdict_of(await Chain([link]).run(mail(), context()))
    assert (verdict.action, verdict.trace[0].outcome) == (Action.PENDING, "timeout")
    gone(int((tmp_path / "pid").read_text()))


async def test_what_it_leaves_behind_is_killed_and_waited_for_by_nobody(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendswitch.processors.exec.MERCY", 60.0)
    began = time.monotonic()
    assert await make(f"sleep 1000 & echo $! > {tmp_path}/pid").process(mail(), context()) is None
    assert time.monotonic() - began < 30
    gone(int((tmp_path / "pid").read_text()))


async def test_who_leaves_its_parent_group_and_session_is_killed(make: Make, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    left = (
        f"setsid sh -c 'setsid sh -c \"echo \\$\\$ > {pid}; exec sleep 1000\" & exit' & until [ -s {pid} ]; do :; done"
    )
    assert await make(f"{left}; echo ok >&2").process(mail(), context()) == Verdict(reason="ok")
    gone(int(pid.read_text()))


async def test_more_processes_than_it_may_have_are_its_failure(make: Make, tmp_path: Path) -> None:
    script = f"for n in $(seq 200); do setsid tail -f {tmp_path}/program & done; wait"
    with pytest.raises(ProgramFailed, match="had more than 20 processes"):
        await make(script, processes=20).process(mail(), context())
    assert not [p for p in Path("/proc").iterdir() if p.name.isdecimal() and str(tmp_path) in commandline(p)]


def commandline(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def test_the_kernel_limits_the_processes_of_a_user() -> None:
    words = [str(os.getpid()), "500000000", "10", "1000000", "20", "0", "/bin/sh", "-c", "ulimit -p"]
    with public_folder("exec") as folder:
        script = shutil.copy(supervise.__file__, folder)
        line = ["/usr/bin/env", "python3", "-I", "-S", str(script), *words]
        user = 65534 if os.getuid() == 0 else None
        done = subprocess.run(line, capture_output=True, text=True, check=True, user=user)
    assert int(done.stdout) <= supervise.MOST_OF_USER


async def test_a_program_in_a_session_of_its_own_dies_with_its_supervisor(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendswitch.processors.exec.PATIENCE", 0.2)
    program = make(f"exec setsid sh -c 'echo $$ > {tmp_path}/pid; kill -KILL $PPID; exec sleep 1000'")
    with pytest.raises(ProgramFailed):
        await program.process(mail(), context())
    gone(int((tmp_path / "pid").read_text()))


def test_a_program_gets_the_default_actions_of_signals() -> None:
    words = [str(os.getpid()), "500000000", "10", "1000000", "20", "0", "/bin/grep", "Sig[BI]", "/proc/self/status"]
    done = subprocess.run([sys.executable, "-I", "-S", supervise.__file__, *words], capture_output=True, check=True)
    blocked, ignored = (int(mask, 16) for mask in done.stdout.split()[1::2])
    assert not blocked & bits(signal.SIGTERM, signal.SIGCHLD)
    assert not ignored & bits(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)


def bits(*signals: int) -> int:
    return sum(1 << number - 1 for number in signals)


def test_without_the_kernels_list_of_children_nothing_is_run() -> None:
    blind = "import sys; from pathlib import Path; from sendswitch.processors.hosting import supervise; "
    blind += "Path.exists = print; "
    words = ["500000000", "10", "1000000", "20", "0", "/bin/echo", "ran"]
    line = [sys.executable, "-c", f"{blind} sys.exit(supervise.main(sys.argv[1:]))", str(os.getpid()), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, "CONFIG_PROC_CHILDREN" in done.stderr, "ran" in done.stdout) == (127, True, False)


def test_who_does_not_watch_for_a_living_parent_runs_nothing() -> None:
    words = ["1", "500000000", "10", "1000000", "20", "0", "/bin/echo", "ran"]
    done = subprocess.run([sys.executable, "-I", "-S", supervise.__file__, *words], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (127, b"")


def test_a_limit_of_the_system_that_is_lower_is_kept() -> None:
    words = [str(os.getpid()), "500000000", "10", "9000000000", "20", "0", "/bin/sh", "-c", "ulimit -f"]
    line = ["/bin/sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", sys.executable, "-I", "-S", supervise.__file__, *words]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "1000\n"


async def test_nobody_is_left_when_it_is_cancelled_twice(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendswitch.processors.exec.PATIENCE", 0.5)
    program = make(f"echo $$ > {tmp_path}/pid; kill -STOP $PPID; exec sleep 1000")

    task = asyncio.create_task(program.process(mail(), context()))
    while not (tmp_path / "pid").exists():
        await asyncio.sleep(0.01)
    for _ in range(2):
        await asyncio.sleep(0.1)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    "script",
    [
        "echo $$ > {pid}; kill -STOP $PPID; exec sleep 1000",
        "echo $$ > {pid}; kill -KILL $PPID; exec sleep 1000",
        "setsid sleep 1000 & echo $! > {pid}; kill -STOP $PPID; wait",
        "sleep 1000 & echo $! > {pid}; kill -KILL $PPID; wait",
    ],
)
async def test_a_program_cannot_hold_up_who_watches_it(
    make: Make, tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendswitch.processors.exec.PATIENCE", 0.2)
    program = make(script.format(pid=tmp_path / "pid"), cpu="1s")
    verdict = verdict_of(await Chain([BoundStep("exec", program, "hold", 0.5)]).run(mail(), context()))
    assert verdict.action is Action.PENDING
    gone(int((tmp_path / "pid").read_text()))


def test_when_the_node_dies_so_does_what_it_started(make: Make, tmp_path: Path) -> None:
    make(f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 1000' & wait")
    words = ["500000000", "10", "1000000", "10", "0", str(tmp_path / "program")]
    line = [sys.executable, "-I", "-S", supervise.__file__]
    code = f"import os, subprocess, time; subprocess.Popen([*{line}, str(os.getpid()), *{words}]); time.sleep(1000)"
    written, until = tmp_path / "pid", time.monotonic() + 20
    with subprocess.Popen([sys.executable, "-c", code]) as node:
        while not (written.exists() and written.read_text()) and time.monotonic() < until:
            time.sleep(0.01)
        node.kill()
    gone(int(written.read_text()))


def gone(pid: int) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"{pid} lives")


async def test_no_more_run_at_once_than_configured(make: Make, tmp_path: Path) -> None:
    programs = [
        make(f"mkdir {tmp_path}/busy || exit 1; sleep 0.05; rmdir {tmp_path}/busy", at_once=1) for _ in range(2)
    ]

    asked = [program.process(Mail(InMemory(b"\r\n")), context()) for program in programs for _ in range(5)]
    assert await asyncio.gather(*asked) == [None] * 10
    for program in programs:
        await program.close()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"command": ["true"]}, "must be an absolute path"),
        ({"command": ["/etc/passwd"]}, "is no program"),
        ({"command": []}, "at least 1"),
        ({"command": ["/bin/true", "a\0b"]}, "NUL"),
        ({"command": ["/bin/true"], "exits": {"0": "deny"}}, "is no exit status"),
        ({"command": ["/bin/true"], "exits": {"one": "deny"}}, "is no exit status"),
        ({"command": ["/bin/true"], "exits": {"1": "explode"}}, "Input should be"),
    ],
)
def test_what_is_no_program_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ExecOptions(**options)
