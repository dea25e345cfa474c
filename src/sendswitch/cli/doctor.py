"""`doctor`: find problems of this installation and say what to do. Changes nothing."""

from __future__ import annotations

import asyncio
import getpass
import os
import resource
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from sendswitch.accounts.users import all_pipelines
from sendswitch.admin import node, rules
from sendswitch.admin.base import Actor, Installation
from sendswitch.bootstrap.parts import listener_options, make_courier
from sendswitch.cli.mappings import mapping_trouble
from sendswitch.cli.output import Session, sized
from sendswitch.client import connect
from sendswitch.config.load import load_with_origins
from sendswitch.config.model import Config
from sendswitch.config.processes import folders_in
from sendswitch.db.connect import open_database, shown
from sendswitch.errors import InvalidConfiguration, SendSwitchError, in_words
from sendswitch.mail import ids
from sendswitch.monitoring.auditor import audit_all
from sendswitch.processors import registry
from sendswitch.processors.hosting import sandbox
from sendswitch.reply import Reply
from sendswitch.spool.admin import count_poison, damage, newest_message, open_files

# File systems on which SQLite's locks or fsync cannot be relied on (sqlite.org/howtocorrupt).
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")
# Seconds an id may be ahead of the clock: a machine whose clock was set back.
AHEAD = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `status` is ok, warning or problem; `do` says what the administrator can do."""

    what: str
    status: str
    found: str
    do: str = ""


def ok(what: str, found: str) -> Finding:
    """Return a finding: all is well."""
    return Finding(what, "ok", found)


def problem(what: str, found: str, do: str) -> Finding:
    """Note that mail is or will be in trouble."""
    return Finding(what, "problem", found, do)


def warning(what: str, found: str, do: str) -> Finding:
    """Note something to look at."""
    return Finding(what, "warning", found, do)


def doctor(context: typer.Context) -> None:
    """Find problems in this installation and suggest fixes. Exits with 1 if there is a problem."""
    session: Session = context.obj
    findings = list(_examine(session))
    if session.json:
        session.print_json([asdict(finding) for finding in findings])
    else:
        rows = [asdict(finding) for finding in findings]
        session.show(rows, ("what", "status", "found", "do"), "")
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _examine(session: Session) -> Iterator[Finding]:
    file = session.config_file
    try:
        config = session.config()
    except InvalidConfiguration as error:
        for text in error.problems:
            yield problem("configuration", text, "correct it; `sendswitch check` shows all at once")
        return
    yield ok("configuration", str(file or "the defaults"))
    looks: tuple[Callable[[Config], Iterator[Finding]], ...] = (
        *(_secrets(file), _data, _spool, _database, _pipelines, _sandbox),
        *(_node, _next_hop, _certificates, _limits, _postfix),
    )
    for look in looks:
        try:
            yield from look(config)
        except (SendSwitchError, OSError, sqlite3.Error, SQLAlchemyError) as error:
            yield problem(look.__name__.strip("_").replace("_", " "), in_words(error), "the message says what failed")


def _sandbox(config: Config) -> Iterator[Finding]:
    if config.pipelines.sandbox != "none":
        if (why := sandbox.trouble()) != "":
            yield problem("sandbox", why, "user code is not run until then, and its mail waits")
        else:
            yield ok("sandbox", f"{sandbox.PACKAGE} works for this user; the unit of the workers must allow it, too")


def _secrets(file: Path | None) -> Callable[[Config], Iterator[Finding]]:
    def secrets(config: Config) -> Iterator[Finding]:
        url = make_url(config.database_url)
        secret = {
            ("database", "url"): bool(url.password or "password" in url.query),
            ("broker", "urls"): any("@" in one for one in config.broker_urls),
            ("broker", "management"): bool(config.broker.management.get_secret_value()),
        }
        origins = load_with_origins(file).origins
        places = {origins.get(key, "") for key, there in secret.items() if there}
        for held in sorted({Path(place.rpartition(":")[0]) for place in places}):  # file:line; a variable has no file
            if held.is_file() and held.stat().st_mode & 0o004:
                yield warning("secrets", f"{held} has a password and others can read it", f"chmod 640 {held}")

    return secrets


def _data(config: Config) -> Iterator[Finding]:
    data = config.node.data
    if not data.exists():
        yield problem("data folder", f"{data} is not there", "start the node once, as the user it will run as")
        return
    stat = os.statvfs(data)
    free = stat.f_bavail * stat.f_frsize
    if not os.access(data, os.W_OK):
        yield problem("data folder", f"{data} cannot be written by us", "run doctor as the node's user, or chown it")
    if data.stat().st_mode & 0o077:
        yield warning("data folder", f"{data} can be seen by others; there is mail in it", f"chmod 700 {data}")
    if free < config.node.min_free:
        yield problem("disk", f"{sized(free)} free, no mail is taken below node.min_free", "make room")
    elif free < 10 * config.node.min_free:
        yield warning("disk", f"{sized(free)} free", "make room before it is less than node.min_free")
    else:
        yield ok("disk", f"{sized(free)} free")
    kind = _file_system(data)
    if kind in NETWORK:
        yield problem("file system", f"{data} is on {kind}", "put node.data on a local disk: fsync and locks must hold")


def _file_system(path: Path) -> str:
    """Return the kind of file system a path is on."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if (str(path.resolve()) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _spool(config: Config) -> Iterator[Finding]:
    if not (config.node.data / "spool" / "spool.db").exists():
        yield warning("spool", "there is none yet", "start the node once: sendswitch run")
        return
    folders = folders_in(config.node.data)
    newest, poison = 0, 0
    for folder in folders:
        with closing(open_files(folder)) as connection:
            said = damage(connection)
            if said:
                do = "stop the node, copy the spool, restore the last backup"
                yield problem("spool", f"SQLite says of {folder}/spool: {said}", do)
                return
            newest, poison = max(newest, newest_message(connection)), poison + count_poison(connection)
    if newest and ids.received(newest) > time.time() + AHEAD:
        ahead = ids.received(newest) - time.time()
        yield warning(
            "clock", f"the newest message is {ahead:.0f} s in the future", "the clock was set back; check NTP"
        )
    if poison:
        do = "look at them with sendswitch quarantine list; their pipelines are not run again"
        yield warning(
            "poison", f"{poison} deliveries are in quarantine because their pipelines crashed three times", do
        )
    engine = open_database(config.database_url, migrate=False) if config.journal.enabled else None
    report = audit_all(folders, engine)
    for finding in report.findings[:5]:
        yield problem("ledger", f"{finding.about}: {finding.text}", "`sendswitch audit` shows all")
    if not report.findings:
        yield ok("ledger", f"{report.deliveries} recipients, each accounted for")


def _database(config: Config) -> Iterator[Finding]:
    engine = open_database(config.database_url, migrate=False)
    yield ok("database", shown(engine.url))


def _pipelines(config: Config) -> Iterator[Finding]:
    stored = all_pipelines(open_database(config.database_url, migrate=False))
    wrong = 0
    for one in stored:
        try:
            registry.check(one.text, f"the pipeline of {one.owner}")
        except InvalidConfiguration as error:
            wrong += 1
            yield problem("pipeline", error.problems[0], f"its mail waits; sendswitch pipeline set {one.owner} FILE")
            continue
        try:
            registry.check(one.text, f"the pipeline of {one.owner}", config.pipelines.deadline)
        except InvalidConfiguration as error:
            wrong += 1
            yield warning("pipeline", error.problems[0], f"it goes on; sendswitch pipeline set {one.owner} FILE")
    if not wrong:
        yield ok("pipelines", f"{len(stored)}, all can run")


def _node(config: Config) -> Iterator[Finding]:
    installation, actor = Installation(lambda: config), Actor(getpass.getuser())
    client = connect(installation, actor)
    if not client.running:
        yield problem("node", "none runs here", "sendswitch run, or systemctl start sendswitch")
        return
    told = client.call(node.status)
    yield ok("node", f"runs; {told.on_the_way} deliveries on their way, {told.connections} connections")
    if told.draining:
        yield warning("node", "it is being drained and takes no mail", "sendswitch node resume")
    for rule in client.call(rules.list_rules):
        found = f"rule {rule.id}: {rule.kind} {rule.search or 'everything'}, because {rule.reason or '?'}"
        yield warning("rules", found, f"sendswitch queue cancel {rule.id} ends it")
    if told.overloaded:
        yield problem("node", f"it takes no mail: {told.overloaded}", "the message says what there is too much of")
    if told.configuration_refused:
        yield warning("node", f"not reloaded: {told.configuration_refused}", "correct it, then sendswitch reload")
    if told.events_waiting > 10_000:
        yield warning("journal", f"{told.events_waiting} events wait", "look for journal_failed in the log")


def _next_hop(config: Config) -> Iterator[Finding]:
    if config.next_hop.address.startswith("maildir:"):
        yield ok("next hop", config.next_hop.address)
        return

    async def ask() -> Reply | None:
        courier = make_courier(config)
        try:
            return await courier.check()
        finally:
            courier.close()

    reply = asyncio.run(ask())
    if reply is None:
        yield ok("next hop", f"{config.next_hop.address} answers")
    else:
        do = "is the re-injection service in Postfix's master.cf? `sendswitch postfix print`"
        yield problem("next hop", f"{config.next_hop.address}: {reply}", do)


def _certificates(config: Config) -> Iterator[Finding]:
    for section in config.listener:
        listener_options(section, config.node.host)
        if section.tls_key is not None and section.tls_key.stat().st_mode & 0o004:
            yield warning("certificate", f"{section.tls_key} can be read by all", f"chmod 640 {section.tls_key}")


def _limits(config: Config) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sum(section.connections for section in config.listener) + config.next_hop.connections + 100
    if 0 < hard < wanted:
        yield warning("open files", f"at most {hard}, and listeners may have {wanted}", "LimitNOFILE= of the unit")


def _postfix(config: Config) -> Iterator[Finding]:
    if shutil.which("postconf") is None:
        yield warning("Postfix", "it is not on this machine", "no more is looked at")
        return
    limit = _postconf("-h", "message_size_limit")
    ours = min(section.message_size for section in config.listener)
    if limit.isdigit() and (int(limit) > ours or int(limit) == 0):
        do = f"postconf -e message_size_limit={ours}, or a larger listener.message_size"
        yield warning("Postfix", f"message_size_limit is {limit}, we take {ours}: the rest is bounced", do)
    delimiter = _postconf("-h", "recipient_delimiter")
    if set(delimiter) != set(config.routing.recipient_delimiter):
        do = f'set routing.recipient_delimiter = "{delimiter}", or mail to an extension misses its pipeline'
        ours_ = config.routing.recipient_delimiter
        yield problem("Postfix", f"recipient_delimiter is {delimiter!r}, ours is {ours_!r}", do)
    origin = _postconf("-x", "-h", "myorigin")
    if config.routing.origin and origin != config.routing.origin:
        do = f'set routing.origin = "{origin}"'
        yield problem("Postfix", f"myorigin is {origin!r}, routing.origin is {config.routing.origin!r}", do)
    filters = _postconf("-P") + _postconf("content_filter") + _postconf("smtpd_proxy_filter")
    ports = [section.bind.rpartition(":")[2] for section in config.listener]
    if not any(f":{port}" in filters for port in ports) and "sendswitch:" not in filters:
        yield warning("Postfix", "no service sends its mail to us", "sendswitch postfix apply, then postfix check")
    elif trouble := mapping_trouble(config):
        yield problem("Postfix", trouble, "sendswitch postfix print shows the lines")
    else:
        yield ok("Postfix", "sends its mail to us")


def _postconf(*arguments: str) -> str:
    done = subprocess.run(["postconf", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
