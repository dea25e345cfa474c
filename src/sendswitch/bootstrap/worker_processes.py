"""The worker processes of a node: started when they are needed, replaced when they die, hang or grow, ended with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sendswitch import logs
from sendswitch.bootstrap.background import FIRST_RETRY, LAST_RETRY
from sendswitch.errors import in_words
from sendswitch.processors.hosting.supervise import kill_below
from sendswitch.routing import ALONE, POOL

# Seconds between two looks at a process: at its memory, and for a sign of life.
LOOK = 1.0
# Looks without a sign of life after which a process hangs; the first may take long, because it loads its program.
SILENT, SILENT_FIRST = 10, 60
# Seconds after which a process that ended is no failed start.
WELL = 10.0
# Seconds for the tasks that a process has, when it is replaced and when the node stops; it is killed then.
GRACE, LAST_GRACE = 60.0, 8.0
# Variables of our environment with secrets, or with a meaning for the node only.
_OURS = ("SENDSWITCH_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class WorkerProcesses:
    """So many worker processes, each with `places` tasks at most, and `memory` bytes above which it is replaced.

    `path` is the node's socket for workers. In the folder `files` each process has one of its own for its temporary
    files, which goes with it. With `brokers`, URLs of RabbitMQ, it takes tasks from there instead. They
    start when `needed` is set. With `alone` there is one process more, for one task at a time: those that may break it.
    """

    def __init__(
        self,
        path: Path,
        files: Path,
        number: int,
        *,
        places: int,
        memory: int,
        needed: asyncio.Event,
        alone: asyncio.Event,
        brokers: Sequence[str] = (),
    ) -> None:
        self._path, self._files, self._number, self._brokers = path, files, number, brokers
        self._needed, self._alone = needed, alone
        self._places, self._memory, self._started = places, memory, 0
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._folders: dict[int, Path] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep all processes running. Cancelled, it ends them in order, or kills them after LAST_GRACE seconds."""
        await asyncio.to_thread(shutil.rmtree, self._files, ignore_errors=True)
        await self._needed.wait()
        try:
            async with asyncio.TaskGroup() as group:
                for n in range(1, self._number + 1):
                    group.create_task(self._keep(f"worker {n}", POOL, self._places))
                await self._alone.wait()
                group.create_task(self._keep("worker alone", ALONE, 1))
        finally:
            for process in self._running.values():
                _signal(process, signal.SIGTERM)
            for ending in self._ending:
                ending.cancel()
            await asyncio.gather(*(_ended(one, LAST_GRACE) for one in self._running.values()), return_exceptions=True)
            await asyncio.to_thread(shutil.rmtree, self._files, ignore_errors=True)

    def kill(self, pid: int) -> None:
        """Kill a process that hangs, and what it started. One that is none of ours stays."""
        if (process := self._running.get(pid)) is not None:
            _kill(process)

    async def _keep(self, name: str, queue: str, places: int) -> None:
        loop, pause = asyncio.get_running_loop(), FIRST_RETRY
        while True:
            began = loop.time()
            try:
                why = await self._one(name, queue, places)
            except OSError as error:
                why = f"it could not be started: {in_words(error)}"
            if loop.time() - began > WELL:
                pause = FIRST_RETRY
            logs.worker_replaced(name, why=why, retry_in=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_RETRY)

    async def _one(self, name: str, queue: str, places: int) -> str:
        """Run one process until it ends, hangs, or is too large. Return why another one is needed. Raises OSError."""
        self._started += 1
        files = self._files / str(self._started)
        await asyncio.to_thread(files.mkdir, mode=0o700, parents=True)
        heard, pulse = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            try:
                process = await self._start(name, queue, places, files, pulse)
            finally:
                os.close(pulse)
            return await self._watch(name, process, heard)
        finally:
            os.close(heard)

    async def _start(self, name: str, queue: str, places: int, files: Path, pulse: int) -> asyncio.subprocess.Process:
        """Start a process, which writes a byte to the pipe `pulse` every second. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sendswitch.cli.main", "work"),
            *(("--broker", "-") if self._brokers else ("--socket", str(self._path))),
            *("--name", name, "--places", str(places), "--queue", queue),
            *("--of", str(os.getpid()), "--pulse", str(pulse)),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(pulse,),
            env=without_ours(os.environ) | {"TMPDIR": str(files)},
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write("".join(f"{url}\n" for url in self._brokers).encode())  # no secret in the list of processes
        process.stdin.close()
        self._running[process.pid] = process
        self._folders[process.pid] = files
        return process

    async def _watch(self, name: str, process: asyncio.subprocess.Process, heard: int) -> str:
        """Watch a process. Return why another one is needed. Looks are counted and not seconds: a node that stood still
        did not look.
        """
        ending, silent, most = asyncio.ensure_future(process.wait()), 0, SILENT_FIRST
        try:
            while not (await asyncio.wait((ending,), timeout=LOOK))[0]:
                if _heard(heard):
                    silent, most = 0, SILENT
                else:
                    silent += 1
                if silent >= most:
                    logs.worker_hung(name, pid=process.pid)
                    _kill(process)
                    await ending
                    return f"it gave no sign of life for {silent * LOOK:g} s"
                if (size := resident(process.pid)) > self._memory:
                    self._end(process)
                    return f"it had grown to {size} bytes"
            return f"it ended with {_how(process.returncode or 0)}"
        finally:
            if ending.done():
                await self._gone(process)
            ending.cancel()

    def _end(self, process: asyncio.subprocess.Process) -> None:
        """End a process in the background; meanwhile it answers what it has."""
        task = asyncio.get_running_loop().create_task(self._finished(process))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _finished(self, process: asyncio.subprocess.Process) -> None:
        _signal(process, signal.SIGTERM)
        ending = asyncio.ensure_future(_ended(process, GRACE))
        while not (await asyncio.wait((ending,), timeout=LOOK))[0]:
            if resident(process.pid) > 2 * self._memory:
                _kill(process)
        await self._gone(process)

    async def _gone(self, process: asyncio.subprocess.Process) -> None:
        """Clear up behind a process that has ended: its group, and its files."""
        self._running.pop(process.pid, None)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(shutil.rmtree, self._folders.pop(process.pid), ignore_errors=True)


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what is for the node alone, such as secrets."""
    return {name: value for name, value in environment.items() if not name.startswith(_OURS)}


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _heard(pipe: int) -> bool:
    """Return whether there was a sign of life, and forget it."""
    try:
        return bool(os.read(pipe, 65_536))
    except BlockingIOError:
        return False


async def _ended(process: asyncio.subprocess.Process, grace: float) -> None:
    """Wait for the end of a process that was told to end; kill it after `grace` seconds, with what it started."""
    try:
        async with asyncio.timeout(grace):
            await process.wait()
    except TimeoutError:
        _kill(process)
        await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process and all that it started."""
    if process.returncode is None:
        kill_below(process.pid)
    _signal(process, signal.SIGKILL)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            process.send_signal(number)


def _how(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
