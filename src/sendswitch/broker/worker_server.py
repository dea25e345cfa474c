"""The node's end of its workers in other processes: over a unix socket in the data folder those of the site, and over
the web port those of users' own, on other machines.

A worker gets as many tasks as it has places, each for a time. What it does not answer comes to its end all the same: a
worker that dies, hangs or sends rubbish loses its tasks, and the node is told (`EmbeddedBroker.lose`).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Container, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sendswitch import logs, metrics
from sendswitch.broker import frames
from sendswitch.broker.base import ReadContent
from sendswitch.broker.calls import CallsOf, SettingsOf, error_to_json
from sendswitch.broker.codec import decode_answer, encode_task
from sendswitch.broker.embedded import EmbeddedBroker
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.streams import OWN_MOST, Login, SocketStream, Stream
from sendswitch.errors import Refused, Temporary, classify, in_words
from sendswitch.mail.content import Content, InMemory
from sendswitch.mail.task import Reference, Task
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import LOST, MAX_REASON, Deferral, PipelineResult
from sendswitch.routing import own_queue

# The socket's file in node.data.
NAME = "workers"
# Seconds for the first frame. Seconds behind a task's deadline after which the node answers for a worker that lives;
# the worker's own deadline comes first, but does not count the time in which a step waits for a place.
PATIENCE, BEHIND = 10.0, 300.0
# Seconds between two pings, on this machine and to others, and how many may be unanswered before a worker is known to
# hang.
BEAT, DISTANT_BEAT, SILENT = 1.0, 10.0, 10
DISTANT_SILENT = 3
# Most workers of all users; tasks that one of them has at once, and calls that it makes.
ALL_MOST = 5_000
OWN_PLACES, OWN_CALLS = 20, 5
# Most places of a worker, and characters of its name.
MOST_PLACES, MOST_NAME = 10_000, 100
# Calls of a worker that are under way at once: each of its tasks makes one at a time.
CALLS = 2 * MOST_PLACES

_CREDENTIALS = struct.Struct("3i")


@dataclass(slots=True)
class ConnectedWorker:
    """A worker that is connected: `since` in seconds since the epoch, tasks that it has and that it answered."""

    name: str
    pid: int
    places: int
    queues: tuple[str, ...]
    since: float
    leased: int = 0
    done: int = 0
    user: str = ""


@dataclass(slots=True, eq=False)
class _Lease:
    """A task that the worker has. `told` is True when the node has its answer, and the worker still works on it."""

    task: Task
    content: Content | None = None
    timer: asyncio.TimerHandle | None = None
    late: bool = False
    told: bool = False
    fetching: bool = False


class WorkerServer:
    """The server of workers. `calls` returns what they may ask of the node, and `settings` what they must know."""

    def __init__(
        self,
        broker: EmbeddedBroker,
        read: ReadContent,
        calls: CallsOf,
        settings: SettingsOf,
        on_hung: Callable[[int], None],
    ) -> None:
        self.broker, self.read, self.calls, self.settings, self.on_hung = broker, read, calls, settings, on_hung
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._server: asyncio.Server | None = None

    async def start(self, line: socket.socket) -> None:
        """Serve on a bound unix socket."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.serve(SocketStream(reader, writer), pid=_peer(writer), trusted=True)

        self._server = await asyncio.start_unix_server(serve, sock=line)

    async def stop(self) -> None:
        """Disconnect every worker; what they have not answered is lost."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def workers(self) -> list[ConnectedWorker]:
        """Return the workers that are connected, the oldest first."""
        return [one.worker for one in self._connections.values() if one.worker is not None]

    def tell_settings(self) -> None:
        """Tell every worker the settings as they are now."""
        for one in self._connections.values():
            if one.worker is not None:
                one.welcome()

    def drop(self, valid: Container[tuple[int, str]]) -> None:
        """Disconnect the workers of users' own whose key, by number and address, is not valid any more."""
        for task, one in self._connections.items():
            if one.login is not None and (one.login.key, one.login.address) not in valid and not task.cancelling():
                task.cancel()

    def room_for(self, login: Login) -> bool:
        """Return whether a user may have one more worker."""
        logins = [one.login.address for one in self._connections.values() if one.login is not None]
        return len(logins) < ALL_MOST and logins.count(login.address) < OWN_MOST

    async def serve(self, stream: Stream, *, pid: int = 0, login: Login | None = None, trusted: bool = False) -> None:
        """Serve one worker until it goes: one of the user who has logged in, else one of the site. Never raises.

        What is `trusted` may say itself who has logged in: another node of this machine, which has checked it.
        """
        task = asyncio.current_task()
        assert task is not None
        connection = self._connections[task] = _Connection(self, stream, pid, login, trusted=trusted)
        try:
            await connection.run()
        except asyncio.CancelledError:
            pass  # the server stops
        except Exception as error:
            name = connection.worker.name if connection.worker else "a worker"
            logs.failed(f"the connection of {name}", error=error)
        finally:
            del self._connections[task]
            stream.abort()  # a worker that does not read would never let it close


class _Connection:
    """One worker: its leases, by token, and the frames of both directions."""

    def __init__(self, server: WorkerServer, stream: Stream, pid: int, login: Login | None, *, trusted: bool) -> None:
        self._server, self._stream, self._pid, self.login, self._trusted = server, stream, pid, login, trusted
        self._owner = login.address if login is not None else ""
        self.worker: ConnectedWorker | None = None
        self._leases: dict[str, _Lease] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._calls = 0
        self._room = asyncio.Event()
        self._taking: asyncio.Task[None] | None = None
        self._stopping = self._said_stopped = False
        self._unanswered = 0
        self._why = "its worker ended"

    async def run(self) -> None:
        """Serve until the worker goes. Raises BadFrame."""
        async with asyncio.timeout(PATIENCE):
            hello = await self._stream.read()
            if hello is not None and hello.kind == "login" and self._trusted:
                self._log_in(Login(hello.get("address", str), hello.get("key", int)))
                hello = await self._stream.read()
        if hello is None:
            return
        worker = self.worker = self._hello(hello)
        self.welcome()
        metrics.WORKERS.inc()
        self._start(self._ping())
        try:
            while (frame := await self._stream.read()) is not None:
                self._heard(frame)
        except ConnectionError:
            pass  # it died
        except BadFrame as error:
            self._why = f"its worker sent rubbish: {error}"
            raise
        finally:
            metrics.WORKERS.dec()
            # Without an await: this may be cancelled again.
            self._stop_taking()
            lost = list(self._leases.values())
            for lease in lost:
                self._lose(lease, alone=len(lost) == 1)
            logs.worker_gone(worker.name, pid=worker.pid, lost=len(lost), done=worker.done)
            for task in list(self._work):
                task.cancel()
            await asyncio.gather(*self._work, return_exceptions=True)

    def _log_in(self, login: Login) -> None:
        """Take the login that another node of this machine has checked. Raises BadFrame for one too many."""
        if not self._server.room_for(login):
            raise BadFrame("there are too many workers already")
        self.login, self._owner, self._pid = login, login.address, 0

    def _hello(self, frame: Frame) -> ConnectedWorker:
        if frame.kind != "hello" or frame.get("format", int) != frames.FORMAT:
            raise BadFrame(f"a worker of format {frame.fields.get('format')!r}; this node has {frames.FORMAT}")
        places, queues = frame.get("places", int), frame.get("queues", list)
        if not 0 < places <= MOST_PLACES:
            raise BadFrame(f"a worker with {places} places; it has 1 to {MOST_PLACES}")
        if self._owner:
            places = min(places, OWN_PLACES)
        taken = (own_queue(self._owner),) if self._owner else tuple(map(str, queues))
        name = storable(frame.get("name", str), MOST_NAME)
        logs.worker_connected(name, pid=self._pid, places=places, user=self._owner)
        return ConnectedWorker(name, self._pid, places, taken, time.time(), user=self._owner)

    def welcome(self) -> None:
        """Tell the worker the node's settings."""
        self._send("welcome", settings=self._server.settings(self._owner))

    def _send(self, kind: str, data: bytes = b"", /, **fields: Any) -> None:
        self._stream.write(frames.encode(kind, data, **fields))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _count(self, places: int) -> None:
        assert self.worker is not None
        for queue in self.worker.queues:
            self._server.broker.add_places(queue, places)

    # Tasks

    async def _take(self) -> None:
        """Take tasks as long as the worker has a place free."""
        worker = self.worker
        assert worker is not None
        while True:
            if worker.leased < worker.places:
                task = await self._server.broker.take(worker.queues)
                # Without an await in between: from here on the task ends in `_end` or `_lose`, whatever happens.
                lease = self._leases[task.token] = _Lease(task)
                worker.leased += 1
                self._start(self._hand_over(lease))
            else:
                self._room.clear()
                await self._room.wait()

    def _stop_taking(self) -> None:
        """Take no more. The places that are taken still count until their tasks have ended."""
        if self._taking is not None and not self._stopping:
            assert self.worker is not None
            self._taking.cancel()
            self._stopping = True
            self._count(self.worker.leased - self.worker.places)

    async def _hand_over(self, lease: _Lease) -> None:
        """Send a task to the worker, with its content if that is small."""
        task = lease.task
        try:
            given = task.content
            content = await self._server.read(given) if isinstance(given, Reference) else given
            lease.content = content
            lease.timer = asyncio.get_running_loop().call_later(task.deadline + BEHIND, self._overdue, lease)
            with suppress(OSError):  # it died; `run` sees that too
                await self._stream.drain()
            self._send("task", _encoded(task, content))
        except Temporary as error:
            self._end(lease, Deferral(f"the content cannot be read: {error}"))
        except Exception as error:
            self._end(lease, Deferral(f"the task could not be handed over: {in_words(classify(error))}"))

    def _overdue(self, lease: _Lease) -> None:
        """Answer for a worker that lives and does not. It keeps the place until it ends the lease."""
        if not lease.late:  # perhaps it was this process that stood still, and the answer waits to be read
            lease.late = True
            lease.timer = asyncio.get_running_loop().call_later(BEAT, self._overdue, lease)
        elif self.worker is not None:
            lease.told = True
            self._server.broker.answer(lease.task, Deferral(f"the worker {self.worker.name} did not answer in time"))

    def _end(self, lease: _Lease, result: PipelineResult | None = None) -> None:
        """End a lease with an answer, or without one."""
        if self._forget(lease):
            self._server.broker.end(lease.task, None if lease.told else result)

    def _give_back(self, lease: _Lease) -> None:
        """End a lease so that another worker gets the task."""
        if self._forget(lease):
            self._server.broker.put_back(lease.task)

    def _lose(self, lease: _Lease, *, alone: bool) -> None:
        """End a lease whose worker is gone."""
        if self._forget(lease):
            metrics.TASKS_LOST.inc()
            self._server.broker.lose(lease.task, self._why, alone=alone)

    def _forget(self, lease: _Lease) -> bool:
        """Free the place of a lease. Return whether it had one."""
        if self._leases.pop(lease.task.token, None) is None:
            return False
        if lease.timer is not None:
            lease.timer.cancel()
        assert self.worker is not None
        self.worker.leased -= 1
        if self._stopping:
            self._count(-1)
        self._room.set()
        return True

    # What the worker says

    def _heard(self, frame: Frame) -> None:
        """Act on a frame. Raises BadFrame."""
        match frame.kind:
            case "answer" | "back" | "discard" | "fetch" as kind:
                # A lease that has ended meanwhile is no fault of the worker.
                if (lease := self._leases.get(frame.get("token", str))) is not None:
                    self._about(lease, kind, frame)
            case "call":
                self._calls += 1
                if self._calls > (most := OWN_CALLS if self._owner else CALLS):
                    raise BadFrame(f"more than {most} calls at once")
                self._start(self._call(frame.get("id", int), frame.get("name", str), frame.get("arguments", dict)))
            case "ready":
                if self._taking is None:
                    assert self.worker is not None
                    self._count(self.worker.places)
                    self._taking = self._start(self._take())
            case "stop":
                self._stop_taking()
                if not self._said_stopped:  # once: perhaps nobody reads
                    self._said_stopped = True
                    self._send("stopped")
            case "pong":
                self._unanswered = 0
            case kind:
                raise BadFrame(f"a worker says no {kind!r:.100}")

    def _about(self, lease: _Lease, kind: str, frame: Frame) -> None:
        assert self.worker is not None
        match kind:
            case "answer":
                self.worker.done += 1
                self._end(lease, self._answer(lease.task, frame.data))
            case "back" if self._stopping or not self._owner:
                self._give_back(lease)
            case "discard" if not self._owner:
                self._end(lease)
            case "back" | "discard":
                self._end(lease, Deferral("its worker could not answer", why=LOST))
            case _:
                if lease.content is not None and not lease.fetching:
                    lease.fetching = True
                    self._start(self._send_content(lease, lease.content))

    def _answer(self, task: Task, data: bytes) -> PipelineResult:
        """Return the answer to a task. One that cannot be carried out is a deferral: it costs its own mail only."""
        try:
            answer = decode_answer(data, outside=bool(self._owner))
            if (answer.message, answer.n, answer.token) != (task.message, task.n, task.token):
                raise ValueError("it is for another task")
        except ValueError as error:
            metrics.ANSWERS_IGNORED.inc()
            return Deferral(storable(f"the answer of the worker cannot be used: {error}", MAX_REASON))
        # Who it is, the node knows better than the worker.
        return replace(answer.result, worker=self.worker.name) if self._owner and self.worker else answer.result

    async def _send_content(self, lease: _Lease, content: Content) -> None:
        """Send the content of a task in pieces, no faster than the worker reads."""
        token, pieces = lease.task.token, content.chunks()
        try:
            while piece := await asyncio.to_thread(next, pieces, b""):
                await self._stream.drain()
                self._send("content", piece, token=token, last=False)
            self._send("content", token=token, last=True)
        except OSError as error:
            self._send("content", token=token, failed=in_words(error))
        finally:
            lease.fetching = False

    async def _call(self, number: int, name: str, arguments: Mapping[str, Any]) -> None:
        try:
            try:
                answer = frames.encode("result", id=number, result=await self._asked(name, arguments))
            except (KeyError, TypeError, ValueError) as error:
                answer = frames.encode("result", id=number, **error_to_json(Refused(f"{name}: {error!r:.200}")))
            except Exception as error:
                answer = frames.encode("result", id=number, **error_to_json(error))
            await self._stream.drain()
            self._stream.write(answer)
        except ConnectionError:
            pass  # it died; `run` sees that too
        finally:
            self._calls -= 1

    async def _asked(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return the result of a call. Raises its errors, and Refused for one that workers like this may not make."""
        calls = self._server.calls(self._owner)
        if name not in calls:
            raise Refused(f"{name} is not for this worker")
        return await calls[name](arguments)

    async def _ping(self) -> None:
        """Disconnect a worker that is silent. Only pings count, so that a node that stood still blames nobody."""
        assert self.worker is not None
        beat, silent = (DISTANT_BEAT, DISTANT_SILENT) if self._owner else (BEAT, SILENT)
        while self._unanswered < silent:
            if self._stream.moves():
                self._unanswered = 0  # on a slow line the ping waits behind content
            self._unanswered += 1
            self._send("ping")
            await asyncio.sleep(beat)
        self._why = f"its worker was silent for {silent * beat:g} s"
        logs.worker_hung(self.worker.name, pid=self.worker.pid)
        if not self._owner:
            self._server.on_hung(self.worker.pid)
        self._stream.abort()


def _encoded(task: Task, content: Content) -> bytes:
    """Return a task with its content, or with a reference to content that the worker has to fetch."""
    if content.size <= frames.INLINE and (whole := content.whole()) is not None:
        return encode_task(replace(task, content=InMemory(whole)))
    return encode_task(replace(task, content=Reference(task.message, content.size, task.digest)))


def _peer(writer: asyncio.StreamWriter) -> int:
    """Return the number of the process at the other end (SO_PEERCRED of unix(7))."""
    line = writer.get_extra_info("socket")
    told = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(told)[0]
    return pid
