"""Tests have the same names in every process, or the processes of one run do not agree on what to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _names(seed: int) -> list[str]:
    """The names of all tests, as a new process collects them.

    A process takes longer than two seconds to collect, the resolution of times in a ZIP: what depends on the time of
    day differs between two of them.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_names_do_not_depend_on_the_time_of_day_or_on_hashes() -> None:
    first = _names(1)
    assert first
    assert first == _names(2)
