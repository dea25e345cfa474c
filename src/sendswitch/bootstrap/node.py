"""One node: starts every part in order, stops them in the other, and answers the commands it is asked.

A reload makes everything that may fail first, then swaps without an await in between: nothing ever sees half of a
new configuration, and no connection notices.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sendswitch import logs, unix_socket
from sendswitch.accounts import access_keys, users
from sendswitch.accounts.passwords import Passwords
from sendswitch.bootstrap.background import Background
from sendswitch.bootstrap.checks import checks, warnings
from sendswitch.bootstrap.database_view import DatabaseView
from sendswitch.bootstrap.heartbeat import Heartbeat
from sendswitch.bootstrap.management import Management
from sendswitch.bootstrap.parts import (
    SAFE_DEFAULTS_SINCE,
    changed_defaults,
    copy_rules,
    find_suspects,
    listener_options,
    make_flight,
    make_services,
    make_settings,
    make_srs,
    make_tracing,
    make_worker,
    worker_processes,
)
from sendswitch.bootstrap.rabbitmq import rabbit_publisher
from sendswitch.bootstrap.worker_calls import WorkerCalls, settings_for_workers
from sendswitch.broker.base import TaskPublisher
from sendswitch.broker.by_queue import ByQueue
from sendswitch.broker.calls import Call
from sendswitch.broker.embedded import EmbeddedBroker
from sendswitch.broker.rabbitmq import Hosts
from sendswitch.broker.worker_server import NAME as WORKERS
from sendswitch.broker.worker_server import WorkerServer
from sendswitch.clock import system_clock
from sendswitch.config.model import Config, ListenerSection
from sendswitch.db import journal, nodes
from sendswitch.db.connect import in_thread, open_database
from sendswitch.db.secrets import secret
from sendswitch.errors import AddressTaken, InvalidConfiguration, Refused, SendSwitchError, Temporary, in_words
from sendswitch.intake.after_queue import FilterIntake, IntakeOptions
from sendswitch.intake.proxy import ProxyIntake
from sendswitch.journal.events import Event
from sendswitch.mail.content import Content
from sendswitch.mail.hops import Marks
from sendswitch.mail.task import Reference
from sendswitch.monitoring.auditor import full_audit, keep_ledger
from sendswitch.monitoring.canary import Canary
from sendswitch.monitoring.health import make_app
from sendswitch.monitoring.housekeeping import keep_house, refresh_gauges, trim_recorded
from sendswitch.monitoring.journal_relay import finish_journal, keep_journal, prune_journal
from sendswitch.monitoring.overload import Overload
from sendswitch.processors.rate_counters import RateCounters
from sendswitch.processors.services.reachable import Reach
from sendswitch.queue.active import ActiveQueue
from sendswitch.queue.autoreply import AutoReplies
from sendswitch.queue.candidates import AT_ONCE, Candidates
from sendswitch.queue.dispatcher import Dispatcher
from sendswitch.queue.outcomes import Outcomes
from sendswitch.queue.poison import Notes
from sendswitch.queue.runner import QueueRunner
from sendswitch.queue.settings import Current
from sendswitch.routing import Route, in_rabbitmq
from sendswitch.smtp.endpoint import Endpoint, parse_endpoint
from sendswitch.smtp.server import Listener
from sendswitch.spool.opening import Register, close_to_others, open_spool
from sendswitch.web.server import WebServer
from sendswitch.web.stories import make_routes
from sendswitch.web.worker_socket import MOST as MOST_MESSAGE
from sendswitch.web.worker_socket import WorkerSocket
from sendswitch.webhooks.outbox import PLACE, Outbox
from sendswitch.webhooks.sender import Sender

# Seconds for the last events to reach the journal when we stop; the rest goes after the next start.
LAST_WORDS = 3.0

# Numbers for the endpoints of webhooks that each of several nodes of one machine has.
ENDPOINTS = 10_000

# Seconds for mail in hand when we are told to stop; systemd kills after 90.
GRACE = 30.0

# What a running node cannot change: who it is, where its data are, and what was made once for all of its life.
FIXED = (
    "node.data",
    "node.host",
    "node.processes",
    "database.url",
    "web.bind",
    "worker",
    "broker",
    "journal.enabled",
    "recording.mail",
    "pipelines.limit",
    "pipelines.sandbox",
    "webhooks.allow",
    "tracing",
)

if TYPE_CHECKING:
    from sendswitch.broker.rabbitmq.publisher import RabbitPublisher

Work = Callable[[], Coroutine[None, None, None]]
Source = Callable[[], Config]
"""Reads the configuration again. Raises InvalidConfiguration."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a node among those of one machine: its number, whether others listen on the same ports, and the data
    folders of the others by their numbers.
    """

    number: int = 1
    shared: bool = False
    others: Mapping[int, Path] = field(default_factory=dict)

    @property
    def behind(self) -> Mapping[int, Path] | None:
        """Return the nodes to which this one passes workers on, None for one that is itself behind the first."""
        return self.others if self.number == 1 else None


class Node:
    """One node: listeners, spool, queue, web port and, if asked, worker processes."""

    def __init__(
        self,
        config: Config,
        *,
        workers: bool,
        source: Source | None = None,
        stories: bool = False,
        place: Place = Place(),
    ) -> None:
        """Prepare a node. `stories` shows the pages that need no login: for a demonstration."""
        self._stories, self._place = stories, place
        self.config, self._first, self._with_workers, self._source = config, config, workers, source
        self.data = config.node.data
        self._lock = -1
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: dict[str, Listener] = {}
        self._changing = asyncio.Lock()
        self.draining = False
        self.background = Background()
        self._heartbeat: Heartbeat | None = None
        self.refused = ""  # why the last reload failed

    # Starting

    async def start(self) -> None:
        """Start every part; mail is taken on return. Raises Temporary or InvalidConfiguration."""
        self._open_stores()
        await self._start_queue()
        await self._make_services()
        await self._start_workers()
        self.canary = Canary(self.spool, lambda: make_flight(self.config))
        self.overload = Overload(self.spool, lambda: self.config.node.max_memory)
        self._management = Management(self)
        await self._management.start(self.data, self._engine)
        for part, work in self._beside_the_mail().items():
            self._keep(part, work)
        refresh = partial(refresh_gauges, self.spool, system_clock)
        behind = self._place.behind
        sockets = None if behind is None else {number: folder / WORKERS for number, folder in behind.items()}
        workers = WorkerSocket(self.workers, self._key, sockets)
        pages = [*(make_routes(self._engine) if self._stories else ()), workers.route()]
        self.web = WebServer(make_app(checks(self), warnings(self), refresh, pages), message=MOST_MESSAGE)
        try:
            await self._start_web()
            self._listeners = await self._bind(_by_name(self.config))
        except BaseException:  # an address is taken: all that works by now ends in order
            await self.stop()
            raise
        self._heartbeat = Heartbeat(self, self._engine)
        self._keep("heartbeat", self._heartbeat.run)
        logs.started(**self.addresses())

    def _open_stores(self) -> None:
        """Lock the folder; open database, spool and outbox."""
        config = self.config
        self._lock = _lock(self.data)
        self._tracing = make_tracing(config)
        self._engine = open_database(config.database_url)
        self._passwords = Passwords(self._engine)
        register: Register = lambda name, number: nodes.register(self._engine, name, number, system_clock())  # noqa: E731
        self.spool = open_spool(self.data / "spool", system_clock, recording=config.recording.mail, register=register)
        copy_rules(self._place.others.values(), self.data)
        if 0 < self.spool.version_before < SAFE_DEFAULTS_SINCE:
            logs.upgraded(changes=changed_defaults(config))
        self._outbox = Outbox(self.data / PLACE, first=1 + ENDPOINTS * (self._place.number - 1))

    async def _start_queue(self) -> None:
        """Start the queue and its runner, with the routes and rules that hold now."""
        config = self.config
        self._srs_secret = await in_thread(secret, self._engine, "srs")
        marks = Marks(await in_thread(secret, self._engine, "forward"))
        place = self.data / "spool" / "in-hand"
        suspects = await find_suspects(self.spool, place)
        self._notes = Notes(place)
        self.current = Current(make_settings(config, self.spool, marks, self._srs_secret))
        self.queue = ActiveQueue(self.spool, self.current, clock=system_clock)
        self._broker = EmbeddedBroker(self._notes)
        self.rabbitmq: RabbitPublisher | None = None
        publisher: TaskPublisher = self._broker.publisher()
        if urls := config.broker_urls:
            name = secrets.token_hex(6)
            hosts = Hosts(urls, config.broker.queue_type)
            self.rabbitmq = rabbit_publisher(hosts, name, self._content, self._calls, self._for_workers, self._notes)
            publisher = ByQueue(publisher, self.rabbitmq)
        self._needed, self._suspected = asyncio.Event(), asyncio.Event()
        self._dispatcher = Dispatcher(
            publisher,
            self.current,
            clock=system_clock,
            suspects=suspects,
            on_suspect=self._suspected.set,
            offline_after=config.worker.offline_after,
        )
        await self._dispatcher.open()
        self._outcomes = Outcomes(self.spool, self.queue, self.current, system_clock)
        self._runner = QueueRunner(self.queue, self._outcomes, self._dispatcher, self.current, clock=system_clock)
        # So few that a worker has nine places of ten for live mail, whatever the candidates do.
        most = min(AT_ONCE, config.worker.concurrency // 10)
        self.candidates = Candidates(self._dispatcher, self.spool.note, most=most)
        self._database = DatabaseView(self._engine, lambda: self.config, self.current, self._know_routes)
        await self._database.open()
        self.current.use_rules(await self.spool.rules())
        self._keep("workers online", partial(self._dispatcher.watch, self._back))
        self._keep("queue", self.queue.run)
        self._keep("runner", self._runner.run)

    async def _make_services(self) -> None:
        """Make the services that steps may use."""
        config = self.config
        self.sender = Sender(
            self._outbox, Reach(config.webhooks.allow), lambda: self.config.webhooks.keep, system_clock
        )
        self._services = replace(make_services(config), lists=self._database.lists)

    async def _start_workers(self) -> None:
        """Start the worker in this process, the socket for others and, if asked, worker processes."""
        config, read = self.config, self._dispatcher.content
        self._worker = make_worker(config, self._broker.consumer(read), self._engine, self._services)
        self._worker_task = self._keep("worker", self._worker.run)
        path = self.data / WORKERS
        processes = worker_processes(config, path, self._needed, self._suspected) if self._with_workers else None
        self._worker_calls = WorkerCalls(
            self._engine,
            lambda: self.config,
            self.current,
            outbox=self.sender,
            auto_replies=AutoReplies(self.spool, self.queue, config.node.lifetime, system_clock),
            counters=RateCounters(),
        )
        self.workers = WorkerServer(
            self._broker,
            read,
            self._calls,
            self._for_workers,
            on_hung=processes.kill if processes else lambda pid: None,
        )
        await self.workers.start(unix_socket.listen(path))
        self._processes = self._keep("worker processes", processes.run) if processes else None

    async def _content(self, reference: Reference) -> Content:
        return await self._dispatcher.content(reference)

    def _calls(self, owner: str) -> Mapping[str, Call]:
        return self._worker_calls.of(owner)

    def _for_workers(self, owner: str) -> dict[str, Any]:
        level = logs.lowest_level()
        others = tuple(self._place.behind or ())
        return settings_for_workers(
            self._first, self.config, self._database.lists_read, level, own=bool(owner), others=others
        )

    async def _key(self, given: str) -> tuple[int, str] | None:
        """Return the number of a worker's key and its user's address."""
        return await in_thread(access_keys.user_of, self._engine, given, "work")

    def _beside_the_mail(self) -> dict[str, Work]:
        """Return the background work of the node's whole life, by name."""
        kept = self._first.journal.enabled
        parts: dict[str, Work] = {
            "users and pipelines": partial(self._database.follow, self._tell_workers, self.workers.drop),
            "webhooks": self.sender.run,
            "overload": self.overload.watch,
            "canary": self.canary.run,
            "pruning": partial(prune_journal, self._prune_database, system_clock),
            "purge": partial(
                keep_house, self.spool, keep=lambda: self.config.node.keep, journal=kept, clock=system_clock
            ),
            "audit": partial(keep_ledger, partial(full_audit, self.data, self._engine if kept else None)),
            "recorded mail": partial(trim_recorded, self.spool, most=lambda: self.config.recording.most),
        }
        if self._tracing is not None:
            parts["traces"] = self._tracing.run
        if kept:
            parts["journal"] = partial(keep_journal, self.spool, self._write_events)
        return parts

    async def _start_web(self) -> None:
        web = parse_endpoint(self.config.web.bind)
        try:
            await self.web.start(web.host, web.port)
        except OSError as error:
            raise not_bound("web.bind", web, error) from error

    async def _bind(self, sections: Mapping[str, ListenerSection]) -> dict[str, Listener]:
        """Bind a listener for each section, all of them or none. Raises Temporary, InvalidConfiguration."""
        bound: dict[str, Listener] = {}
        try:
            for name, section in sections.items():
                options = listener_options(section, self.config.node.host, self._passwords.check)
                listener = Listener(self._intake(section, self.config), options)
                endpoint = parse_endpoint(section.bind)
                try:
                    await listener.start(endpoint, shared=self._place.shared)
                except OSError as error:
                    raise not_bound("listener.bind", endpoint, error) from error
                bound[name] = listener
        except BaseException:
            for listener in bound.values():
                await listener.stop(0.0)
            raise
        return bound

    def _intake(self, section: ListenerSection, config: Config) -> FilterIntake:
        node = config.node
        options = IntakeOptions(
            node.host,
            node.lifetime,
            node.max_hops,
            node.min_free,
            subject=config.journal.subject,
            overload=lambda: self.overload.why,
            delimiters=config.routing.recipient_delimiter,
            origin=config.routing.origin,
            directory=self._database.directory,
            srs=make_srs(config, self._srs_secret),
        )
        if section.mode == "filter":
            return FilterIntake(self.spool, self.queue, options, system_clock)
        return ProxyIntake(
            self.spool,
            self.queue,
            options,
            system_clock,
            runner=self._runner,
            outcomes=self._outcomes,
            current=self.current,
            budget=section.budget,
        )

    def listener(self, section: ListenerSection) -> list[Listener]:
        """Return the listener of a section of the configuration, none while it takes no mail."""
        named = _by_name(self.config)
        return [self._listeners[name] for name, one in named.items() if one is section and name in self._listeners]

    @property
    def listeners(self) -> list[Listener]:
        """Return the listeners that take mail."""
        return list(self._listeners.values())

    def addresses(self) -> dict[str, str]:
        """Return where the node listens, by name."""
        web = parse_endpoint(self._first.web.bind)
        out = {"web": f"http://{Endpoint(web.host, self.web.port)}"}
        for name, section in _by_name(self.config).items():
            if (listener := self._listeners.get(name)) is not None:
                endpoint = parse_endpoint(section.bind)
                out[f"{section.protocol} {section.mode}"] = str(
                    endpoint if endpoint.path else Endpoint(endpoint.host, listener.port)
                )
        return out

    def _keep(self, part: str, work: Work) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self.background.keep(part, work))
        self._tasks.append(task)
        return task

    def _write_events(self, events: Sequence[Event]) -> None:
        journal.write(self._engine, events)
        if self._tracing is not None:
            self._tracing.add(events)

    def _prune_database(self, now: float) -> int:
        section, gone = self.config.journal, users.forget_removed(self._engine, now)
        if not self._first.journal.enabled:
            return gone
        return gone + journal.prune(self._engine, before=now - section.keep, most=section.most)

    # Changing while it runs

    def look(self, *, whole: bool = False) -> None:
        """Read changed users and pipelines soon, with `whole` all of them, and try what waits."""
        self.queue.wake()
        self.sender.look()
        self._database.look(whole=whole)

    async def catch_up(self) -> None:
        """Look as `look` does. On return what was changed in the database before holds here, if it can be read."""
        self.look()
        await self._database.catch_up()

    async def _tell_workers(self) -> None:
        """Tell workers that users, lists or settings may be others."""
        await self._worker.retain(self.current.settings.routes)
        self.workers.tell_settings()

    def _know_routes(self, routes: Iterable[Route]) -> None:
        """Start worker processes when one of these routes needs a worker, and hear workers in RabbitMQ."""
        needed, own = self._needed, self.rabbitmq
        for route in routes:
            if route.needs_pool:
                needed.set()
            if own is not None and route.own and in_rabbitmq(route.queue):
                own.hear_own()

    async def _back(self, keys: Sequence[tuple[int, int]]) -> None:
        """Offer deliveries again whose workers are there again."""
        await self.spool.make_due(keys)
        self.queue.wake()

    async def reload(self) -> list[str]:
        """Read the configuration again and change to it. Return the changed keys that wait for a restart.

        Raises InvalidConfiguration or Temporary, and then all stays as it was.
        """
        if self._source is None:
            raise Refused("this node was started without a configuration file")
        async with self._changing:
            try:
                config = await asyncio.to_thread(self._source)
                same = {"host": self._first.node.host, "data": self.data}
                await self._change_to(config.model_copy(update={"node": config.node.model_copy(update=same)}))
            except SendSwitchError as error:
                problems = error.problems if isinstance(error, InvalidConfiguration) else [str(error)]
                self.refused = "; ".join(problems)
                logs.configuration_refused(problems=problems)
                raise
        self.refused = ""
        restart = [key for key in FIXED if _value(config, key) != _value(self._first, key)]
        self.look(whole=True)
        logs.configured(restart=restart)
        return restart

    async def _change_to(self, config: Config, *, draining: bool | None = None) -> None:
        draining = self.draining if draining is None else draining
        wanted = {} if draining else _by_name(config)
        options = {
            name: listener_options(section, config.node.host, self._passwords.check) for name, section in wanted.items()
        }
        before = self.current.settings
        settings = make_settings(
            config,
            self.spool,
            before.marks,
            self._srs_secret,
            before=before if config.next_hop == self.config.next_hop else None,
        )
        new = await self._bind({name: wanted[name] for name in wanted if name not in self._listeners})
        # From here on nothing can fail, and nothing waits.
        self._management.log_as(config)
        self.config, self.draining = config, draining
        now = self.current.settings  # routes and rules may be others than before the listeners were bound
        self.current.swap(replace(settings, routes=now.routes, rules=now.rules))
        gone = [self._listeners.pop(name) for name in set(self._listeners) - set(wanted)]
        self._listeners |= new
        for name, section in wanted.items():
            self._listeners[name].change(self._intake(section, config), options[name])
        if self.current.settings.courier is not before.courier:
            before.courier.close()
        for listener in gone:
            self._keep("closing a listener", partial(listener.stop, GRACE))

    async def drain(self, on: bool) -> None:
        """Take no more mail, or take it again. Raises Temporary when an address is taken: then nothing changed."""
        async with self._changing:
            await self._change_to(self.config, draining=on)
            if on:
                logs.draining()

    # Stopping

    async def stop(self) -> None:
        """Stop taking mail, finish mail in hand, stop workers, close. Everything else is in the spool."""
        async with self._changing:
            self.draining = True  # a reload that waits opens no listeners
            for listener in self.listeners:
                await listener.stop(GRACE / 3)
        self.queue.stop()
        await self._runner.stop(GRACE / 3)
        await self.candidates.stop()
        await self._stop_workers()
        await self._dispatcher.close()
        await self._management.stop(self.data)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._first.journal.enabled:
            await self._last_words()
        if self._heartbeat is not None:
            await self._heartbeat.end()
        await self.web.stop()
        self.current.settings.courier.close()
        await self.spool.close()
        self._notes.close()
        self._outbox.close()
        self._engine.dispose()
        os.close(self._lock)
        logs.stopped()

    async def _stop_workers(self) -> None:
        self._worker.stop()
        ending = [self._worker_task]
        if self._processes is not None:
            self._processes.cancel()
            ending.append(self._processes)
        await asyncio.wait(ending, timeout=GRACE / 3)
        await self.workers.stop()
        with suppress(FileNotFoundError):
            (self.data / WORKERS).unlink()

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS):
                await finish_journal(self.spool, self._write_events)
        except Exception as error:
            logs.journal_failed(error=error, retry_in=0.0)


def not_bound(key: str, endpoint: Endpoint, error: OSError) -> AddressTaken:
    """Return the error for an address on which this process cannot listen."""
    if error.errno == errno.EACCES and 0 < endpoint.port < 1024:
        return AddressTaken(
            f"{key} {endpoint}: a port below 1024 needs root or CAP_NET_BIND_SERVICE; choose a higher one"
        )
    return AddressTaken(f"{key} {endpoint}: {in_words(error)}; choose another address")


def _by_name(config: Config) -> dict[str, ListenerSection]:
    """Return the listeners' sections by address, by which a reload knows them again, or by number for any free port."""
    sections = enumerate(config.listener)
    return {f"{s.bind} {n}" if s.bind.endswith(":0") else s.bind: s for n, s in sections}


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _lock(data: Path) -> int:
    """Lock the data folder: two nodes on one spool would deliver everything twice."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        close_to_others(data, "lock", "*.db", "*.db-wal", "*.db-shm", "*.db.*", "webhooks", "webhooks/*")
        handle = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Temporary(f"node.data {data}: {in_words(error)}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise Temporary(f"node.data {data} is in use by another node; each needs a folder of its own") from error
    return handle
