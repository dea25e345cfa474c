"""`backup create|restore`: spool and database in one file, while the node runs, and back on this machine or another."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from sendswitch import durable
from sendswitch.admin.base import at
from sendswitch.cli.output import Session, local
from sendswitch.config.model import Config
from sendswitch.db import dump
from sendswitch.db.connect import open_database
from sendswitch.errors import NotFound, Permanent, Refused, Temporary, in_words
from sendswitch.spool import rules, schema
from sendswitch.spool.admin import open_files
from sendswitch.spool.audit import audit
from sendswitch.spool.backup import copy_spool, tell_all_again
from sendswitch.spool.rules import Kind
from sendswitch.webhooks.outbox import PLACE, copy_outbox

app = typer.Typer(help="Backups of spool and database.", no_args_is_help=True)

FORMAT = 1
# Seconds that restored mail is suspended, because the old machine may have delivered it.
WAITS = 30 * 86400.0


@app.command("create")
def create(context: typer.Context, file: Annotated[Path, typer.Argument(help="A new file; a tar archive.")]) -> None:
    """Copy all data into one file while the node runs.

    The data are the spool, the database and the outbox of webhooks.
    """
    session: Session = context.obj
    config = session.config()
    data = config.node.data
    if not (data / "spool" / "spool.db").exists():
        raise NotFound(f"there is no spool in {data}; is node.data right?")
    if file.exists():
        raise Refused(f"{file} is there already; name a new file")
    began = time.time()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".backup-") as folder:
        work = Path(folder)
        with Console(stderr=True).status("the database") as shown:
            # First, so that the spool knows all that it knows: a journal that is behind can be told again.
            rows = _dump(config, work / "database.jsonl")
            shown.update("the spool")
            messages = copy_spool(data, work / "spool")
            parts = [work / "spool", work / "database.jsonl"]
            if copy_outbox(data, work):
                parts.append(work / PLACE.parent)
            manifest = {"format": FORMAT, "created": began, "host": config.node.host, "spool": schema.VERSION}
            manifest |= {"messages": messages, "rows": rows, "files": _digests(work)}
            (work / "manifest.json").write_bytes(orjson.dumps(manifest))
            partial = work / "whole.tar"
            with tarfile.open(partial, "w") as archive:
                for path in (work / "manifest.json", *parts):
                    archive.add(path, path.name)
        partial.chmod(0o600)
        durable.sync(partial)
        durable.publish(partial, file)
    session.done(
        f"{messages} messages and {rows} rows are in {file}",
        file=str(file),
        messages=messages,
        rows=rows,
        created=began,
    )


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


@app.command("restore")
def restore(context: typer.Context, file: Annotated[Path, typer.Argument(help="What `create` made.")]) -> None:
    """Put a backup into an empty folder and database. Its mail is suspended until you let it go."""
    session: Session = context.obj
    config = session.config()
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
        reason = f"restored from the backup of {local(manifest['created'])}"
        with closing(open_files(work)) as connection:
            tell_all_again(connection)
            # What comes from now on is not held: `before` counts from the moment the rule is added.
            rules.add(
                connection,
                Kind.SUSPEND,
                "before:0s",
                reason=reason,
                author=getpass.getuser(),
                now=time.time(),
                time=WAITS,
            )
        with (work / "database.jsonl").open("rb") as lines:
            rows = dump.load(engine, lines)
        if (work / PLACE).exists():
            os.rename(work / PLACE.parent, data / PLACE.parent)
        os.rename(work / "spool", data / "spool")
    session.done(
        f"{manifest['messages']} messages and {rows} rows are restored from {local(manifest['created'])}. What was on"
        " its way is suspended, because it may have been delivered since; look at `sendswitch queue list`, then"
        " `sendswitch queue resume`",
        messages=manifest["messages"],
        rows=rows,
        created=at(manifest["created"]),
    )


def _require_free(data: Path) -> None:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (data / "spool").exists() or (data / PLACE).exists():
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
    r"manifest\.json|database\.jsonl|spool/spool\.db|spool/content/[0-9a-z]{13}\.eml|webhooks/outbox\.db"
)


def _extract(archive: tarfile.TarFile, work: Path) -> None:
    """Write the files that a backup has; whatever else an archive holds could go anywhere. Raises ValueError."""
    (work / "spool" / "content").mkdir(parents=True, mode=0o700)
    for member in archive:
        if member.isdir() and member.name in ("spool", "spool/content"):
            continue
        if member.isdir() and member.name == str(PLACE.parent):
            (work / PLACE).parent.mkdir(mode=0o700)
            continue
        source = archive.extractfile(member) if member.isreg() and _MEMBER.fullmatch(member.name) else None
        if source is None:
            raise ValueError(f"{member.name!r} does not belong there")
        with open(os.open(work / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            shutil.copyfileobj(source, target)


def _check(work: Path) -> list[str]:
    """Return the findings of the audit in the spool, after an upgrade to this program's version."""
    with closing(sqlite3.connect(work / "spool" / "spool.db", isolation_level=None)) as connection:
        schema.prepare(connection)
    with closing(open_files(work)) as connection:
        return [f"{finding.about}: {finding.text}" for finding in audit(connection, work).findings]
