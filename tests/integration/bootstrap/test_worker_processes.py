"""The processes that a node starts as its workers: replaced when they grow or end, and clear of the node's secrets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sendswitch import unix_socket
from sendswitch.bootstrap import worker_processes
from sendswitch.bootstrap.worker_processes import WorkerProcesses, resident, without_ours
from sendswitch.broker.embedded import EmbeddedBroker
from sendswitch.broker.worker_server import WorkerServer
from sendswitch.errors import Temporary
from sendswitch.mail.content import Content
from sendswitch.mail.task import Reference

SETTINGS = {
    "own": False,
    "sandbox": False,
    "host": "us.example",
    "allow": [],
    "limit": 5,
    "log_format": "json",
    "log_level": "error",
    "lists": 1,
}


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[WorkerServer]:
    async def lists(told: Mapping[str, Any]) -> dict[str, Any]:
        return {"rows": [("", "deny", "spam.example", None, "")], "delimiters": "+"}

    async def read(reference: Reference) -> Content:
        raise Temporary

    server = WorkerServer(
        EmbeddedBroker(), read, lambda owner: {"lists": lists}, lambda owner: SETTINGS, lambda pid: None
    )
    await server.start(unix_socket.listen(folder / "workers"))
    try:
        yield server
    finally:
        await server.stop()


def of_one(folder: Path, files: Path) -> WorkerProcesses:
    needed = asyncio.Event()
    needed.set()
    path, alone = folder / "workers", asyncio.Event()
    return WorkerProcesses(path, files, 1, places=1, memory=10**9, needed=needed, alone=alone)


async def until_another(server: WorkerServer, than: int = 0) -> int:
    async with asyncio.timeout(30):
        while not (found := [one.pid for one in server.workers() if one.pid != than]):
            await asyncio.sleep(0.02)
    return found[0]


async def test_a_worker_that_has_grown_is_replaced_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_processes, "LOOK", 0.2)
    files = tmp_path / "files"
    async with served(tmp_path) as server:
        sizes: dict[int, int] = {}
        monkeypatch.setattr(worker_processes, "resident", lambda pid: sizes.get(pid, 0))
        processes = of_one(tmp_path, files)
        running = asyncio.create_task(processes.run())
        first = await until_another(server)
        sizes[first] = 10**9 + 1
        await until_another(server, first)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert "it had grown to 1000000001 bytes" in capfd.readouterr().err
    assert resident(first) == 0
    assert resident(os.getpid()) > 10**6
    assert not files.exists()


async def test_a_worker_that_ends_is_replaced_and_its_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    async with served(tmp_path) as server:
        processes = of_one(tmp_path, files)
        running = asyncio.create_task(processes.run())
        first = await until_another(server)
        (files / "1" / "left").write_text("x")
        processes.kill(os.getpid())  # none of its own
        processes.kill(first)
        await until_another(server, first)
        assert [path.name for path in files.iterdir()] == ["2"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert "it ended with SIGKILL" in capfd.readouterr().err


def test_the_node_s_secrets_stay_with_it() -> None:
    environment = {
        "PATH": "/bin", "SENDSWITCH_DATABASE_URL": "x", "CREDENTIALS_DIRECTORY": "/x", "NOTIFY_SOCKET": "/y",
        "WATCHDOG_USEC": "1", "HTTPS_PROXY": "p",
    }  # fmt: skip
    assert without_ours(environment) == {"PATH": "/bin", "HTTPS_PROXY": "p"}
