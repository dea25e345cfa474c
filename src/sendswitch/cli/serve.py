"""`serve`: take mail and carry out decisions. `run`: the same with worker processes, for one machine."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from sendswitch import logs
from sendswitch.bootstrap.node import Node, Source
from sendswitch.bootstrap.supervisor import Supervisor
from sendswitch.cli.output import Session
from sendswitch.config.environment import taken_from_systemd
from sendswitch.config.load import files_of
from sendswitch.config.model import Config
from sendswitch.errors import SendSwitchError

# Seconds between two looks at files that may be edited.
LOOK = 0.5


def serve(context: typer.Context) -> None:
    """Accept and deliver mail as workers decide.

    Pipelines of steps that cost little for any mail, such as `lists`, run here; `sendswitch work` runs the others.
    """
    _start(context.obj, workers=False)


def run(
    context: typer.Context,
    reload: Annotated[
        bool, typer.Option("--reload", help="Read the configuration again whenever its files are edited.")
    ] = False,
) -> None:
    """Accept mail and run pipelines, in worker processes.

    Edited user programs are used from the next message on.
    """
    _start(context.obj, workers=True, watch=reload)


def _start(session: Session, *, workers: bool, watch: bool = False) -> None:
    # The stamp is older than the configuration, so that an edit during the start is seen as a change.
    changed = changes(partial(_stamp, session.config_file)) if watch else None
    config = session.config()
    logs.setup(config.log.format, config.log.level)
    raise_file_limit()
    tune_memory()
    os.umask(0o077)  # there is mail in what it writes
    uvloop.run(until_signal(config, workers=workers, source=session.config, changed=changed))


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each connection is one, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_memory() -> None:
    """Collect cycles rarely: the mail path makes none, and looking for them at every 700 objects cost 5 %."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _stamp(file: Path | None) -> list[tuple[Path, int, int]]:
    """Return path, time of change (nanoseconds) and size (bytes) of each configuration file that can be read."""
    found = []
    for path in files_of(file):
        with suppress(OSError):  # an editor may just put it in its place
            status = path.stat()
            found.append((path, status.st_mtime_ns, status.st_size))
    return found


def changes(stamp: Callable[[], object]) -> Callable[[], bool]:
    """Return a function that compares the stamp with the one of its last call, and says whether they differ."""
    seen = [stamp()]

    def changed() -> bool:
        seen.append(stamp())
        return seen.pop(0) != seen[0]

    return changed


class _Reloader:
    """Reads a node's configuration again when it is asked to."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: set[asyncio.Task[None]] = set()

    async def reload(self) -> None:
        """Reload now; the node tells why it cannot."""
        with suppress(SendSwitchError):
            await self._node.reload()

    def soon(self) -> None:
        """Reload without waiting for it."""
        task = asyncio.get_running_loop().create_task(self.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def watch(self, changed: Callable[[], bool]) -> None:
        """Reload whenever `changed` returns True; it is called every LOOK seconds."""
        while True:
            await asyncio.sleep(LOOK)
            if changed():
                await self.reload()


async def until_signal(
    config: Config, *, workers: bool, source: Source, changed: Callable[[], bool] | None = None
) -> None:
    """Run a node until SIGTERM or SIGINT.

    Read the configuration again at SIGHUP, and when `changed` returns True; it is called every LOOK seconds.
    """
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[str] = loop.create_future()

    def told(name: str) -> None:
        if not signalled.done():
            signalled.set_result(name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number.name)
    supervisor = Supervisor(*taken_from_systemd(os.environ, os.getpid()))
    node = Node(config, workers=workers, source=source)
    await node.start()
    supervisor.tell("READY=1")
    living = loop.create_task(supervisor.watch())
    reloader = _Reloader(node)
    loop.add_signal_handler(signal.SIGHUP, reloader.soon)
    watching = loop.create_task(reloader.watch(changed)) if changed is not None else None
    why = await signalled
    if watching is not None:
        watching.cancel()
    logs.stopping(why=why)
    supervisor.tell("STOPPING=1")
    await node.stop()
    living.cancel()
