"""The fuzzer finds its way and finds faults; a minute of it is `make fuzz`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.protocol import SEEDS, fuzz, server


@pytest.mark.parametrize("target", SEEDS, ids=lambda target: target.__name__)
def test_nothing_a_stranger_sends_raises(target: Callable[[bytes], None]) -> None:
    tried, lines, bad = fuzz(target, 1.0, seed=1)
    assert bad is None
    assert tried > 100
    assert lines > 50


def test_a_fault_deep_in_the_dialog_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, rest: str) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("sendswitch.smtp.protocol.server._COMMANDS", {"MAIL": broken, "EHLO": broken})
    assert fuzz(server, 5.0, seed=1)[2] is not None
