"""The worker's life: lease a task, run its pipeline, answer; many at once, each in its own time.

A lease is answered, given back, or left to the broker; it is never dropped silently. A pipeline that cannot be
loaded is a deferral, so that mail waits for the mistake to be mended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from weakref import WeakValueDictionary

from sendswitch import logs
from sendswitch.broker.base import Lease, TaskConsumer
from sendswitch.clock import Clock
from sendswitch.conditions.pipeline import PipelineConfig
from sendswitch.deadline import within
from sendswitch.mail.content import InFile
from sendswitch.mail.ids import to_text
from sendswitch.mail.message import Mail
from sendswitch.mail.task import Task
from sendswitch.mail.verdict import LATE, Deferral, PipelineResult
from sendswitch.pipeline.chain import Chain, build
from sendswitch.processors.base import Context, Services
from sendswitch.routing import Routes

Source = Callable[[str, int], Awaitable[PipelineConfig]]
"""A function that returns a pipeline by owner and version. Raises NotFound or InvalidConfiguration."""

Name = tuple[str, bool]
"""The owner of a pipeline, and whether it is the candidate beside the live one."""

# Pipelines kept ready. Beyond this many users at once the least used is made again when needed.
CACHE = 1000


class PipelineCache:
    """Chains by owner and version, made once. Of each owner there is one live and one candidate, of which a new version
    replaces the old."""

    def __init__(self, source: Source, limit: float, services: Services) -> None:
        self._source, self._limit, self._services = source, limit, services
        self._chains: OrderedDict[Name, tuple[int, Chain]] = OrderedDict()
        self._making = asyncio.Lock()

    def ready(self, task: Task) -> Chain | None:
        """Return the chain of a task's pipeline when it is made already."""
        name = (task.pipeline, task.rehearsal)
        known = self._chains.get(name)
        if known is None or known[0] != task.version:
            return None
        self._chains.move_to_end(name)
        return known[1]

    async def get(self, task: Task) -> Chain:
        """Return the chain of a task's pipeline. Raises the errors of loading and building it."""
        if (chain := self.ready(task)) is not None:
            return chain
        async with self._making:
            if (chain := self.ready(task)) is not None:
                return chain
            config = await self._source(task.pipeline, task.version)
            which = f"{task.pipeline} {task.version}{' candidate' * task.rehearsal}"
            chain = build(config, self._limit, replace(self._services, place=which))
            name = (task.pipeline, task.rehearsal)
            _, known = self._chains.get(name, (0, None))
            self._chains[name] = (task.version, chain)
            if known is not None:
                await known.close()
            if len(self._chains) > CACHE:
                _, (_, old) = self._chains.popitem(last=False)
                await old.close()
        return chain

    @property
    def names(self) -> list[Name]:
        """Return the names of the pipelines in it."""
        return list(self._chains)

    async def drop(self, names: Iterable[Name] | None = None) -> None:
        """Close the chains of some pipelines, by default of all, those that are being made now too."""
        async with self._making:
            wanted = list(self._chains if names is None else names)
            gone = [self._chains.pop(name)[1] for name in wanted if name in self._chains]
        for chain in gone:
            await chain.close()

    async def change(self, limit: float, services: Services) -> None:
        """Make every chain again, with another limit (seconds) and other services."""
        self._limit, self._services = limit, services
        await self.drop()

    async def close(self) -> None:
        """Close every chain."""
        while self._chains:
            _, (_, chain) = self._chains.popitem()
            await chain.close()


def routed(names: Iterable[Name], routes: Routes) -> list[Name]:
    """Return the names of those pipelines that routes lead to."""
    found = ((owner, candidate, routes.of(owner)) for owner, candidate in names)
    return [(owner, candidate) for owner, candidate, route in found if route and (route.candidate or not candidate)]


class Worker:
    """The runner of pipelines for the tasks of some queues. `pipelines` are those of each node, by its name."""

    def __init__(
        self,
        consumer: TaskConsumer,
        pipelines: Mapping[str, PipelineCache],
        *,
        queues: tuple[str, ...],
        concurrency: int,
        clock: Clock,
        signature: Callable[[], tuple[str, str]] = lambda: ("", ""),
    ) -> None:
        """Prepare. `signature` returns the worker's name and the digest of its own pipeline, for each answer."""
        self._signature = signature
        self._consumer, self._pipelines, self._queues = consumer, pipelines, queues
        self._concurrency, self._clock = concurrency, clock
        self._stopping = asyncio.Event()
        self._idle: set[asyncio.Task[None]] = set()
        self._mails: WeakValueDictionary[int, Mail] = WeakValueDictionary()
        self._reading: dict[int, asyncio.Future[Mail | None]] = {}

    async def retain(self, routes: Routes) -> None:
        """Drop the pipelines that no route names any more."""
        for pipelines in self._pipelines.values():
            await pipelines.drop(set(names := pipelines.names).difference(routed(names, routes)))

    async def run(self) -> None:
        """Run until `stop` is called; then every lease in hand is answered before this returns. Raises Temporary."""
        await self._consumer.open()
        try:
            async with asyncio.TaskGroup() as group:
                loops = [group.create_task(self._loop()) for _ in range(self._concurrency)]
                await self._stopping.wait()
                await self._consumer.stop_taking()
                for loop in loops:
                    if loop in self._idle:
                        loop.cancel()
        finally:
            await self._consumer.close()
            for pipelines in self._pipelines.values():
                await pipelines.close()

    def stop(self) -> None:
        """Take no more tasks."""
        self._stopping.set()

    async def _loop(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        while not self._stopping.is_set():
            self._idle.add(me)
            try:
                lease = await self._consumer.lease(self._queues)
            finally:
                self._idle.discard(me)
            try:
                await self._work(lease)
            except Exception as error:
                # The node offers the task again; this loop must live on.
                await lease.discard()
                logs.failed("a lease", error=error, msg_id=to_text(lease.task.message))

    async def _work(self, lease: Lease) -> None:
        task, (worker, file) = lease.task, self._signature()
        chain = self._pipelines[lease.node].ready(task)
        try:
            if chain is not None and not chain.waits:
                answer = await self._answer(lease)
            else:
                async with within(task.deadline):
                    answer = await self._answer(lease)
        except TimeoutError:
            answer = Deferral(f"no verdict within {task.deadline:g} s", why=LATE)
        except asyncio.CancelledError:
            await lease.give_back()
            raise
        await lease.answer(replace(answer, worker=worker, file=file) if worker else answer)

    async def _read(self, lease: Lease) -> Mail:
        """Return the message, read once for all its recipients in hand. Raises Temporary."""
        message = lease.task.message
        mail = self._mails.get(message)
        while mail is None:
            if (reading := self._reading.get(message)) is None:
                return await self._read_first(lease)
            mail = await asyncio.shield(reading)
        return mail

    async def _read_first(self, lease: Lease) -> Mail:
        """Read a message. The others that wait for it get None if this fails or is cancelled."""
        message = lease.task.message
        reading = self._reading[message] = asyncio.get_running_loop().create_future()
        mail = None
        try:
            mail = self._mails[message] = await _prepared(lease)
            return mail
        finally:
            del self._reading[message]
            reading.set_result(mail)

    async def _answer(self, lease: Lease) -> PipelineResult:
        task = lease.task
        try:
            chain = await self._pipelines[lease.node].get(task)
            mail = await self._read(lease)
            context = Context(
                message=to_text(task.message),
                recipient=task.recipient,
                sender=task.sender,
                client=task.client,
                now=self._clock(),
                attempt=task.attempt,
                rehearsal=task.rehearsal,
            )
            return await chain.run(mail, context)
        except Exception as error:
            logs.failed(f"pipeline of {task.pipeline}", error=error, msg_id=to_text(task.message))
            return Deferral(f"the pipeline of {task.pipeline} cannot run: {error}")


async def _prepared(lease: Lease) -> Mail:
    """Return a message. A large header is read outside the event loop."""
    mail = Mail(await lease.content())
    if isinstance(mail.content, InFile) or mail.large_header:
        await asyncio.to_thread(mail.prepare)
    return mail
