"""The processes of several nodes: what is done when one hangs, ends, or cannot be started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bootstrap import node_processes
from sendswitch.bootstrap.node_processes import EndedEarly, NodeProcesses

# Writes its pid behind those of earlier ones, says that it is ready, and does as it is told.
PROGRAM = """
import os, sys, time
open(sys.argv[2], "a").write(f"{os.getpid()}\\n")
os.write(int(sys.argv[1]), b"READY=1\\n")
"""


def command(file: Path, then: str) -> Callable[[int, int], Sequence[str]]:
    return lambda number, pipe: [sys.executable, "-c", PROGRAM + then, str(pipe), f"{file}.{number}"]


def pids(file: Path, number: int) -> list[int]:
    path = Path(f"{file}.{number}")
    return [int(line) for line in path.read_text().split()] if path.exists() else []


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


async def test_one_that_hangs_is_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_processes, "BEAT", 0.05)
    monkeypatch.setattr(node_processes, "SILENT", 5)
    file = tmp_path / "pids"
    nodes = NodeProcesses([1, 2], command(file, "time.sleep(60)"), 2)
    await nodes.start()
    first = pids(file, 1)
    await until(lambda: len(pids(file, 1)) == 2)
    assert pids(file, 1)[:1] == first
    assert not Path(f"/proc/{first[0]}/cmdline").exists()
    await nodes.stop()
    assert not any(Path(f"/proc/{pid}").exists() for n in (1, 2) for pid in pids(file, n))


async def test_one_that_gives_signs_of_life_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_processes, "BEAT", 0.2)
    monkeypatch.setattr(node_processes, "SILENT", 5)
    file = tmp_path / "pids"
    alive = "while True: os.write(int(sys.argv[1]), b'WATCHDOG=1\\n'); time.sleep(0.05)"
    nodes = NodeProcesses([1], command(file, alive), 1)
    await nodes.start()
    await asyncio.sleep(2)
    assert len(pids(file, 1)) == 1
    await nodes.stop()


async def test_one_that_ends_before_it_is_ready_ends_all(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    def of(number: int, pipe: int) -> Sequence[str]:
        return [sys.executable, "-c", "exit(3)"] if number == 2 else command(file, "time.sleep(60)")(number, pipe)

    nodes = NodeProcesses([1, 2], of, 2)
    with pytest.raises(EndedEarly) as caught:
        await nodes.start()
    assert caught.value.status == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids(file, 1))


async def test_one_that_is_left_over_ends_no_other(tmp_path: Path) -> None:
    file = tmp_path / "pids"

    def of(number: int, pipe: int) -> Sequence[str]:
        return ["/no/such/program"] if number == 2 else command(file, "time.sleep(60)")(number, pipe)

    nodes = NodeProcesses([1, 2], of, 1)
    await nodes.start()
    await until(lambda: len(pids(file, 1)) == 1)
    await nodes.stop()
    broken = NodeProcesses([2], of, 2)
    with pytest.raises(OSError, match="such"):
        await broken.start()


async def test_a_program_that_is_away_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an interpreter that is being replaced is."""
    monkeypatch.setattr(node_processes, "FIRST_RETRY", 0.05)
    file, away = tmp_path / "pids", False

    def of(number: int, pipe: int) -> Sequence[str]:
        return ["/no/such/program"] if away else command(file, "time.sleep(60)")(number, pipe)

    nodes = NodeProcesses([1], of, 1)
    await nodes.start()
    away = True
    (pid,) = pids(file, 1)
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.3)
    assert len(pids(file, 1)) == 1
    away = False
    await until(lambda: len(pids(file, 1)) == 2)
    await nodes.stop()


async def test_one_that_is_just_being_started_again_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_processes, "FIRST_RETRY", 0.001)
    file, make = tmp_path / "pids", asyncio.create_subprocess_exec

    async def slowly(*line: Any, **more: Any) -> asyncio.subprocess.Process:
        process = await make(*line, **more)
        await until(lambda: len(pids(file, 1)) > 0)
        await asyncio.sleep(0.3)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    nodes = NodeProcesses([1], command(file, "time.sleep(60)"), 1)
    await nodes.start()
    os.kill(pids(file, 1)[0], signal.SIGKILL)
    await until(lambda: len(pids(file, 1)) == 2)  # it runs, and nobody knows it yet
    await nodes.stop()
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids(file, 1))
