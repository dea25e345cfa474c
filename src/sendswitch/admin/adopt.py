"""Adopt the spool of a node that is dead: this machine delivers its mail, and answers for its messages.

It runs in the process that asks, not in the node. The spool keeps its name and number, so that its messages keep their
ids and its node its line in the list.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sendswitch import durable
from sendswitch.admin.base import Actor, Installation
from sendswitch.config.processes import folder_of, folders_in, numbers_in
from sendswitch.db import nodes
from sendswitch.errors import NotFound, Permanent, Refused
from sendswitch.spool import admin
from sendswitch.spool.audit import audit
from sendswitch.webhooks.outbox import PLACE

# A spool in a data folder, its name when it was adopted, and the folder of a copy that is not complete.
SPOOL, TAKEN, PARTIAL = "spool", "spool.adopted", ".adopting"


@dataclass(frozen=True, slots=True)
class Adopted:
    """A spool that was adopted: its node's number, its new data folder, and the deliveries in it that are not final."""

    number: int
    data: Path
    deliveries: int


def adopt(installation: Installation, actor: Actor, *, folder: Path) -> tuple[Adopted, ...]:
    """Take over the spools in a dead node's data folder: the next start here delivers what is in them.

    They are copied. The old ones are given another name before, so that no node ever delivers from them again; after a
    crash the same request goes on. Raises NotFound, Permanent for a damaged spool, and Refused for a node that may
    live, or one of another database: its recipients' pipelines would not be known here.
    """
    config = installation.config
    data = config.node.data
    if folder.resolve() == data.resolve():
        raise Refused(f"{folder} is the data folder of this node itself")
    sources = [path for path in folders_in(folder) if (path / SPOOL).exists() or (path / TAKEN).exists()]
    if not sources:
        raise NotFound(f"there is no spool in {folder}; name the data folder of a node (node.data)")
    with _locked(sources):
        whole = [source for source in sources if (source / SPOOL).exists()]
        for source in whole:
            _check(installation, source)
        for source in whole:
            os.rename(source / SPOOL, source / TAKEN)
            durable.sync(source)
        return tuple(_take(source, data, config.node.processes) for source in sources)


@contextmanager
def _locked(folders: list[Path]) -> Iterator[None]:
    """Keep nodes away from these data folders. Raises Refused when one runs in one of them."""
    with ExitStack() as stack:
        for folder in folders:
            lock = stack.enter_context((folder / "lock").open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Refused(f"a node runs in {folder}; stop it first") from error
        yield


def _check(installation: Installation, folder: Path) -> None:
    """Raise Refused or Permanent for a spool that must not be adopted."""
    with closing(admin.open_files(folder)) as connection:
        findings, name = audit(connection, folder).findings, admin.spool_name(connection)
    if findings:
        first = findings[0]
        raise Permanent(f"{folder}: the audit finds {first.about}: {first.text} ({len(findings)} findings)")
    known = next((one for one in nodes.known(installation.database()) if one.spool == name), None)
    if known is None:
        raise Refused(
            f"the node of {folder} was none of this database, so its recipients' pipelines are not known here;"
            " restore its backup instead"
        )
    if known.ended is None and known.seen > time.time() - nodes.SILENT:
        ago = time.time() - known.seen
        raise Refused(f"node {known.facts.number} had a heartbeat {ago:.0f} seconds ago; stop it, or wait a minute")


def _take(source: Path, data: Path, processes: int) -> Adopted:
    """Copy a spool, and its outbox of webhooks, into the folder of a new node. Durable on return."""
    target = folder_of(data, max(processes, *numbers_in(data)) + 1)
    partial = target.with_name(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    shutil.copytree(source / TAKEN, partial / SPOOL)
    if (source / PLACE).exists():
        shutil.copytree(source / PLACE.parent, partial / PLACE.parent)
    for path in (*partial.rglob("*"), partial):
        durable.sync(path)
    with closing(admin.open_files(partial)) as connection:
        name, number = admin.spool_name(connection), admin.node_number(connection)
        waiting = admin.count_waiting(connection)
    for there in folders_in(data):  # a crash came after the copy
        with suppress(NotFound), closing(admin.open_files(there)) as connection:
            if admin.spool_name(connection) == name:
                shutil.rmtree(partial)
                return Adopted(number, there, waiting)
    partial.rename(target)
    durable.sync(target.parent)
    return Adopted(number, target, waiting)
