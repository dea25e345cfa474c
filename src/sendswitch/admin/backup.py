"""Backups: all data of a node in one file, and the way back. They are made while the node runs.

Both run in the process that has the file, not in the node.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson
from sqlalchemy.exc import SQLAlchemyError

from sendswitch import durable
from sendswitch.admin.base import Actor, Installation, at
from sendswitch.config.model import Config
from sendswitch.config.processes import folder_of, folders_in, numbers_in
from sendswitch.db import dump
from sendswitch.db.connect import open_database
from sendswitch.errors import NotFound, Permanent, Refused, Temporary, in_words
from sendswitch.spool import rules, schema
from sendswitch.spool.admin import open_files
from sendswitch.spool.audit import audit
from sendswitch.spool.backup import copy_spool, tell_all_again
from sendswitch.spool.rules import Kind
from sendswitch.webhooks.outbox import PLACE, copy_outbox

FORMAT = 1
# Seconds that restored mail is suspended, because the old machine may have delivered it.
WAITS = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup: its file, the messages and rows of the database in it, and the time it was made."""

    file: Path
    messages: int
    rows: int
    created: datetime


def create(
    installation: Installation, actor: Actor, *, file: Path, progress: Callable[[str], None] = lambda part: None
) -> Backup:
    """Copy spool, database and outbox into a new file, a tar archive; durable on return.

    `progress` hears which part is being copied. Raises NotFound, Refused, Temporary.
    """
    config = installation.config
    data = config.node.data
    if not (data / "spool" / "spool.db").exists():
        raise NotFound(f"there is no spool in {data}; is node.data right?")
    if file.exists():
        raise Refused(f"{file} is there already; name a new file")
    began = time.time()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".backup-") as folder:
        work = Path(folder)
        progress("the database")
        # First, so that the spool knows all that it knows: a journal that is behind can be told again.
        rows = _dump(config, work / "database.jsonl")
        parts, messages = [work / "database.jsonl"], 0
        for number in numbers_in(data):
            progress("the spool" if number == 1 else f"the spool of node {number}")
            source, target = folder_of(data, number), folder_of(work, number)
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            messages += copy_spool(source, target / "spool")
            parts.append(target / "spool")
            if copy_outbox(source, target):
                parts.append(target / PLACE.parent)
        manifest = {"format": FORMAT, "created": began, "host": config.node.host, "spool": schema.VERSION}
        manifest |= {"messages": messages, "rows": rows, "files": _digests(work)}
        (work / "manifest.json").write_bytes(orjson.dumps(manifest))
        partial = work / "whole.tar"
        with tarfile.open(partial, "w") as archive:
            for path in (work / "manifest.json", *parts):
                archive.add(path, str(path.relative_to(work)))
        partial.chmod(0o600)
        durable.sync(partial)
        durable.publish(partial, file)
    return Backup(file, messages, rows, at(began))


def restore(installation: Installation, actor: Actor, *, file: Path) -> Backup:
    """Put a backup into an empty folder and database. Its mail is suspended until a person lets it go.

    Raises NotFound, Refused, Permanent for a file that is damaged or no backup, Temporary.
    """
    config = installation.config
    data = config.node.data
    _require_free(data)
    engine = open_database(config.database_url)
    dump.require_empty(engine)
    with tempfile.TemporaryDirectory(dir=data, prefix=".restore-") as folder:
        work = Path(folder)
        manifest = _unpack(file, work)
        findings = _check(work)
        if findings:
            raise Permanent(f"{file}: the audit finds {findings[0]} and {len(findings) - 1} more; nothing was restored")
        created = at(manifest["created"])
        reason = f"restored from the backup of {created.astimezone():%Y-%m-%d %H:%M:%S}"
        numbers = numbers_in(work)
        _suspend_all([folder_of(work, number) for number in numbers], reason, actor)
        with (work / "database.jsonl").open("rb") as lines:
            rows = dump.load(engine, lines)
        for number in reversed(numbers):  # the first spool last: with it, the restore is complete
            source, target = folder_of(work, number), folder_of(data, number)
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (source / PLACE).exists():
                os.rename(source / PLACE.parent, target / PLACE.parent)
            os.rename(source / "spool", target / "spool")
    return Backup(file, int(manifest["messages"]), rows, created)


def _suspend_all(folders: Sequence[Path], reason: str, actor: Actor) -> None:
    """Suspend the mail in spools that were restored, and let their events be told to the journal again."""
    now, number = time.time(), 0
    for folder in folders:
        with closing(open_files(folder)) as connection:
            number = max(number, rules.newest(connection) + 1)  # one number on all nodes
    for folder in folders:
        with closing(open_files(folder)) as connection:
            tell_all_again(connection)
            about = {"reason": reason, "author": actor.name}
            # What comes from now on is not held: `before` counts from the moment the rule is added.
            rules.add(connection, Kind.SUSPEND, "before:0s", **about, now=now, time=WAITS, number=number)


def _dump(config: Config, file: Path) -> int:
    count = -1  # the first line is the version
    try:
        with file.open("wb") as out:
            for line in dump.dump(open_database(config.database_url)):
                out.write(line)
                count += 1
    except SQLAlchemyError as error:
        raise Temporary(f"the database cannot be read: {in_words(error)}") from error
    return count


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _require_free(data: Path) -> None:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any((data / part).exists() for part in ("spool", PLACE, "nodes")):
        raise Refused(f"{data} has a spool already; restore into an empty node.data")
    with (data / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(f"a node runs in {data}; stop it first") from error


def _unpack(file: Path, work: Path) -> dict[str, float]:
    """Return the archive's files, each with the digest it was given. Raises NotFound, Permanent."""
    try:
        with tarfile.open(file, "r:") as archive:
            _extract(archive, work)
        manifest = orjson.loads((work / "manifest.json").read_bytes())
        wanted = manifest.pop("files")
    except FileNotFoundError as error:
        raise NotFound(f"{file}: {in_words(error)}") from error
    except (tarfile.TarError, OSError, ValueError, KeyError) as error:
        raise Permanent(f"{file} is not a SendSwitch backup, or it is truncated: {in_words(error)}") from error
    if manifest.get("format") != FORMAT or manifest.get("spool", 0) > schema.VERSION:
        raise Permanent(f"{file} was made by a newer program; restore it with that")
    found = {name: digest for name, digest in _digests(work).items() if name != "manifest.json"}
    if found != wanted:
        wrong = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise Permanent(f"{file} is damaged: {wrong} is not what it was; nothing was restored")
    return dict(manifest)


_MEMBER = re.compile(
    r"manifest\.json|database\.jsonl"
    r"|(nodes/[0-9]{1,3}/)?(spool/spool\.db|spool/content/[0-9a-z]{13}\.eml|webhooks/outbox\.db)"
)
_FOLDER = re.compile(r"(nodes/[0-9]{1,3}/)?(spool|spool/content|webhooks)")


def _extract(archive: tarfile.TarFile, work: Path) -> None:
    """Write the files that a backup has; whatever else an archive holds could go anywhere. Raises ValueError."""
    (work / "spool" / "content").mkdir(parents=True, mode=0o700)
    for member in archive:
        if member.isdir() and _FOLDER.fullmatch(member.name):
            (work / member.name).mkdir(mode=0o700, parents=True, exist_ok=True)
            continue
        source = archive.extractfile(member) if member.isreg() and _MEMBER.fullmatch(member.name) else None
        if source is None:
            raise ValueError(f"{member.name!r} does not belong there")
        with open(os.open(work / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            shutil.copyfileobj(source, target)


def _check(work: Path) -> list[str]:
    """Return the findings of the audit in each spool, after an upgrade to this program's version."""
    found = []
    for folder in folders_in(work):
        with closing(sqlite3.connect(folder / "spool" / "spool.db", isolation_level=None)) as connection:
            schema.prepare(connection)
        with closing(open_files(folder)) as connection:
            found += [f"{finding.about}: {finding.text}" for finding in audit(connection, folder).findings]
    return found
