"""`work`: run pipelines for a node on this machine, or through RabbitMQ."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from sendswitch import unix_socket
from sendswitch.bootstrap.parts import make_readers
from sendswitch.bootstrap.rabbitmq import broker_urls, rabbit_consumer
from sendswitch.broker.remote import OnSettings, RemoteConsumer
from sendswitch.broker.worker_server import NAME
from sendswitch.cli.output import Session
from sendswitch.cli.serve import raise_file_limit, tune_memory
from sendswitch.processors.hosting.supervise import ends_with
from sendswitch.routing import ALONE, POOL
from sendswitch.worker.process import NodeConsumer, WorkerProcess


def work(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Option("--socket", help="The node's socket for workers; by default the one in node.data."),
    ] = None,
    brokers: Annotated[
        list[str] | None,
        typer.Option("--broker", help="RabbitMQ, as an URL; several hosts by several options; - reads them as lines."),
    ] = None,
    name: Annotated[str, typer.Option(help="The name of this worker in lists and logs; by default host and pid.")] = "",
    places: Annotated[int, typer.Option(min=1, max=10_000, help="Tasks at once.")] = 100,
    queues: Annotated[
        list[str] | None,
        typer.Option("--queue", help="The queues to take tasks from; by default those of the site."),
    ] = None,
    of: Annotated[int, typer.Option("--of", hidden=True, help="The node that started it, and with which it ends.")] = 0,
    pulse: Annotated[int, typer.Option("--pulse", hidden=True, help="A pipe for its signs of life.")] = -1,
) -> None:
    """Run pipelines for a node on this machine, or through RabbitMQ.

    `sendswitch run` starts such workers by itself. Beside `sendswitch serve` start as many as you need. SIGTERM and
    SIGINT end it when the tasks in hand are answered.
    """
    session: Session = context.obj
    if of:
        ends_with(of, signal.SIGKILL)  # even where it hangs, or was stopped
    taken = tuple(queues or (ALONE, POOL))
    name = name or f"{socket.gethostname()} {os.getpid()}"
    connect: Connect
    if urls := _urls(brokers or []) or ([] if path else broker_urls(session.config())):
        connect = partial(rabbit_consumer, urls, name=name, places=places, queues=taken)
    else:
        place = path or session.config().node.data / NAME
        connect = partial(_over_socket, place, name, places, taken, bool(of))
    raise_file_limit()
    tune_memory()
    os.umask(0o077)
    uvloop.run(_until_signal(connect, taken, places, pulse))


Connect = Callable[[OnSettings], NodeConsumer]


def _urls(brokers: list[str]) -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()] if brokers == ["-"] else brokers


def _over_socket(
    path: Path, name: str, places: int, queues: tuple[str, ...], once: bool, on_settings: OnSettings
) -> NodeConsumer:
    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with unix_socket.address_of(path) as address:
            return await asyncio.open_unix_connection(address)

    return RemoteConsumer(connect, name=name, places=places, queues=queues, on_settings=on_settings, once=once)


async def _beat(pulse: int) -> None:
    """Give a sign of life every second, as long as the event loop lives."""
    os.set_inheritable(pulse, False)
    while True:
        with suppress(OSError):  # nobody read the last ones, or the node is gone
            os.write(pulse, b".")
        await asyncio.sleep(1.0)


async def _until_signal(connect: Connect, queues: tuple[str, ...], places: int, pulse: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    beating = asyncio.ensure_future(_beat(pulse)) if pulse >= 0 else None
    await WorkerProcess(connect, make_readers(1), queues=queues, places=places).run(stopping)
    if beating is not None:
        beating.cancel()
