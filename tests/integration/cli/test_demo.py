"""The demonstration's start, when another program is quicker."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sendswitch.cli import demo
from sendswitch.errors import Temporary


async def test_a_port_that_was_taken_in_the_meantime_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, real, asked = other.getsockname()[1], demo.free_port, []

        def free_port(wanted: int) -> int:
            asked.append(wanted)
            return taken if wanted == 8025 and asked.count(8025) == 1 else real(wanted)

        monkeypatch.setattr(demo, "free_port", free_port)
        node = await demo.start(tmp_path)
        await node.stop()
        assert len(asked) == 4

        monkeypatch.setattr(demo, "free_port", lambda wanted: taken if wanted == 8025 else real(wanted))
        with pytest.raises(Temporary, match="choose another address"):
            await demo.start(tmp_path)
