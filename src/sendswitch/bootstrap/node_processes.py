"""Several nodes on one machine: one process each, started together, started again when one dies or hangs.

The nodes know nothing of each other. This process takes no mail: it starts them, passes signals on, and ends with them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from sendswitch import logs
from sendswitch.bootstrap.background import FIRST_RETRY, LAST_RETRY
from sendswitch.bootstrap.node import GRACE, not_bound
from sendswitch.bootstrap.supervisor import BEAT
from sendswitch.config.model import Config
from sendswitch.config.processes import folder_of, numbers_in
from sendswitch.errors import SendSwitchError
from sendswitch.smtp.endpoint import parse_endpoint
from sendswitch.spool.admin import has_mail

# Signs of life that a node may leave out before it hangs, and before the first one: its start may take long.
SILENT, START = 15, 300
# Seconds after which a node that ended is no failed start.
WELL = 10.0

Command = Callable[[int, int], Sequence[str]]
"""Returns the command of a node by its number, with the pipe that it writes its signs of life to."""


class EndedEarly(SendSwitchError):
    """A node ended before it was ready; it has said why itself. `status` is its exit code."""

    def __init__(self, number: int, status: int) -> None:
        super().__init__(f"node {number} could not start")
        self.status = status


def numbers(config: Config, processes: int) -> list[int]:
    """Return the numbers of the nodes to start: so many, and those that have mail of more."""
    wanted = list(range(1, processes + 1))
    left = [n for n in numbers_in(config.node.data) if n not in wanted]  # its mail must go on
    return wanted + [n for n in left if has_mail(folder_of(config.node.data, n))]


def require_free(config: Config) -> None:
    """Raise AddressTaken where another program listens. Nodes that share a port would share it with that, too."""
    for section in config.listener:
        endpoint = parse_endpoint(section.bind)
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        with closing(socket.socket(family, socket.SOCK_STREAM)) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((endpoint.host, endpoint.port))
            except OSError as error:
                raise not_bound("listener.bind", endpoint, error) from error


class NodeProcesses:
    """The processes of several nodes. Those with numbers above `needed` only deliver what they have."""

    def __init__(self, numbers: Sequence[int], command: Command, needed: int) -> None:
        self._numbers, self._command, self._needed = numbers, command, needed
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Start all nodes; those that are needed take mail on return. Raises EndedEarly, OSError; then none runs.

        A node that only delivers what it has stops no other: it is started again and again.
        """
        loop = asyncio.get_running_loop()
        ready: dict[int, asyncio.Future[None]] = {n: loop.create_future() for n in self._numbers}
        self._keeping = [loop.create_task(self._keep(n, one)) for n, one in ready.items()]
        for number, one in ready.items():
            if number > self._needed:
                one.set_result(None)
        try:
            await asyncio.gather(*ready.values())
        except BaseException:
            await self.stop()
            raise

    def reload(self) -> None:
        """Make every node read its configuration again."""
        self._signal(signal.SIGHUP)

    async def stop(self) -> None:
        """End every node in order; kill those that take twice the time that they have for mail in hand."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        if self._keeping:
            await asyncio.wait(self._keeping, timeout=2 * GRACE)
        self._signal(signal.SIGKILL)
        await asyncio.gather(*self._keeping, return_exceptions=True)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int, ready: asyncio.Future[None]) -> None:
        """Keep a node running until all are stopped. `ready` tells of its first start only."""
        pause, loop = FIRST_RETRY, asyncio.get_running_loop()
        while True:
            began, status, why = loop.time(), -1, None
            try:
                status = await self._one(number, ready)
            except Exception as error:  # such as no memory for a process
                logs.failed(f"running node {number}", error=error)
                why = error
            if self._stopping.is_set():
                ready.cancel()
                return
            if not ready.done():
                ready.set_exception(why or EndedEarly(number, status))
                return
            if loop.time() - began > WELL:
                pause = FIRST_RETRY
            logs.node_restarted(number, status=status, retry_in=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                return
            pause = min(pause * 2, LAST_RETRY)

    async def _one(self, number: int, ready: asyncio.Future[None]) -> int:
        """Run a node until it ends, or kill it when it hangs. Return its exit code."""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            process = await asyncio.create_subprocess_exec(*self._command(number, write), pass_fds=(write,))
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._running[number] = process
        if self._stopping.is_set():  # meanwhile
            process.terminate()
        try:
            await self._listen(number, process, read, ready)
            return await process.wait()
        finally:
            del self._running[number]

    async def _listen(
        self, number: int, process: asyncio.subprocess.Process, pipe: int, ready: asyncio.Future[None]
    ) -> None:
        """Read what a node says until its pipe ends. Kill it when it says nothing for too long."""
        reader = asyncio.StreamReader()
        file = os.fdopen(pipe, "rb")
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        # Looks are counted and not seconds: a process that stood still did not look.
        silent, most = 0, START
        try:
            while silent < most:
                silent += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT):
                        line = await reader.readline()
                    silent = 0
                    if not line:
                        return
                    if line == b"READY=1\n":
                        most = SILENT
                        if not ready.done():
                            ready.set_result(None)
            logs.node_hung(number, pid=process.pid)
            process.kill()
        finally:
            transport.close()


def command(arguments: Sequence[str], processes: int) -> Command:
    """Return the command of each node: this program with these arguments, and which of how many it is."""

    def of(number: int, pipe: int) -> Sequence[str]:
        place = ("--process", f"{number}/{processes}", "--pulse", str(pipe), "--of", str(os.getpid()))
        return [sys.executable, "-m", "sendswitch.cli.main", *arguments, *place]

    return of
