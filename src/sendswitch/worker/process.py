"""A worker in a process of its own. All that it knows, it has from its nodes: settings, pipelines, lists.

It has no configuration, no database and no spool, so that a step which goes wrong here finds none of them. A worker of
a user's own may have a pipeline in a file, and runs that instead of the one that the node has.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from sendswitch import logs
from sendswitch.broker.base import TaskConsumer
from sendswitch.broker.calls import Ask
from sendswitch.broker.remote import OnSettings
from sendswitch.clock import system_clock
from sendswitch.conditions.pipeline import PipelineConfig, check_own, read_pipeline
from sendswitch.errors import InvalidConfiguration, NotFound, Refused, in_words
from sendswitch.processors import registry
from sendswitch.processors.base import AutoReply, Notice, Readers, Services
from sendswitch.processors.list_entries import Book, Entry, KeptLists
from sendswitch.processors.rate_counters import RateCounters
from sendswitch.worker.runtime import PipelineCache, Worker

# What steps of a user's own worker may reach: all that the user's machine does.
EVERYWHERE = ("0.0.0.0/0", "::/0")


class NodeConsumer(TaskConsumer, Protocol):
    """A worker's side of a broker by which it can also ask the nodes. `gone` is set when there is none any more, and
    `refused` says why when they do not want this worker."""

    gone: asyncio.Event

    @property
    def refused(self) -> str: ...

    async def call(self, node: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return the result of a call to a node (`broker.calls.Ask`)."""
        ...


class NodeServices:
    """The services of a node, asked for over the connection: outbox, automatic replies and counters for steps."""

    def __init__(self, ask: Ask, node: str) -> None:
        self._ask, self._node = ask, node

    async def put(self, notice: Notice) -> None:
        """Keep an event, once; durable on return. Raises Temporary."""
        await self._ask(self._node, "notice", asdict(notice))

    async def send(self, reply: AutoReply) -> bool:
        """Send a reply. Return False when that sender had one already. Durable on return. Raises Temporary."""
        told = asdict(reply) | {"data": base64.b64encode(reply.data).decode("ascii")}
        return bool(await self._ask(self._node, "auto_reply", told))

    async def within_limit(self, place: str, who: str, message: str, most: int, period: float, now: float) -> bool:
        """Count a message for a step of any worker, and return whether its limit allows it. Raises Temporary."""
        counted = {"place": place, "who": who, "message": message, "most": most, "period": period, "now": now}
        return bool(await self._ask(self._node, "within_limit", counted))


class OwnPipeline:
    """A pipeline in a file, and its digest. Raises InvalidConfiguration for a wrong one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.config, self.digest = self._read()

    def _read(self) -> tuple[PipelineConfig, str]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfiguration([f"{self._path}: {in_words(error)}"]) from error
        config = registry.check(text, str(self._path))
        check_own(config, str(self._path))
        return config, hashlib.sha256(text.encode()).hexdigest()[:12]

    def changed(self) -> bool:
        """Read the file again. Return whether it is another pipeline. Raises InvalidConfiguration; then the old one
        stays.
        """
        before = self.digest
        config, digest = self._read()
        if self.config.step and not config.step:
            raise InvalidConfiguration([f"{self._path}: it has no steps any more; restart the worker if that is meant"])
        self.config, self.digest = config, digest
        return digest != before


class KnownNode:
    """One node as a worker knows it: its settings, its lists, and its pipelines as far as they were needed."""

    def __init__(self, name: str, ask: Ask, readers: Readers, own: OwnPipeline | None) -> None:
        self._name, self._ask, self._readers, self._own = name, ask, readers, own
        self._book, self._lists = Book(), KeptLists(lambda: self._book)
        self._lists_read: object = None
        self._of_user = False  # this is a worker of a user's own
        self._made_with: tuple[Any, ...] = ()
        self.pipelines = PipelineCache(self._source, 0.0, Services())

    async def apply(self, settings: Mapping[str, Any]) -> None:
        """Take the node's settings. Raises the errors of what it asks."""
        self._of_user = settings["own"]
        if settings["lists"] != self._lists_read:
            told = await self._ask(self._name, "lists", {})
            rows = [(scope, kind, Entry(*entry)) for scope, kind, *entry in told["rows"]]
            self._book = await asyncio.to_thread(Book, rows, told["delimiters"])
            self._lists.refresh()
            self._lists_read = settings["lists"]
        allow = tuple(settings["allow"])
        made_with = settings["limit"], settings["host"], allow, settings["own"], settings["sandbox"]
        if made_with != self._made_with:  # the first ones, or the node was restarted with others
            await self.pipelines.change(settings["limit"], self._services(settings))
            self._made_with = made_with
        else:
            names = self.pipelines.names
            routed = await self._ask(self._name, "routed", {"names": names})
            await self.pipelines.drop(set(names).difference((owner, candidate) for owner, candidate in routed))

    def _services(self, settings: Mapping[str, Any]) -> Services:
        node = NodeServices(self._ask, self._name)
        return Services(
            host=settings["host"],
            allow=EVERYWHERE if settings["own"] else tuple(settings["allow"]),
            lists=self._lists,
            outbox=node,
            auto_replies=node,
            readers=self._readers,
            counters=RateCounters() if settings["own"] else node,
            sandbox=settings["sandbox"],
        )

    async def _source(self, owner: str, version: int) -> PipelineConfig:
        if self._own is not None:
            return self._own.config
        if not version:
            raise NotFound(f"{owner} has no pipeline; set one, or start the worker with --pipeline FILE")
        text = await self._ask(self._name, "pipeline", {"owner": owner, "version": version})
        config = read_pipeline(str(text), owner)
        if self._of_user:
            check_own(config, f"the pipeline of {owner}")
        return config


class WorkerProcess:
    """A worker and its side of a broker. `readers` read content for its steps; they are closed with it."""

    def __init__(
        self,
        connect: Callable[[OnSettings], NodeConsumer],
        readers: Readers,
        *,
        queues: tuple[str, ...],
        places: int,
        name: str = "",
        own: OwnPipeline | None = None,
    ) -> None:
        """Prepare. A worker of a user's own says its `name` with each answer; `own` is its own pipeline."""
        self._readers, self._queues, self._places, self._name, self._own = readers, queues, places, name, own
        self._consumer = connect(self._apply)
        self._nodes: dict[str, KnownNode] = {}
        self._pipelines: dict[str, PipelineCache] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Run pipelines until `stopping` is set and every task in hand is answered, or until the node goes.

        Raises Refused when the node does not let this worker in.
        """
        worker = Worker(
            self._consumer,
            self._pipelines,
            queues=self._queues,
            concurrency=self._places,
            clock=system_clock,
            signature=self._signature,
        )
        working = asyncio.create_task(worker.run())
        gone = asyncio.create_task(self._consumer.gone.wait())
        told = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait((gone, told, working), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():  # nobody is left to answer
                working.cancel()
            worker.stop()
            await asyncio.wait((working,))
            if not working.cancelled():
                working.result()
            if self._consumer.refused:
                raise Refused(self._consumer.refused)
        finally:
            for task in (gone, told):
                task.cancel()
            await asyncio.to_thread(self._readers.close)

    def _signature(self) -> tuple[str, str]:
        return self._name, self._own.digest if self._own is not None else ""

    async def read_again(self) -> bool:
        """Read the worker's own pipeline again. Return whether it is another one. Raises InvalidConfiguration; then the
        old one stays.
        """
        if self._own is None or not await asyncio.to_thread(self._own.changed):
            return False
        for pipelines in self._pipelines.values():
            await pipelines.drop()
        return True

    async def _apply(self, node: str, settings: Mapping[str, Any] | None) -> None:
        """Take a node's settings, or forget a node. Raises the errors of what it is asked."""
        if settings is None:
            if (gone := self._nodes.pop(node, None)) is not None:
                await gone.pipelines.close()
            return
        if not settings["own"]:
            logs.setup(settings["log_format"], settings["log_level"])
        known = self._nodes.get(node) or KnownNode(node, self._consumer.call, self._readers, self._own)
        await known.apply(settings)
        self._nodes[node], self._pipelines[node] = known, known.pipelines
