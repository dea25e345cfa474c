"""Tests of how tests are run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAILING = """
import asyncio

async def test_that_fails():
    server = await asyncio.start_server(lambda reader, writer: reader.read(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await asyncio.sleep(0.1)
    raise RuntimeError("on purpose")

def test_that_follows():
    pass
"""


def test_a_failed_test_that_leaves_a_server_open_is_reported(tmp_path: Path) -> None:
    """uvloop would wait for this server for ever, and no test follow."""
    file = tmp_path / "test_failing.py"
    file.write_text(FAILING)
    names = "anyio_backend, pytest_collection_modifyitems"
    (tmp_path / "conftest.py").write_text(f"from tests.conftest import {names}\n")
    line = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
