"""The compiled modules do what their sources do: the tests of the mail path pass on both."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The folder with the compiled package; `make test` began to fill it when it started."""
    line = [sys.executable, str(ROOT / "tools/compile.py")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        missing(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-5000:]
    return Path(done.stdout.strip())


def _in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package of a folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env=env | {"PYTHONPATH": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_module_that_is_named_is_compiled(compiled: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = ["sendswitch." + name.replace("/", ".") for name in project["tool"]["sendswitch"]["compiled"]]
    said = _in(compiled, "-c", f"import importlib; [print(importlib.import_module(n).__file__) for n in {names}]")
    assert said.returncode == 0, said.stderr
    files = said.stdout.split()
    assert len(files) == len(names)
    assert [file for file in files if not (file.startswith(str(compiled)) and file.endswith(".so"))] == []


@pytest.mark.parametrize(
    "tests",
    [
        ("tests/unit", "--ignore=tests/unit/test_fuzz.py"),
        ("tests/integration/smtp", "tests/integration/spool", "tests/integration/queue", "tests/integration/intake"),
        ("tests/e2e/test_node.py", "tests/e2e/test_crash.py"),
    ],
    ids=["units", "parts", "nodes"],
)
def test_what_passes_on_the_sources_passes_compiled(compiled: Path, tests: tuple[str, ...]) -> None:
    done = _in(compiled, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert " passed" in done.stdout or "100%" in done.stdout
