"""The list of parts: makes each from the configuration and hands it only what it needs.

The only module that names concrete adapters. `Node` starts them in order and stops them in the other.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import ssl
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from sendswitch import logs
from sendswitch.broker.base import Broker
from sendswitch.broker.embedded import EmbeddedBroker
from sendswitch.clock import system_clock
from sendswitch.config.load import parse, validate
from sendswitch.config.model import Config, ListenerSection
from sendswitch.config.pipeline import PipelineConfig
from sendswitch.db import journal
from sendswitch.db.connect import open_database
from sendswitch.db.users import all_pipelines, candidates, get_pipeline
from sendswitch.delivery.backoff import Backoff
from sendswitch.delivery.base import Courier
from sendswitch.delivery.compose import Composer
from sendswitch.delivery.maildir import MaildirCourier
from sendswitch.errors import InvalidConfiguration, SendSwitchError, Temporary
from sendswitch.processors import registry
from sendswitch.rehearsal.trial import Trial
from sendswitch.routing import POOL, Route, Routes
from sendswitch.smtp.address import Endpoint, parse_endpoint
from sendswitch.smtp.client import ClientOptions, Pool
from sendswitch.smtp.protocol.server import Limits
from sendswitch.smtp.server import Listener, Options, Timeouts
from sendswitch.spool.spool import Spool, open_spool
from sendswitch.switch.candidates import Candidates
from sendswitch.switch.decide import Policy
from sendswitch.switch.dispatcher import Dispatcher
from sendswitch.switch.doorbell import Doorbell
from sendswitch.switch.housekeeping import keep_house, refresh_gauges, trim_recorded
from sendswitch.switch.intake import FilterIntake, IntakeOptions, ProxyIntake, make_relay
from sendswitch.switch.journaling import finish_journal, keep_journal, prune_journal
from sendswitch.switch.journey import Journeys
from sendswitch.switch.outcomes import Outcomes
from sendswitch.switch.queue import Queue
from sendswitch.switch.reports import Reporter
from sendswitch.web.health import Check, make_app
from sendswitch.web.server import WebServer
from sendswitch.worker.runtime import Library, Worker

# Transactions that may be under way or unrecorded, for each connection to the next hop. With one, a connection would
# stand idle during each group commit, and the relay lost a third of its rate by that.
UNRECORDED = 5

# Seconds after which /healthz calls the journal and the queue degraded. The journal may lag behind a burst; Postfix
# warns of delayed mail after four hours, if at all.
JOURNAL_LATE = 120.0
QUEUE_LATE = 4 * 3600.0

# Seconds for the last events to reach the journal when we stop; the rest goes after the next start.
LAST_WORDS = 3.0

# Seconds for mail in hand when we are told to stop; systemd kills after 90.
GRACE = 30.0


class Node:
    """One node: listeners, spool, switch, web port and, if asked, a worker."""

    def __init__(self, config: Config, *, worker: bool) -> None:
        self.config, self._with_worker = config, worker
        self._lock = -1
        self._tasks: list[asyncio.Task[None]] = []
        self.listeners: list[Listener] = []
        self._reloading = asyncio.Event()
        self._worker: Worker | None = None

    async def start(self) -> None:
        """Start every part; mail is taken on return. Raises Temporary or InvalidConfiguration."""
        config = self.config
        self._lock = _lock(config.node.data)
        self._engine = open_database(config.database_url)
        self.spool = open_spool(config.node.data / "spool", system_clock, recording=config.recording.mail)
        broker = EmbeddedBroker()
        self.courier = make_courier(config)
        self.journeys = _make_journeys(config, self.spool, broker, self.courier)
        self.candidates = Candidates(self.journeys.dispatcher, self.spool.note)
        self.queue = Queue(self.spool, self.journeys, clock=system_clock)
        self.journeys.routes = await asyncio.to_thread(load_routes, self._engine, config)
        self._spawn(self.queue.run())
        if self._with_worker:
            self._worker = make_worker(config, broker, self._engine)
            self._worker_task = self._spawn(self._worker.run())
        self._doorbell = Doorbell(self._rung)
        await self._doorbell.listen(config.node.data)
        self._spawn(self._reload())
        kept = config.journal.enabled
        self._spawn(keep_house(self.spool, keep=config.node.keep, journal=kept, clock=system_clock))
        self._spawn(trim_recorded(self.spool, most=config.recording.most))
        if kept:
            self._spawn(keep_journal(self.spool, partial(journal.write, self._engine)))
            self._spawn(prune_journal(self._prune_journal, system_clock))
        refresh = partial(refresh_gauges, self.spool, system_clock)
        self.web = WebServer(make_app(self._checks(), self._warnings(), refresh))
        await self._bind()
        logs.started(**self.addresses())

    async def _bind(self) -> None:
        web = parse_endpoint(self.config.web.bind)
        try:
            await self.web.start(web.host, web.port)
        except OSError as error:
            raise Temporary(f"web.bind {web}: {error.strerror}; choose another address") from error
        for n, section in enumerate(self.config.listener):
            listener = Listener(self._intake(section), listener_options(section, self.config.node.host))
            endpoint = parse_endpoint(section.bind)
            try:
                await listener.start(endpoint)
            except OSError as error:
                raise Temporary(f"listener.{n}.bind {endpoint}: {error}; choose another address") from error
            self.listeners.append(listener)

    def _intake(self, section: ListenerSection) -> FilterIntake:
        node = self.config.node
        options = IntakeOptions(
            node.host, node.lifetime, node.max_hops, node.min_free, subject=self.config.journal.subject
        )
        if section.mode == "filter":
            return FilterIntake(self.spool, self.queue, options, system_clock)
        return ProxyIntake(
            self.spool,
            self.queue,
            options,
            system_clock,
            journeys=self.journeys,
            relay=make_relay(self.courier, self.journeys.composer),
            budget=section.budget,
        )

    def addresses(self) -> dict[str, str]:
        """Where the node listens, by name."""
        web = parse_endpoint(self.config.web.bind)
        out = {"web": f"http://{Endpoint(web.host, self.web.port)}"}
        for section, listener in zip(self.config.listener, self.listeners, strict=True):
            endpoint = parse_endpoint(section.bind)
            name = f"{section.protocol} {section.mode}"
            out[name] = str(endpoint if endpoint.path else Endpoint(endpoint.host, listener.port))
        return out

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_tell_if_failed)
        self._tasks.append(task)
        return task

    def _rung(self) -> None:
        self._reloading.set()
        self.queue.look()
        self.spool.written.set()

    async def _reload(self) -> None:
        """Read users and pipelines again at each ring; a database that fails leaves the old ones."""
        while True:
            await self._reloading.wait()
            self._reloading.clear()
            try:
                self.journeys.routes = await asyncio.to_thread(load_routes, self._engine, self.config)
                logs.reloaded(users=len(self.journeys.routes))
            except Exception as error:
                logs.failed("reloading users", error=error)

    def _prune_journal(self, now: float) -> int:
        section = self.config.journal
        return journal.prune(self._engine, before=now - section.keep, most=section.most)

    def _checks(self) -> dict[str, Check]:
        async def spool() -> str:
            await self.spool.probe()
            free, wanted = self.spool.free(), self.config.node.min_free
            return "" if free >= wanted else f"{free} bytes free, less than node.min_free = {wanted}; make room"

        async def next_hop() -> str:
            reply = await self.courier.check()
            return "" if reply is None else f"{self.config.next_hop.address}: {reply}"

        return {"spool": spool, "next_hop": next_hop}

    def _warnings(self) -> dict[str, Check]:
        async def journal_keeps_up() -> str:
            since = await self.spool.waiting_since()
            late = 0.0 if since is None else system_clock() - since
            if late < JOURNAL_LATE:
                return ""
            return f"events wait for the journal since {late:.0f} s; look for journal_failed in the log"

        async def queue_moves() -> str:
            _, oldest, _ = await self.spool.figures()
            late = 0.0 if oldest is None else system_clock() - oldest
            if late < QUEUE_LATE:
                return ""
            return f"a delivery is on its way since {late:.0f} s; `sendswitch queue list` says why"

        warnings: dict[str, Check] = {"queue": queue_moves}
        return warnings | {"journal": journal_keeps_up} if self.config.journal.enabled else warnings

    async def stop(self) -> None:
        """Take no more mail, end what is in hand, stop workers, close. Everything else is in the spool."""
        for listener in self.listeners:
            await listener.stop(GRACE / 3)
        await self.queue.stop(GRACE / 3)
        await self.candidates.stop()
        if self._worker is not None:
            self._worker.stop()
            await asyncio.wait([self._worker_task], timeout=GRACE / 3)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.config.journal.enabled:
            await self._last_words()
        await self.web.stop()
        self.courier.close()
        self._doorbell.close(self.config.node.data)
        await self.spool.close()
        self._engine.dispose()
        os.close(self._lock)
        logs.stopped()

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS):
                await finish_journal(self.spool, partial(journal.write, self._engine))
        except Exception as error:
            logs.journal_failed(error=error, retry_in=0.0)


def _tell_if_failed(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Exception):
        logs.failed("a part of the node, which has stopped; restart it", error=error)


def _lock(data: Path) -> int:
    """Two nodes on one spool would deliver everything twice."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Temporary(f"node.data {data}: {error.strerror}; create it for this user or choose another") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise Temporary(f"node.data {data} is in use by another node; each needs a folder of its own") from error
    return handle


def _make_journeys(config: Config, spool: Spool, broker: Broker, courier: Courier) -> Journeys:
    policy = make_policy(config)
    reporter = Reporter(spool, config.node.host, config.node.lifetime, system_clock)
    backoff = Backoff(config.next_hop.first_retry, config.next_hop.last_retry)
    return Journeys(
        Outcomes(spool, reporter, backoff, system_clock),
        Dispatcher(broker, policy=policy, clock=system_clock),
        courier,
        Composer(config.node.host, dict(config.tags.subject)),
        policy=policy,
        clock=system_clock,
        recipients=config.next_hop.recipients,
        sending=UNRECORDED * config.next_hop.connections,
    )


def make_courier(config: Config) -> Courier:
    """The courier to the next hop."""
    hop = config.next_hop
    if hop.address.startswith("maildir:"):
        return MaildirCourier(Path(hop.address.removeprefix("maildir:")))
    context = None
    if hop.tls != "off":
        context = ssl.create_default_context()
        if hop.tls == "may":  # opportunistic, as in Postfix: better than plaintext, no proof of who is there
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    options = ClientOptions(
        helo=config.node.host,
        lmtp=hop.protocol == "lmtp",
        tls=hop.tls,
        context=context,
        connect=hop.connect_timeout,
        command=hop.command_timeout,
        content=hop.content_timeout,
    )
    return Pool(parse_endpoint(hop.address), options, size=hop.connections, idle=hop.idle)


def listener_options(section: ListenerSection, host: str) -> Options:
    """A listener's settings for the SMTP shell. Raises InvalidConfiguration for a bad certificate."""
    return Options(
        host=host,
        limits=Limits(size=section.message_size, recipients=section.recipients, errors=section.errors),
        timeouts=Timeouts(section.idle_timeout, section.transaction_timeout),
        connections=section.connections,
        connections_per_address=section.connections_per_address,
        lmtp=section.protocol == "lmtp",
        xforward_from=tuple(ipaddress.ip_network(net, strict=False) for net in section.xforward_from),
        tls=_tls(section),
    )


def _tls(section: ListenerSection) -> ssl.SSLContext | None:
    if section.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(section.tls_certificate, section.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfiguration([f"listener.tls_certificate {section.tls_certificate}: {error}"]) from error
    return context


def load_routes(engine: Engine, config: Config) -> Routes:
    """Every user's route. A pipeline that cannot be read keeps its route, so that its mail waits and none passes."""
    routes = []
    beside = candidates(engine)
    for stored in all_pipelines(engine):
        try:
            own = _pipeline(stored.text, stored.owner)
        except SendSwitchError as error:
            logs.failed(f"the pipeline of {stored.owner}", error=error)
            own = PipelineConfig()
        route = _route(stored.owner, stored.version, own, config)
        routes.append(replace(route, candidate=beside.get(stored.owner, 0)))
    return Routes(routes, delimiters=config.routing.recipient_delimiter)


def _route(owner: str, version: int, own: PipelineConfig, config: Config) -> Route:
    defaults = config.pipelines
    return Route(
        owner=owner,
        version=version,
        deadline=own.deadline or defaults.deadline,
        on_timeout=own.on_timeout or defaults.on_timeout,
        deny=own.deny or defaults.deny,
    )


def make_trial(config: Config, owner: str, version: int, text: str) -> Trial:
    """A pipeline to be tried as it would run here. Raises InvalidConfiguration or ValueError when it cannot."""
    own = registry.check(text, f"the pipeline of {owner}" if version else owner)
    return Trial(own, _route(owner, version, own, config), make_policy(config), config.pipelines.limit)


def make_policy(config: Config) -> Policy:
    """What the configuration says where a verdict does not."""
    return Policy(config.hold.expires, config.hold.then, config.quarantine.expires)


def _pipeline(text: str, owner: str) -> PipelineConfig:
    data, lines = parse(text, owner)
    return validate(PipelineConfig, data, owner, lines)


def make_worker(config: Config, broker: Broker, engine: Engine) -> Worker:
    """The worker that runs the site's pipelines."""

    async def source(owner: str, version: int) -> PipelineConfig:
        stored = await asyncio.to_thread(get_pipeline, engine, owner, version)
        return _pipeline(stored.text, owner)

    library = Library(source, config.pipelines.limit)
    return Worker(broker, library, queues=(POOL,), concurrency=config.worker.concurrency, clock=system_clock)
