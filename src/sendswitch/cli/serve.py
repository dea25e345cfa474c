"""`serve`: take mail and carry out decisions. `run`: the same with a worker, for a small site."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from contextlib import suppress

import typer
import uvloop

from sendswitch import logs
from sendswitch.bootstrap.node import Node, Source
from sendswitch.cli.output import Session
from sendswitch.config.model import Config
from sendswitch.errors import SendSwitchError


def serve(context: typer.Context) -> None:
    """Take mail, have it decided by workers, carry the decisions out."""
    _start(context.obj, worker=False)


def run(context: typer.Context) -> None:
    """Serve, and run the pipelines in this process."""
    _start(context.obj, worker=True)


def _start(session: Session, *, worker: bool) -> None:
    config = session.config()
    logs.setup(config.log.format, config.log.level)
    raise_file_limit()
    tune_memory()
    uvloop.run(until_signal(config, worker=worker, source=session.config))


def raise_file_limit() -> None:
    """As many open files as we are allowed: each connection is one, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_memory() -> None:
    """Collect cycles rarely: the mail path makes none, and looking for them at every 700 objects cost 5 %."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def until_signal(config: Config, *, worker: bool, source: Source) -> None:
    """Run a node until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
    stop = asyncio.Event()
    why: list[str] = []

    def told(name: str) -> None:
        why.append(name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number.name)
    node = Node(config, worker=worker, source=source)
    await node.start()
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(SendSwitchError):  # the log has told why
            await node.reload()

    def reload_soon() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload_soon)
    await stop.wait()
    logs.stopping(why=why[0])
    await node.stop()
