"""Deadlines count time in which there was work: no stall and no wait for a place uses them up."""

from __future__ import annotations

import asyncio
import time

import pytest

from sendswitch.deadline import MOST, waiting, within


async def test_work_that_takes_too_long_is_ended() -> None:
    async def inside() -> float:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with within(0.2):
                await asyncio.sleep(10)
        return time.monotonic() - began

    assert 0.15 < await inside() < 2


async def test_what_is_done_in_time_goes_on() -> None:
    async def inside() -> str:
        async with within(1), within(0.5):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        return "done"

    assert await inside() == "done"


async def test_a_process_that_stands_still_loses_no_time() -> None:
    async def inside() -> str:
        async with within(1.0):
            await asyncio.sleep(0.1)
            time.sleep(2)  # as with SIGSTOP: nothing is done, and the answer lies ready
            await asyncio.sleep(0.1)
        return "done"

    assert MOST < 1.0
    assert await inside() == "done"


async def test_waiting_for_a_place_does_not_count() -> None:
    async def inside() -> str:
        async with within(0.3):
            async with waiting():
                await asyncio.sleep(0.8)
            await asyncio.sleep(0.1)
        return "done"

    assert await inside() == "done"


async def test_after_the_wait_it_counts_again() -> None:
    async def waits_and_works() -> None:
        async with within(0.2):
            async with waiting():
                await asyncio.sleep(0.3)
            await asyncio.sleep(5)

    with pytest.raises(TimeoutError):
        await waits_and_works()


async def test_only_the_own_deadline_ends_it() -> None:
    async def inside() -> list[bool]:
        async with within(5) as outer:
            with pytest.raises(TimeoutError):
                async with within(0.1) as inner:
                    await asyncio.sleep(5)
        return [outer.passed, inner.passed]

    assert await inside() == [False, True]


async def test_many_deadlines_at_once() -> None:
    async def one(n: int) -> bool:
        try:
            async with within(0.1 if n % 2 else 5):
                await asyncio.sleep(0.4)
        except TimeoutError:
            return False
        return True

    async def inside() -> list[bool]:
        return await asyncio.gather(*(one(n) for n in range(200)))

    assert await inside() == [not n % 2 for n in range(200)]
