"""The heartbeat of a node: what it says of itself in the database, where every node and command can read it."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from sendswitch.clock import system_clock
from sendswitch.db import nodes
from sendswitch.db.connect import in_thread
from sendswitch.db.nodes import BEAT, NodeFacts

if TYPE_CHECKING:
    from sendswitch.bootstrap.node import Node

# Seconds for the last heartbeat when the node stops.
LAST_WORDS = 3.0


class Heartbeat:
    """The heartbeat of one node."""

    def __init__(self, node: Node, engine: Engine) -> None:
        self._node, self._engine, self._started = node, engine, system_clock()

    async def run(self) -> None:
        """Tell every BEAT seconds. While the database is away nothing is told; those who need it report that."""
        while True:
            with suppress(SQLAlchemyError):
                await self._tell()
            await asyncio.sleep(BEAT)

    async def end(self) -> None:
        """Tell that the node stops in order. Nothing is told where the database takes longer than LAST_WORDS."""
        with suppress(SQLAlchemyError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._tell(ended=True)

    async def _tell(self, *, ended: bool = False) -> None:
        facts = await self._facts()
        await in_thread(nodes.tell, self._engine, self._node.spool.name, facts, system_clock(), ended=ended)

    async def _facts(self) -> NodeFacts:
        node = self._node
        states, _, _ = await node.spool.figures()
        return NodeFacts(
            number=node.spool.number,
            host=node.config.node.host,
            data=str(node.data),
            pid=os.getpid(),
            version=version("sendswitch"),
            web=node.addresses()["web"],
            started=self._started,
            draining=node.draining,
            queued=states.get("accepted", 0) + states.get("decided", 0),
            held=states.get("held", 0),
            quarantined=states.get("quarantined", 0),
            workers=len(node.workers.workers()) + len(node.rabbitmq.workers() if node.rabbitmq is not None else ()),
        )
