"""Each part, made from the configuration."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine

from sendswitch import logs
from sendswitch.accounts.routes import make_route
from sendswitch.accounts.users import get_pipeline
from sendswitch.bootstrap.worker_processes import WorkerProcesses
from sendswitch.broker.base import OWN_HAD, TaskConsumer
from sendswitch.clock import system_clock
from sendswitch.conditions.pipeline import PipelineConfig, read_pipeline
from sendswitch.config.model import Config, ListenerSection
from sendswitch.db.connect import in_thread, open_database
from sendswitch.delivery.backoff import Backoff
from sendswitch.delivery.base import Courier
from sendswitch.delivery.compose import Composer
from sendswitch.delivery.maildir import MaildirCourier
from sendswitch.errors import InvalidConfiguration, NotFound, SpoolUnavailable, in_words
from sendswitch.mail.hops import Marks
from sendswitch.mail.srs import Srs
from sendswitch.monitoring.canary import Flight
from sendswitch.pipeline.trial import Trial
from sendswitch.processors import registry
from sendswitch.processors.base import Readers, Services
from sendswitch.processors.hosting.reader_pool import InProcesses
from sendswitch.processors.list_book import read_book
from sendswitch.processors.list_entries import Book, KeptLists
from sendswitch.queue.bounce import Reporter
from sendswitch.queue.limiter import Limiter
from sendswitch.queue.poison import Suspects, left_in_hand
from sendswitch.queue.policy import Policy
from sendswitch.queue.settings import Settings
from sendswitch.routing import HERE, Routes
from sendswitch.smtp.client import ClientOptions
from sendswitch.smtp.endpoint import parse_endpoint
from sendswitch.smtp.pool import Pool
from sendswitch.smtp.protocol.server import Limits
from sendswitch.smtp.server import Options, Timeouts
from sendswitch.spool import rules
from sendswitch.spool.admin import open_files
from sendswitch.spool.spool import Spool
from sendswitch.tracing import Tracing, otlp
from sendswitch.worker.runtime import PipelineCache, Worker

# The version of the spool with which mail without a verdict was not delivered any more by default.
SAFE_DEFAULTS_SINCE = 4
# Transactions that may be under way or unrecorded, for each connection to the next hop. With one, a connection would
# stand idle during each group commit, and the relay lost a third of its rate by that.
UNRECORDED = 5


def copy_rules(others: Iterable[Path], data: Path) -> None:
    """Take the rules that other nodes of this machine have and this one has not: it may be new, or was away.

    `others` are their data folders. Logs what cannot be read. Raises SpoolUnavailable.
    """
    for folder in others:
        try:
            with closing(open_files(folder)) as source, closing(open_files(data)) as own:
                rules.copy(own, source, time.time())
        except NotFound:
            pass  # it was never started
        except SpoolUnavailable as error:
            logs.failed(f"taking the rules of the node in {folder}", error=error)


def make_srs(config: Config, secret: bytes) -> Srs | None:
    """Make the rewriter of the senders of forwarded mail; None when senders stay."""
    return Srs(config.forward.srs_domain, secret) if config.forward.srs_domain else None


def make_settings(
    config: Config, spool: Spool, marks: Marks, srs_secret: bytes, *, before: Settings | None = None
) -> Settings:
    """Return the queue's settings by the configuration, with the routes and rules of `before`.

    `before` is None at the start; otherwise its courier goes on, and with it the limit of what is under way.
    """
    return Settings(
        courier=before.courier if before else make_courier(config),
        composer=Composer(config.node.host, dict(config.tags.subject)),
        policy=make_policy(config),
        backoff=Backoff(config.next_hop.first_retry, config.next_hop.last_retry),
        reporter=Reporter(spool, config.node.host, config.node.lifetime, system_clock),
        recipients=config.next_hop.recipients,
        sending=before.sending if before else make_limiter(config),
        marks=marks,
        srs=make_srs(config, srs_secret),
        routes=before.routes if before else Routes(),
        rules=before.rules if before else (),
    )


def make_limiter(config: Config) -> Limiter:
    """Make the limit of transactions that are under way or unrecorded. Each courier has its own."""
    return Limiter(UNRECORDED * config.next_hop.connections)


def make_flight(config: Config) -> Flight:
    """Return the canary's settings."""
    canary, host = config.canary, config.node.host
    return Flight(parse_endpoint(canary.smtp), host, canary.sender, canary.to, canary.interval, canary.limit)


def make_courier(config: Config) -> Courier:
    """Make the courier to the next hop."""
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


def listener_options(
    section: ListenerSection, host: str, authenticate: Callable[[str, str], Awaitable[str]] | None = None
) -> Options:
    """Return a listener's settings for the SMTP shell. Raises InvalidConfiguration for a bad certificate."""
    return Options(
        host=host,
        limits=Limits(size=section.message_size, recipients=section.recipients, errors=section.errors),
        timeouts=Timeouts(section.idle_timeout, section.transaction_timeout),
        connections=section.connections,
        connections_per_address=section.connections_per_address,
        lmtp=section.protocol == "lmtp",
        xforward_from=_networks(section.xforward_from),
        xclient_from=_networks(section.xclient_from),
        haproxy_from=_networks(section.haproxy_from),
        tls=_tls(section),
        auth=section.auth,
        authenticate=authenticate,
    )


def _networks(names: Iterable[str]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(name, strict=False) for name in names)


def _tls(section: ListenerSection) -> ssl.SSLContext | None:
    if section.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(section.tls_certificate, section.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfiguration(
            [f"listener.tls_certificate {section.tls_certificate}: {in_words(error)}"]
        ) from error
    return context


def make_trial(config: Config, owner: str, version: int, text: str) -> Trial:
    """Return a pipeline for a trial, as it would run here. Raises InvalidConfiguration, ValueError."""
    own = registry.check(text, f"the pipeline of {owner}" if version else owner)
    route = make_route(owner, version, own.summary, config)
    return Trial(own, route, make_policy(config), limit=config.pipelines.limit, services=make_services(config))


def make_readers(cores: int) -> Readers:
    """Return the readers of content for a worker that may use so many cores: processes beside it."""
    return InProcesses(cores)


def make_services(config: Config) -> Services:
    """Return the facts about this node that steps may use."""
    lists, sandbox = KeptLists(lambda: _book(config)), config.pipelines.sandbox != "none"
    return Services(config.node.host, config.webhooks.allow, lists, sandbox=sandbox)


def _book(config: Config) -> Book:
    """Return the allow and deny lists in the database. A missing database has none, and is not made for this."""
    if not config.database.url.get_secret_value() and not (config.node.data / "sendswitch.db").exists():
        return Book()
    return read_book(open_database(config.database_url), config.routing.recipient_delimiter)


def make_tracing(config: Config) -> Tracing | None:
    """Make the sender of traces, None without an endpoint. Raises InvalidConfiguration when it cannot."""
    section = config.tracing
    if not section.endpoint:
        return None
    headers = {name: value.get_secret_value() for name, value in section.header.items()}
    return Tracing(otlp(section.endpoint, headers, config.node.host), share=section.sample)


def make_policy(config: Config) -> Policy:
    """Return the configured answers for verdicts that leave them open."""
    return Policy(config.hold.expires, config.hold.then, config.quarantine.expires)


def changed_defaults(config: Config) -> list[str]:
    """Return the defaults that an upgrade changed at this site. Configured values are left out."""
    changes = []
    if "on_timeout" not in config.pipelines.model_fields_set:
        changes.append('pipelines.on_timeout is "defer" now; it was "pass": mail without a verdict waits')
    if "then" not in config.hold.model_fields_set:
        changes.append('hold.then is "quarantine" now; it was "pass": held mail that expires is not delivered')
    return changes


async def find_suspects(spool: Spool, notes: Path) -> Suspects:
    """Return the deliveries that may have killed the last node, durably counted. Raises SpoolUnavailable."""
    counts = await spool.suspects()
    left = await asyncio.to_thread(left_in_hand, notes)
    here = await spool.have(list(left))
    new = {key: counts[key] + (left[key] != OWN_HAD) if key in counts else 0 for key in left if key in here}
    if new:
        await spool.suspect(new)
        logs.suspected(deliveries=len(new))
    digests = {digest for key, digest in left.items() if key not in here and digest not in (b"", OWN_HAD)}
    return Suspects(counts | new, digests, spool.suspect)


def make_worker(config: Config, consumer: TaskConsumer, engine: Engine, services: Services) -> Worker:
    """Make the worker inside the node, for the pipelines that cost little for any mail."""

    async def source(owner: str, version: int) -> PipelineConfig:
        stored = await in_thread(get_pipeline, engine, owner, version)
        return read_pipeline(stored.text, owner)

    pipelines = PipelineCache(source, config.pipelines.limit, services)
    return Worker(consumer, {"": pipelines}, queues=(HERE,), concurrency=config.worker.concurrency, clock=system_clock)


def worker_processes(config: Config, path: Path, needed: asyncio.Event, alone: asyncio.Event) -> WorkerProcesses:
    """Return the worker processes of a node: they start when `needed` is set, and one for suspects with `alone`."""
    section = config.worker
    number = section.processes or os.cpu_count() or 1
    files = config.node.data / "worker-files"
    return WorkerProcesses(
        path,
        files,
        number,
        places=section.concurrency,
        memory=section.memory,
        needed=needed,
        alone=alone,
        brokers=config.broker_urls,
    )
