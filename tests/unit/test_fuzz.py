"""The fuzzer finds its way and finds faults; each target runs longer in `make fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fuzz import targets

if os.environ.get("CI") != "true":
    pytest.importorskip("atheris")


def fuzz(*words: str, prepared: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {prepared}\nfrom tests.fuzz.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("target", [target.__name__ for target in targets.SEEDS])
def test_nothing_a_stranger_sends_raises_or_costs_much(target: str) -> None:
    found = fuzz("one", target, "3", "1")
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Done" in found.stderr


def test_a_fault_deep_in_the_dialog_is_found() -> None:
    broken = "import sendswitch.smtp.protocol.server as server; server._COMMANDS.update(RSET=lambda self, rest: 1 / 0)"
    found = fuzz("one", "server", "60", "1", prepared=broken)
    assert found.returncode != 0
    assert "ZeroDivisionError" in found.stderr


def squared(data: bytes) -> None:
    for n in range(0, len(data), 10):
        data[n:].count(b"x")


def test_what_costs_more_than_its_size_allows_is_found() -> None:
    targets.cheap(targets.in_loop, targets.IN_STEP, b"\0\5hello")
    with pytest.raises(targets.Costly, match=r"bytes take .* s in squared, at most 0.20 s"):
        targets.cheap(squared, targets.IN_STEP, b"\0\5hello")
