"""The management API of a running node: the application on its unix socket, and the requests about the node itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine

from sendswitch import logs, unix_socket
from sendswitch.admin.base import Installation, at, moment
from sendswitch.admin.http_app import make_app
from sendswitch.admin.node import DialogLine, Status, WorkerSummary
from sendswitch.admin.serialization import NAME
from sendswitch.clock import system_clock
from sendswitch.config.model import Config
from sendswitch.errors import NotFound, Refused, Temporary
from sendswitch.smtp.transcript import Transcript
from sendswitch.web.server import WebServer

if TYPE_CHECKING:
    from sendswitch.bootstrap.node import Node

T = TypeVar("T")

# Seconds for the event loop to do what a request asks of the node.
PATIENCE = 60.0


class Management:
    """Serves the management API and carries out its requests about the node.

    The methods of `admin.node.RunningNode` are called from the application's threads; each runs its part on the event
    loop and waits for it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._server: WebServer | None = None
        self._level_until: asyncio.TimerHandle | None = None
        self._trace: Transcript | None = None
        self._trace_until: asyncio.TimerHandle | None = None

    async def start(self, data: Path, engine: Engine) -> None:
        """Serve on the socket in the data folder. A socket that a crashed node left is replaced."""
        line = unix_socket.listen(data / NAME)
        installation = Installation(lambda: self._node.config, engine=engine, node=self)
        self._server = WebServer(make_app(installation))
        await self._server.serve(line)

    async def stop(self, data: Path) -> None:
        """Stop serving and remove the socket."""
        if self._server is not None:
            await self._server.stop()
            with suppress(FileNotFoundError):
                (data / NAME).unlink()

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(PATIENCE)
        except TimeoutError as error:
            future.cancel()
            raise Temporary(f"the node did not do it within {PATIENCE:g} seconds; look at its log") from error

    # The node

    def refresh(self) -> None:
        """Read rules, users, pipelines and lists again. On return they are in force, if the database can be read."""

        async def on_loop() -> None:
            node = self._node
            node.current.use_rules(await node.spool.rules())
            node.spool.written.set()
            await node.catch_up()

        self._on_loop(on_loop())

    def reload(self) -> Sequence[str]:
        """Read the configuration again. Return the changed keys that wait for a restart."""
        return self._on_loop(self._node.reload())

    def drain(self, on: bool) -> None:
        """Stop taking mail, or take it again."""
        self._on_loop(self._node.drain(on))

    def status(self) -> Status:
        """Return the work of the node and its addresses."""

        async def on_loop() -> Status:
            node = self._node
            states, oldest, events = await node.spool.figures()
            return Status(
                draining=node.draining,
                listening=node.addresses(),
                connections=sum(listener.connections for listener in node.listeners),
                on_the_way=states.get("accepted", 0) + states.get("decided", 0),
                held=states.get("held", 0),
                quarantined=states.get("quarantined", 0),
                oldest=moment(oldest),
                events_waiting=events,
                overloaded=node.overload.why,
                configuration_refused=node.refused,
            )

        return self._on_loop(on_loop())

    def workers(self) -> Sequence[WorkerSummary]:
        """Return the worker processes that are connected, the oldest first."""

        async def on_loop() -> Sequence[WorkerSummary]:
            here = [
                WorkerSummary(one.name, one.pid, at(one.since), one.queues, one.places, one.leased, one.done, one.user)
                for one in self._node.workers.workers()
            ]
            distant = self._node.rabbitmq.workers() if self._node.rabbitmq is not None else []
            return here + [
                WorkerSummary(one.name, 0, at(one.since), (one.queue,), one.places, one.leased, one.done, one.user)
                for one in distant
            ]

        return self._on_loop(on_loop())

    # The log level

    def set_level(self, level: str, seconds: float | None) -> str:
        """Change the log level, for `seconds` or until the next reload. Return the level before. Raises Refused."""
        if level not in logs.LEVELS:
            raise Refused(f"{level!r} is none of {', '.join(logs.LEVELS)}")

        async def on_loop() -> str:
            return self._change_level(level, seconds)

        return self._on_loop(on_loop())

    def _change_level(self, level: str, seconds: float | None) -> str:
        _cancel(self._level_until)
        before = logs.set_level(level)
        logs.level_changed(was=before, now=level)
        self._node.workers.tell_settings()
        if seconds is not None:
            configured = self._node.config.log.level
            self._level_until = self._loop.call_later(seconds, self._change_level, configured, None)
        return before

    def log_as(self, config: Config) -> None:
        """Log as configured. A level that was set for a time ends."""
        _cancel(self._level_until)
        logs.setup(config.log.format, config.log.level)

    # Dialogs

    def start_trace(self, listener: str, sender: str, seconds: float) -> None:
        """Record SMTP dialogs for `seconds`. Raises NotFound for an unknown listener."""
        sections = [section for section in self._node.config.listener if listener in ("", section.bind)]
        if not sections:
            raise NotFound(f"no listener is bound to {listener}; `sendswitch node status` shows them")

        async def on_loop() -> None:
            self._end_trace()
            self._trace = Transcript(sender, system_clock)
            for one in (one for section in sections for one in self._node.listener(section)):
                one.listen_in(self._trace)
            # Who asked may go away without a word.
            self._trace_until = self._loop.call_later(seconds, self._end_trace)

        self._on_loop(on_loop())

    def trace(self, after: int) -> Sequence[DialogLine]:
        """Return the recorded lines whose number is above `after`."""

        async def on_loop() -> Sequence[DialogLine]:
            lines = self._trace.after(after) if self._trace else []
            return [DialogLine(line.number, at(line.at), line.session, line.who, line.text) for line in lines]

        return self._on_loop(on_loop())

    def stop_trace(self) -> None:
        """Stop recording dialogs and forget the lines."""

        async def on_loop() -> None:
            self._end_trace()

        self._on_loop(on_loop())

    def _end_trace(self) -> None:
        _cancel(self._trace_until)
        self._trace = None
        for listener in self._node.listeners:
            listener.listen_in(None)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
