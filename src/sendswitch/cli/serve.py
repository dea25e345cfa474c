"""`serve`: take mail and carry out decisions. `run`: the same with worker processes, for one machine."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from sendswitch import logs
from sendswitch.bootstrap.node import Node, Place, Source
from sendswitch.bootstrap.node_processes import EndedEarly, NodeProcesses, command, numbers, require_free
from sendswitch.bootstrap.supervisor import OverPipe, Supervising, Supervisor
from sendswitch.cli.output import Session
from sendswitch.config.environment import taken_from_systemd
from sendswitch.config.load import files_of
from sendswitch.config.model import Config
from sendswitch.config.processes import folder_of, of_process
from sendswitch.errors import SendSwitchError
from sendswitch.processors.hosting.supervise import ends_with

# Seconds between two looks at files that may be edited.
LOOK = 0.5

# For a node that another process started: which of how many it is, and where it gives its signs of life.
Process = Annotated[str, typer.Option("--process", hidden=True, help="One of several nodes, such as 2/4.")]
Pulse = Annotated[int, typer.Option("--pulse", hidden=True, help="A pipe for its signs of life.")]
Of = Annotated[int, typer.Option("--of", hidden=True, help="The process that started it, and with which it ends.")]


def serve(context: typer.Context, process: Process = "", pulse: Pulse = -1, of: Of = 0) -> None:
    """Accept and deliver mail as workers decide.

    Pipelines of steps that cost little for any mail, such as `lists`, run here; `sendswitch work` runs the others.
    """
    _start(context.obj, workers=False, one=_Process(process, pulse, of))


def run(
    context: typer.Context,
    reload: Annotated[
        bool, typer.Option("--reload", help="Read the configuration again whenever its files are edited.")
    ] = False,
    process: Process = "",
    pulse: Pulse = -1,
    of: Of = 0,
) -> None:
    """Accept mail and run pipelines, in worker processes.

    Edited user programs are used from the next message on.
    """
    _start(context.obj, workers=True, watch=reload, one=_Process(process, pulse, of))


@dataclass(frozen=True, slots=True)
class _Process:
    """One of several nodes: `place` such as 2/4, '' for a node that nobody started but its user."""

    place: str
    pulse: int
    of: int


def _start(session: Session, *, workers: bool, one: _Process, watch: bool = False) -> None:
    # The stamp is older than the configuration, so that an edit during the start is seen as a change.
    changed = changes(partial(_stamp, session.config_file)) if watch else None
    config = session.config()
    logs.setup(config.log.format, config.log.level)
    raise_file_limit()
    os.umask(0o077)  # there is mail in what it writes
    if not one.place and (several := numbers(config, config.node.processes)) != [1]:
        _start_several(session, config, several, workers=workers, watch=watch)
        return
    tune_memory()
    supervisor: Supervising = Supervisor(*taken_from_systemd(os.environ, os.getpid()))
    number, processes = (int(part) for part in (one.place or "1/1").split("/"))
    if one.place:
        ends_with(one.of, signal.SIGTERM)
        supervisor = OverPipe(one.pulse)
        logs.name_node(number)

    def source() -> Config:
        return of_process(session.config(), number, processes)

    others = {n: folder_of(config.node.data, n) for n in numbers(config, processes) if n != number}
    place, config = Place(number, processes > 1, others), of_process(config, number, processes)
    uvloop.run(
        until_signal(config, workers=workers, source=source, changed=changed, supervisor=supervisor, place=place)
    )


def _start_several(session: Session, config: Config, several: Sequence[int], *, workers: bool, watch: bool) -> None:
    require_free(config)
    words = ["run" if workers else "serve", *(["--reload"] if watch else [])]
    line = [*(["--config", str(session.config_path)] if session.config_path else []), *words]
    nodes = NodeProcesses(several, command(line, config.node.processes), config.node.processes)
    supervisor = Supervisor(*taken_from_systemd(os.environ, os.getpid()))
    try:
        uvloop.run(_nodes_until_signal(nodes, supervisor))
    except EndedEarly as error:
        raise typer.Exit(error.status) from error


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


def _signalled() -> asyncio.Future[str]:
    """Return a future with the name of the signal that ends this process."""
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[str] = loop.create_future()

    def told(name: str) -> None:
        if not signalled.done():
            signalled.set_result(name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number.name)
    return signalled


async def _nodes_until_signal(nodes: NodeProcesses, supervisor: Supervising) -> None:
    """Run several nodes until SIGTERM or SIGINT. Raises EndedEarly when one of them cannot start."""
    loop, signalled = asyncio.get_running_loop(), _signalled()
    starting = loop.create_task(nodes.start())
    await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
    if not signalled.done():
        await starting
        supervisor.tell("READY=1")
        loop.add_signal_handler(signal.SIGHUP, nodes.reload)
        living = loop.create_task(supervisor.watch())
        await signalled
        living.cancel()
    logs.stopping(why=signalled.result())
    supervisor.tell("STOPPING=1")
    starting.cancel()
    await asyncio.wait((starting,))
    await nodes.stop()


async def until_signal(
    config: Config,
    *,
    workers: bool,
    source: Source,
    changed: Callable[[], bool] | None = None,
    supervisor: Supervising,
    place: Place,
) -> None:
    """Run a node until SIGTERM or SIGINT.

    Read the configuration again at SIGHUP, and when `changed` returns True; it is called every LOOK seconds.
    """
    loop, signalled = asyncio.get_running_loop(), _signalled()
    node = Node(config, workers=workers, source=source, place=place)
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
