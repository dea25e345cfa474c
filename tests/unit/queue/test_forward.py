"""Where a forward goes."""

from __future__ import annotations

import pytest

from sendswitch.queue.forward import targets_of

# decisions


@pytest.mark.parametrize(
    ("targets", "copy", "chain", "expected"),
    [
        (["b@x"], False, [], (["b@x"], False)),
        (["b@x", "B@X"], False, [], (["b@x"], False)),
        (["a@x", "b@x"], False, [], (["b@x"], True)),
        (["b@x"], False, ["b@x"], ([], True)),
        ([], False, [], ([], True)),
        (["b@x"], True, [], (["b@x"], True)),
    ],
)
def test_forwarding_never_loops_and_never_loses(
    targets: list[str], copy: bool, chain: list[str], expected: tuple[list[str], bool]
) -> None:
    assert targets_of("a@x", targets, copy, chain) == expected
