"""`work`: run pipelines for a node, on its machine or on another one."""

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
from urllib.parse import unquote, urlsplit

import typer
import uvloop

from sendswitch import logs, unix_socket
from sendswitch.bootstrap.parts import make_readers
from sendswitch.bootstrap.rabbitmq import rabbit_consumer
from sendswitch.bootstrap.supervisor import Supervisor
from sendswitch.broker import web_client
from sendswitch.broker.remote import OnSettings, RemoteConsumer
from sendswitch.broker.several import SeveralNodes
from sendswitch.broker.streams import SocketStream, Stream
from sendswitch.broker.worker_server import NAME, OWN_PLACES
from sendswitch.cli.output import Session
from sendswitch.cli.serve import LOOK, changes, raise_file_limit, tune_memory
from sendswitch.config.environment import taken_from_systemd
from sendswitch.errors import InvalidConfiguration
from sendswitch.processors.base import Readers
from sendswitch.processors.hosting.supervise import ends_with
from sendswitch.routing import ALONE, POOL, rabbitmq_queue
from sendswitch.worker.process import NodeConsumer, OwnPipeline, WorkerProcess

Socket = Annotated[
    Path | None, typer.Option("--socket", help="The node's socket for workers; by default the one in node.data.")
]
Brokers = Annotated[
    list[str] | None,
    typer.Option(
        "--broker",
        help="RabbitMQ, as an URL; several hosts by several options; - reads them as lines. As an option others on"
        " this machine can see the password.",
    ),
]
WebPort = Annotated[
    str,
    typer.Option(
        "--url", help="Connect to the web port of this node, such as https://mail.example, and run your pipeline here."
    ),
]
Token = Annotated[
    str,
    typer.Option(
        envvar="SENDSWITCH_TOKEN",
        show_envvar=True,
        help="The key that `key add` made; - reads it from standard input. As an option others on this machine can see"
        " it.",
    ),
]
Pipeline = Annotated[
    Path | None,
    typer.Option(help="On a worker of your own: run the steps of this file, not those of your pipeline on the node."),
]
Reload = Annotated[
    bool,
    typer.Option("--reload", help="Read the file of --pipeline again when it is edited. SIGHUP reads it at any time."),
]
Name = Annotated[str, typer.Option(help="The name of this worker in lists and logs; by default host and pid.")]
Places = Annotated[int, typer.Option(min=1, max=10_000, help="Tasks at once; on a worker of your own 20 at most.")]
Queues = Annotated[
    list[str] | None,
    typer.Option("--queue", help="The queues to take tasks from; by default those of the site. Not with --url."),
]
Of = Annotated[int, typer.Option("--of", hidden=True, help="The node that started it, and with which it ends.")]
Pulse = Annotated[int, typer.Option("--pulse", hidden=True, help="A pipe for its signs of life.")]


def work(
    context: typer.Context,
    path: Socket = None,
    brokers: Brokers = None,
    url: WebPort = "",
    token: Token = "",
    pipeline: Pipeline = None,
    reload: Reload = False,
    name: Name = "",
    places: Places = 100,
    queues: Queues = None,
    of: Of = 0,
    pulse: Pulse = -1,
) -> None:
    """Run pipelines for a node, on its machine or on another one.

    `sendswitch run` starts such workers by itself. Beside `sendswitch serve` start as many as you need. With --url and
    a key, or with --broker and an account of yours, it is a worker of your own: it runs the pipeline for your mail
    here. SIGTERM and SIGINT end it when the tasks in hand are answered.
    """
    session: Session = context.obj
    if of:
        ends_with(of, signal.SIGKILL)  # even where it hangs, or was stopped
    named = _urls(brokers or [])
    user = _user(named)
    taken = tuple(queues or ([rabbitmq_queue(user)] if user else (ALONE, POOL)))
    name = name or f"{socket.gethostname()} {os.getpid()}"
    connect: Connect
    _check(url, user, pipeline, reload=reload, queues=queues)
    own = OwnPipeline(pipeline) if pipeline is not None else None
    places = min(places, OWN_PLACES) if url or user else places
    if url or user:  # their user's settings for logs count, not the site's
        logs.setup("text" if sys.stderr.isatty() else "json", "info")
    if url:
        connect = partial(_over_web, _place(url), _token(token), name, places)
    elif urls := named or ([] if path else session.config().broker_urls):
        connect = partial(rabbit_consumer, urls, name=name, places=places, queues=taken)
    else:
        place = path or session.config().node.data / NAME
        connect = partial(_over_socket, place, name, places, taken, bool(of))
    raise_file_limit()
    tune_memory()
    os.umask(0o077)
    worker = partial(WorkerProcess, connect, queues=taken, places=places, name=name if url or user else "", own=own)
    supervisor = Supervisor(*taken_from_systemd(os.environ, os.getpid()))
    uvloop.run(_until_signal(worker, pulse, pipeline if reload else None, supervisor))


Connect = Callable[[OnSettings], NodeConsumer]


def _check(url: str, user: str, pipeline: Path | None, *, reload: bool, queues: list[str] | None) -> None:
    """Raise BadParameter for options that do not go together."""
    if pipeline is not None and not url and not user:
        raise typer.BadParameter(
            "--pipeline is for a worker of your own; add --url and --token, or --broker with your own account"
        )
    if reload and pipeline is None:
        raise typer.BadParameter("--reload reads the file of --pipeline again; name one")
    if url and queues:
        raise typer.BadParameter("with --url the node knows the queue by the key; leave --queue out")


def _urls(brokers: list[str]) -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()] if brokers == ["-"] else brokers


def _user(urls: list[str]) -> str:
    """Return the address of the user whose account these URLs of RabbitMQ have, '' for an account of the site.

    Raises BadParameter for accounts of several.
    """
    users = {unquote(urlsplit(url).username or "") for url in urls}
    if len(users) > 1 and any("@" in user for user in users):
        raise typer.BadParameter("the URLs have accounts of several users", param_hint="--broker")
    return next((user for user in users if "@" in user), "")


def _place(url: str) -> str:
    try:
        return web_client.place_of(url)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from error


def _token(given: str) -> str:
    token = sys.stdin.readline().strip() if given == "-" else given.strip()
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise typer.BadParameter("--url needs a key: `sendswitch key add USER` on the node makes one")
    return token


def _over_web(place: str, token: str, name: str, places: int, on_settings: OnSettings) -> NodeConsumer:
    connect = partial(web_client.connector, place, token)
    return SeveralNodes(connect, name=name, places=places, on_settings=on_settings)


def _over_socket(
    path: Path, name: str, places: int, queues: tuple[str, ...], once: bool, on_settings: OnSettings
) -> NodeConsumer:
    async def connect() -> Stream:
        with unix_socket.address_of(path) as address:
            return SocketStream(*await asyncio.open_unix_connection(address))

    return RemoteConsumer(connect, name=name, places=places, queues=queues, on_settings=on_settings, once=once)


async def _beat(pulse: int) -> None:
    """Give a sign of life every second, as long as the event loop lives."""
    os.set_inheritable(pulse, False)
    while True:
        with suppress(OSError):  # nobody read the last ones, or the node is gone
            os.write(pulse, b".")
        await asyncio.sleep(1.0)


async def _keep_up(worker: WorkerProcess, edited: Path | None, hangup: asyncio.Event) -> None:
    """Read the worker's own pipeline again after SIGHUP, and, if it is to be watched, whenever its file changes."""
    changed, edit = changes(partial(_stamp, edited)) if edited is not None else None, False
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK if changed is not None else None):
                await hangup.wait()
        # An editor may be in the middle of it: the file must be the same at two looks.
        edit, ended = (changed(), edit) if changed is not None else (False, False)
        if hangup.is_set() or (ended and not edit):
            hangup.clear()
            try:
                if await worker.read_again():
                    logs.pipeline_read(str(edited or ""))
            except InvalidConfiguration as error:
                logs.configuration_refused(problems=error.problems)


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    with suppress(OSError):
        about = path.stat()
        return [(str(path), about.st_mtime_ns, about.st_size)]
    return []


async def _until_signal(
    made: Callable[[Readers], WorkerProcess], pulse: int, edited: Path | None, supervisor: Supervisor
) -> None:
    stopping, hangup, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def told() -> None:
        supervisor.tell("STOPPING=1")
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    worker = made(make_readers(1))
    beside = [loop.create_task(work) for work in (_keep_up(worker, edited, hangup), supervisor.watch())]
    if pulse >= 0:
        beside.append(loop.create_task(_beat(pulse)))
    supervisor.tell("READY=1")
    try:
        await worker.run(stopping)
    finally:
        for task in beside:
            task.cancel()
