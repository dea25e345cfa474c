"""A bounded pool of reader processes (`processors.hosting.content_reader`), with a fair share for each user.

Steps that read content run there, because a thread of the node cannot be ended: four slow messages would keep all
others waiting. A reader that is too slow is killed at the step's time limit, and replaced. A step that waits for a
reader loses no time by that (`deadline.waiting`). One user has at most half of the readers, and users take turns.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from sendswitch.deadline import waiting
from sendswitch.errors import Temporary
from sendswitch.mail.address import key
from sendswitch.mail.content import InFile
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.findings import Finding, Kind
from sendswitch.processors import base
from sendswitch.processors.hosting.child import environment
from sendswitch.processors.hosting.wire import context_to_json

# Bytes of memory that a reader may take for one message beside what it has.
MEMORY = 400_000_000


class ReaderFailed(Temporary):
    """The content could not be read; the reason is in the message's trace."""


class _Died(Exception):
    """A reader ended while it had a message."""


@dataclass(slots=True, eq=False)
class _Job:
    owner: str
    head: bytes
    raw: bytes
    started: Future[None] = field(default_factory=Future)
    done: Future[dict[str, Any]] = field(default_factory=Future)
    child: _Child | None = None
    cancelled: bool = False


class _Child:
    """One reader: asked in a thread, killed from anywhere."""

    def __init__(self, nursery: _Nursery) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.pid = nursery.fork(theirs)
        finally:
            theirs.close()
        self._socket, self._file = ours, ours.makefile("rb")
        self._handle = os.pidfd_open(self.pid)

    def ask(self, job: _Job) -> dict[str, Any]:
        """Return the answer. Raises _Died."""
        try:
            self._socket.sendall(job.head + b"\n" + job.raw)
            size = self._file.read(8)
            if len(size) < 8:
                raise _Died
            answer = self._file.read(struct.unpack("<Q", size)[0])
            read: dict[str, Any] = orjson.loads(answer)
        except (OSError, ValueError) as error:
            raise _Died from error
        return read

    def alive(self) -> bool:
        """Return whether the process runs."""
        return not select.select([self._handle], [], [], 0)[0]

    def kill(self) -> None:
        """End it now. A thread that waits for its answer sees the end of its socket."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the process and close its handles."""
        self.kill()
        self._file.close()
        self._socket.close()
        os.close(self._handle)


class _Nursery:
    """The process that forks readers; started with the first of them, and again if it dies."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def fork(self, theirs: socket.socket) -> int:
        """Return the process number of a new reader at the other end of `theirs`. Raises OSError."""
        with self._lock:
            for _ in range(2):
                try:
                    return self._fork(theirs)
                except (OSError, struct.error):
                    self._end()
            return self._fork(theirs)

    def _fork(self, theirs: socket.socket) -> int:
        if self.process is None or self._socket is None:
            ours, its = socket.socketpair()
            command = [sys.executable, "-m", "sendswitch.processors.hosting.content_reader", str(self._memory)]
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                command, stdin=its.fileno(), env=environment(), start_new_session=True
            )
            its.close()
            self._socket = ours
        socket.send_fds(self._socket, [b"+"], [theirs.fileno()])
        pid: int = struct.unpack("<Q", self._socket.recv(8))[0]
        return pid

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = self._socket = None

    def close(self) -> None:
        """End it. Readers go on until they are closed."""
        with self._lock:
            self._end()


class Pool:
    """`size` readers, started when they are needed."""

    def __init__(self, size: int, memory: int = MEMORY) -> None:
        self._most, self._share = size, max(1, size // 2)
        self.nursery = _Nursery(memory)
        self._threads = ThreadPoolExecutor(size, "reader")
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self.idle: list[_Child] = []
        self._closed = False

    def submit(self, owner: str, head: bytes, raw: bytes) -> _Job:
        """Ask a reader, in turn. `owner` is whose share it takes."""
        job = _Job(owner, head, raw)
        with self._lock:
            self._waiting.setdefault(owner, deque()).append(job)
        self._pump()
        return job

    def cancel(self, job: _Job) -> bool:
        """Cancel a job. Return whether a reader had it, and was killed for that."""
        with self._lock:
            job.cancelled = True
            queue = self._waiting.get(job.owner)
            if queue is not None and job in queue:
                queue.remove(job)
                if not queue:
                    del self._waiting[job.owner]
                return False
            child = job.child
        if child is None:
            return False
        child.kill()
        return True

    def _pump(self) -> None:
        """Hand waiting jobs to threads, each owner in turn."""
        with self._lock:
            while not self._closed and self._running.total() < self._most:
                owner = next((one for one in self._waiting if self._running[one] < self._share), None)
                if owner is None:
                    return
                queue = self._waiting[owner]
                job = queue.popleft()
                if queue:
                    self._waiting.move_to_end(owner)
                else:
                    del self._waiting[owner]
                self._running[owner] += 1
                self._threads.submit(self._run, job)

    def _idle_one(self) -> _Child | None:
        """Return a reader that has no message, and lives."""
        while True:
            with self._lock:
                if not self.idle:
                    return None
                child = self.idle.pop()
            if child.alive():
                return child
            child.close()

    def _run(self, job: _Job) -> None:
        child: _Child | None = None
        good = False
        try:
            child = self._idle_one() or _Child(self.nursery)
            with self._lock:
                job.child = child
                if job.cancelled:
                    raise _Died
            job.started.set_result(None)
            answer = child.ask(job)
            good = "memory" not in answer  # what filled it is still in it
            job.done.set_result(answer)
        except BaseException as error:
            if not job.started.done():
                job.started.set_result(None)
            job.done.set_exception(error)
        finally:
            with self._lock:
                job.child = None
                self._running[job.owner] -= 1
                self._running += Counter()  # without those who have none
                keep = good and not job.cancelled and not self._closed
                if keep and child is not None:
                    self.idle.append(child)
            if child is not None and not keep:
                child.close()
            self._pump()

    def close(self) -> None:
        """End every reader; blocks until its message is given up."""
        with self._lock:
            self._closed = True
            idle, self.idle = self.idle, []
            jobs = [job for queue in self._waiting.values() for job in queue]
            self._waiting.clear()
        for job in jobs:
            job.started.set_result(None)
            job.done.set_exception(_Died())
        for child in idle:
            child.close()
        self.nursery.close()
        self._threads.shutdown(wait=True, cancel_futures=True)


class InProcesses:
    """Readers in processes (`base.Readers`): one pool for steps that compute, and a larger one for steps that wait for
    the DNS.
    """

    def __init__(self, cores: int) -> None:
        self.pools = {False: Pool(2 * cores), True: Pool(8 * cores)}

    async def read(self, step: base.Reads, mail: Mail, context: base.Context) -> Any:
        """Return the result of the step's `read` in a reader. Raises ReaderFailed."""
        call = {"use": step.use, "options": step.options_json(), "context": context_to_json(context)}
        return await self._ask(step.waits_for_names, call, mail, context)

    async def findings(self, mail: Mail, context: base.Context) -> None:
        """Have the message know its findings."""
        found = await self._ask(False, {"use": "findings"}, mail, context)
        mail.know(tuple(Finding(Kind(kind), text) for kind, text in found))

    async def described(self, mail: Mail, context: base.Context, *, thin: bool) -> dict[str, Any]:
        """Return the message as data. Raises ReaderFailed."""
        call = {"use": "described", "thin": thin, "context": context_to_json(context)}
        told: dict[str, Any] = await self._ask(False, call, mail, context)
        return told

    async def _ask(self, waits: bool, call: dict[str, Any], mail: Mail, context: base.Context) -> Any:
        content = mail.content
        path = str(content.path) if isinstance(content, InFile) else ""
        raw = b"" if path else mail.raw
        head = orjson.dumps(call | {"path": path, "size": len(raw)}, default=str)
        pool = self.pools[waits]
        job = pool.submit(key(context.recipient.address), head, raw)
        try:
            async with waiting():
                await asyncio.wrap_future(job.started)
            answer = await asyncio.wrap_future(job.done)
        except asyncio.CancelledError:
            if pool.cancel(job):
                context.broke.append(f"the reader of {call['use']}")
            raise
        except (_Died, OSError) as error:
            context.broke.append(f"the reader of {call['use']}")
            raise ReaderFailed("the process that read the content ended") from error
        if "memory" in answer:
            context.broke.append(f"the reader of {call['use']}")
            raise ReaderFailed("the content needs more memory than a step may have")
        context.notes.extend(answer.get("notes", ()))
        if "error" in answer:
            raise ReaderFailed(str(answer["error"])[:2000])
        return answer["read"]

    def close(self) -> None:
        """End every reader."""
        for pool in self.pools.values():
            pool.close()
