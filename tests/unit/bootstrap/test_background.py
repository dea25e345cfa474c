"""Work beside the mail: begun again when it fails, told, and later each time."""

from __future__ import annotations

import asyncio

import pytest

from sendswitch.bootstrap import background
from sendswitch.bootstrap.background import Background


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []

    async def sleep(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr("sendswitch.bootstrap.background.asyncio.sleep", sleep)
    return taken


async def test_what_fails_is_begun_again_until_it_returns(pauses: list[float]) -> None:
    begun = 0

    async def part() -> None:
        nonlocal begun
        begun += 1
        if begun < 9:
            raise OSError(24, f"too many open files {begun}")

    kept = Background()
    assert kept.trouble == ""
    await kept.keep("part", part)
    assert kept.trouble == "part: OSError: [Errno 24] too many open files 8"

    assert begun == 9
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_trouble_is_forgotten_and_the_pause_short_again(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, begun = 0.0, 0

    async def part() -> None:
        nonlocal begun, now
        begun += 1
        now += background.WELL + 1 if begun == 3 else 0
        if begun < 5:
            raise OSError

    async def inside() -> None:
        nonlocal now
        monkeypatch.setattr("sendswitch.bootstrap.background.time.monotonic", lambda: now)
        kept = Background()
        await kept.keep("part", part)
        assert pauses == [1, 2, 1, 2]
        assert kept.trouble
        now += background.WELL
        assert kept.trouble == ""

    await inside()


async def test_cancelling_ends_it() -> None:
    task = asyncio.create_task(Background().keep("part", asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
