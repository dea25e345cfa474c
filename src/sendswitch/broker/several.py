"""A worker's end of its connections to several nodes behind one address (`node.processes`).

The first node says which others there are. The worker opens a connection for each, and the first node passes those of
the others on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from sendswitch.broker.remote import Connect, Disconnected, OnSettings, RemoteConsumer, RemoteLease, give_back

# Most nodes of one address.
MOST = 64


class SeveralNodes:
    """A worker's side of a broker that is in several nodes (`base.TaskConsumer`). Nodes are named by their numbers.

    `connect` returns the way to a node by its number, from 1. `places` is how many tasks the first may hand over at
    once; the others share as many, at least one each. `gone` and `refused` are those of the first node.
    """

    def __init__(self, connect: Callable[[int], Connect], *, name: str, places: int, on_settings: OnSettings) -> None:
        self._connect, self._name, self._places, self._on_settings = connect, name, places, on_settings
        self._ready: asyncio.Queue[RemoteLease] = asyncio.Queue()
        self._nodes = {1: self._node(1, places)}
        self.gone = self._nodes[1].gone
        self._stopping = False
        self._leaving: set[asyncio.Task[None]] = set()

    def _node(self, number: int, places: int) -> RemoteConsumer:
        return RemoteConsumer(
            self._connect(number),
            name=self._name,
            places=places,
            queues=(),
            on_settings=self._settings,
            node=str(number),
            ready=self._ready,
            beside=number != 1,
        )

    @property
    def refused(self) -> str:
        """Return why the first node does not want this worker, '' while it may."""
        return self._nodes[1].refused

    async def open(self) -> None:
        """Begin to connect. Never raises."""
        await self._nodes[1].open()

    async def _settings(self, node: str, settings: Mapping[str, Any] | None) -> None:
        """Take a node's settings. Those of the first name the others."""
        await self._on_settings(node, settings)
        if node != "1" or settings is None or self._stopping:
            return
        others = [int(number) for number in settings.get("others", ())][:MOST]
        for number in others:
            if number not in self._nodes:
                self._nodes[number] = self._node(number, max(1, self._places // len(others)))
                await self._nodes[number].open()
        for number in set(self._nodes).difference(others, (1,)):
            task = asyncio.get_running_loop().create_task(self._leave(number, self._nodes.pop(number)))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _leave(self, number: int, node: RemoteConsumer) -> None:
        """Leave a node that is there no more."""
        await node.close()
        await self._on_settings(str(number), None)

    async def lease(self, queues: tuple[str, ...]) -> RemoteLease:
        """Wait for a task of any node. Raises asyncio.CancelledError only."""
        while (lease := await self._ready.get()).ended:
            pass  # it came over a connection that is gone
        return lease

    async def call(self, node: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return the result of a call to a node. Raises Temporary without a connection, and the call's errors."""
        if (known := self._nodes.get(int(node))) is None:
            raise Disconnected
        return await known.call(node, name, arguments)

    async def stop_taking(self) -> None:
        """Want no more tasks; those that wait here go back."""
        self._stopping = True
        await asyncio.gather(*(node.stop_taking() for node in self._nodes.values()))
        await give_back(self._ready)

    async def close(self) -> None:
        """Give back every task that has no answer, and disconnect."""
        self._stopping = True
        await asyncio.gather(*(node.close() for node in self._nodes.values()), *self._leaving)
