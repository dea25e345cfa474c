"""What steps share to ask a service: made by the first, closed by the last, and not under anybody's hands."""

from __future__ import annotations

import asyncio
import threading

from sendswitch.processors.hosting.threads import asking_names, reading
from sendswitch.processors.services.connections import SharedClient


class Client:
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def test_a_client_is_closed_when_its_last_user_has_done_with_it() -> None:
    handles = [SharedClient(Client, 2, "key") for _ in range(2)]
    go = asyncio.Event()

    async def use(handle: SharedClient[Client]) -> Client:
        async with handle.use() as client:
            await go.wait()
            assert client.closed == 0
            return client

    using = asyncio.create_task(use(handles[0]))
    await asyncio.sleep(0)
    await handles[0].release()
    async with handles[1].use() as client:
        pass
    await handles[1].release()
    assert client.closed == 0
    go.set()
    assert await using is client
    assert client.closed == 1
    # Who comes after the end takes a place and gives it back.
    async with handles[0].use() as another:
        assert another is not client
    assert another.closed == 1
    await handles[0].release()
    assert another.closed == 1


async def test_no_more_use_it_at_once_than_it_has_places() -> None:
    async def inside() -> None:
        handles, busy, most = [SharedClient(Client, 2, "key") for _ in range(3)], 0, 0

        async def use(handle: SharedClient[Client]) -> None:
            nonlocal busy, most
            async with handle.use():
                busy += 1
                most = max(most, busy)
                await asyncio.sleep(0)
                busy -= 1

        await asyncio.gather(*(use(handle) for handle in handles for _ in range(5)))
        assert most == 2
        for handle in handles:
            await handle.release()

    await inside()


async def test_who_blocks_the_processors_threads_blocks_no_others() -> None:
    go = threading.Event()

    stuck = [asyncio.create_task(one(go.wait, 30)) for one in (reading, asking_names) for _ in range(40)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 5) == "read"
    go.set()
    assert all(await asyncio.gather(*stuck))
