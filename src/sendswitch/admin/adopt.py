"""Adopt the spool of a node that is dead: this machine delivers its mail, and answers for its messages.

It runs in the process that asks, not in the node. The spool keeps its name and number, so that its messages keep their
ids and its node its line in the list.

The database says who adopts a spool. The old spool is renamed before it is copied, and again when the copy is in its
place, so that no node delivers from it again and nobody adopts it twice. After a crash the same request goes on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sendswitch import durable
from sendswitch.admin.base import Actor, Installation
from sendswitch.config.processes import folder_of, folders_in
from sendswitch.db import nodes
from sendswitch.errors import NotFound, Permanent, Refused
from sendswitch.spool import admin, rules
from sendswitch.spool.audit import audit
from sendswitch.webhooks.outbox import PLACE

# A spool in a data folder. Its name while it is copied, with the spool's own name behind it, and when that is done.
SPOOL, TAKEN, DONE = "spool", "spool.adopted.", "spool.done."
OUTBOX = PLACE.parent


@dataclass(frozen=True, slots=True)
class Adopted:
    """A spool that was adopted: its node's number, its new data folder, and the deliveries in it that are not final."""

    number: int
    data: Path
    deliveries: int


def adopt(installation: Installation, actor: Actor, *, folder: Path) -> tuple[Adopted, ...]:
    """Take over the spools in a dead node's data folder: the next start here delivers what is in them.

    They are copied. Raises NotFound, Permanent for a damaged spool, and Refused for a node that may live, for one that
    another node adopts, and for one of another database: its recipients' pipelines would not be known here.
    """
    data = installation.config.node.data
    if folder.resolve() == data.resolve():
        raise Refused(f"{folder} is the data folder of this node itself")
    with installation.spool() as connection:
        here = admin.spool_name(connection)
    sources = [path for path in (folder, *sorted((folder / "nodes").glob("*"))) if _has_spool(path)]
    if not sources:
        raise NotFound(f"there is no spool in {folder} to adopt; name the data folder of a node (node.data)")
    with _locked([data / "adopting", *(source / "lock" for source in sources)]):
        whole = [(source, _checked(installation, source)) for source in sources if _is_whole(source)]
        for source, name in whole:
            if not nodes.claim(installation.database(), name, here):
                raise Refused(f"another node began to adopt {source}; go on there")
            os.rename(source / SPOOL, source / f"{TAKEN}{name}")
            durable.sync(source)
        taken = [path for source in sources for path in sorted(source.glob(f"{TAKEN}*"))]
        return tuple(_take(installation, path, here) for path in taken)


def _is_whole(folder: Path) -> bool:
    return (folder / SPOOL / "spool.db").exists()


def _has_spool(folder: Path) -> bool:
    return _is_whole(folder) or any(folder.glob(f"{TAKEN}*"))


@contextmanager
def _locked(files: Sequence[Path]) -> Iterator[None]:
    """Keep nodes away from these data folders, and others who adopt. Raises Refused when one is there."""
    with ExitStack() as stack:
        for file in files:
            lock = stack.enter_context(file.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Refused(f"{file.parent} is in use: a node runs there, or spools are being adopted") from error
        yield


def _checked(installation: Installation, folder: Path) -> str:
    """Return the name of a spool that may be adopted. Raises Refused or Permanent for another one."""
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
    return name


def _take(installation: Installation, taken: Path, here: str) -> Adopted:
    """Copy a spool, and its outbox of webhooks, into the folder of a new node. Durable on return."""
    data, name = installation.config.node.data, taken.name.removeprefix(TAKEN)
    if nodes.adopter_of(installation.database(), name) != here:
        raise Refused(f"{taken} is another node's to adopt, or was adopted: nothing of it is delivered from here")
    if (taken.parent / OUTBOX).exists():
        os.rename(taken.parent / OUTBOX, taken / OUTBOX)
    target = next((path for path in folders_in(data) if _name(path) == name), None)
    if target is None:
        target = _copied(data, taken, name, installation.config.node.processes)
    taken.rename(taken.with_name(f"{DONE}{name}"))
    durable.sync(taken.parent)
    with closing(admin.open_files(target)) as connection:
        return Adopted(admin.node_number(connection), target, admin.count_waiting(connection))


def _name(folder: Path) -> str:
    with suppress(NotFound), closing(admin.open_files(folder)) as connection:
        return admin.spool_name(connection)
    return ""


def _copied(data: Path, taken: Path, name: str, processes: int) -> Path:
    """Copy spool and outbox, and give the copy the first number that no node has had here. Return its folder."""
    partial = data / "nodes" / f".adopting.{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    shutil.copytree(taken, partial / SPOOL, ignore=shutil.ignore_patterns(OUTBOX.name))
    if (taken / OUTBOX).exists():
        shutil.copytree(taken / OUTBOX, partial / OUTBOX)
    with closing(admin.open_files(partial)) as connection:
        if findings := audit(connection, partial).findings:
            raise Permanent(f"{taken} could not be copied whole: {findings[0].about}: {findings[0].text}")
        rules.renumber(connection, max(map(_newest_rule, folders_in(data))))
    for path in (*partial.rglob("*"), partial):
        _give(path, data)
        durable.sync(path)
    _give(partial.parent, data)
    number = processes + 1
    while folder_of(data, number).exists():
        number += 1
    partial.rename(folder_of(data, number))
    durable.sync(partial.parent)
    durable.sync(data)
    return folder_of(data, number)


def _newest_rule(folder: Path) -> int:
    with suppress(NotFound), closing(admin.open_files(folder)) as connection:
        return rules.newest(connection)
    return 0


def _give(path: Path, data: Path) -> None:
    """Give what root made to the owner of the data folder, whose node must read it."""
    if os.geteuid() == 0:
        owner = data.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
