"""A worker's end of its connection to a node in another process: frames over any stream.

The connection is made again for ever. The leases of the old one have ended then: their answers go nowhere, and the node
offers the tasks again.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sendswitch import logs
from sendswitch.broker import frames
from sendswitch.broker.calls import error_from_json
from sendswitch.broker.codec import decode_task, encode_answer
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.pieces import Pieces
from sendswitch.broker.streams import Stream
from sendswitch.errors import Refused, Temporary, in_words
from sendswitch.mail.content import Content
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import PipelineResult

Connect = Callable[[], Awaitable[Stream]]
"""Opens a stream to the node. Raises OSError; Refused when the node does not want this worker."""

OnSettings = Callable[[str, Mapping[str, Any] | None], Awaitable[None]]
"""Called with the name of a node and its settings, before its first task and when they change; None: it is gone."""

# Seconds in which the node must answer a stop, and read the last frames.
PATIENCE = 5.0
# Seconds before the node is called again: first and at most; each is drawn at random below twice the last one.
FIRST_RETRY, LAST_RETRY = 0.1, 30.0


class Disconnected(Temporary):
    """The connection to the node ended; the node offers its tasks again."""


class RemoteConsumer:
    """A worker's side of a broker behind a stream (`base.TaskConsumer`).

    `places` is how many tasks the node may hand over at once. With `once`, `gone` is set when the node goes, and it is
    not called again. It is set too when the node refuses this worker before the first task; `refused` says why. Where
    there are several nodes, `node` is the name of this one, and all put their tasks into one queue, `ready`; one that
    comes after the first (`beside`) is called for ever.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        name: str,
        places: int,
        queues: tuple[str, ...],
        on_settings: OnSettings,
        once: bool = False,
        node: str = "",
        ready: asyncio.Queue[RemoteLease] | None = None,
        beside: bool = False,
    ) -> None:
        self._connect, self._name, self._places, self._queues = connect, name, places, queues
        self._on_settings, self._once, self._node = on_settings, once, node
        self.gone = asyncio.Event()
        self.refused = ""
        self._worked = beside
        self._link: _Link | None = None
        self._stopping = False
        self._shared = ready is not None
        self._ready: asyncio.Queue[RemoteLease] = asyncio.Queue() if ready is None else ready
        self._keeping: asyncio.Task[None] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="sendswitch-work-")

    async def open(self) -> None:
        """Begin to connect. Never raises: the node may start later."""
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def lease(self, queues: tuple[str, ...]) -> RemoteLease:
        """Wait for a task; the node knows the queues from `hello`. Raises asyncio.CancelledError only."""
        while (lease := await self._ready.get()).ended:
            pass  # it came over a connection that is gone
        return lease

    async def call(self, node: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return the result of a call to the node. Raises Temporary without a connection, and the call's errors."""
        if self._link is None:
            raise Disconnected
        return await self._link.call(name, arguments)

    async def stop_taking(self) -> None:
        """Want no more tasks; those that wait here go back, but not from a queue that other nodes share."""
        self._stopping = True
        if self._link is not None:
            await self._link.stop()
        if not self._shared:
            await give_back(self._ready)

    async def close(self) -> None:
        """Give back every task that has no answer, and disconnect when the node has read that."""
        await self.stop_taking()
        if self._link is not None:
            await self._link.finish()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._folder.cleanup()

    async def _keep(self) -> None:
        """Stay connected. Never returns, except with `once`."""
        pause = FIRST_RETRY
        while True:
            why = "the connection ended"
            try:
                stream = await self._connect()
                if self._stopping:
                    stream.abort()
                    self.gone.set()
                    return
                link = self._link = _Link(stream, self._ready, Path(self._folder.name), self._on_settings, self._node)
                try:
                    link.send("hello", format=frames.FORMAT, name=self._name, places=self._places, queues=self._queues)
                    await link.run()
                finally:
                    self._link = None
                    link.end()
                    if link.worked:
                        pause, self._worked = FIRST_RETRY, True
            except Refused as error:
                why, pause = str(error), LAST_RETRY  # the key may be given back, but not in a second
                if not self._worked:
                    self.refused = why
                    self.gone.set()
                    return
            except Exception as error:  # a library for connections has many, and none may end this
                why = in_words(error) or type(error).__name__
            if self._once or self._stopping:
                self.gone.set()
                return
            logs.node_away(error=why, retry_in=pause)
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - so that workers do not come all at once
            pause = min(pause * 2, LAST_RETRY)


async def give_back(ready: asyncio.Queue[RemoteLease]) -> None:
    """Give back the tasks that wait in a queue."""
    while not ready.empty():
        await ready.get_nowait().give_back()


class RemoteLease:
    """A task that this worker has from a node in another process."""

    __slots__ = ("_link", "ended", "node", "task")

    def __init__(self, link: _Link, task: Task) -> None:
        self._link, self.task, self.ended, self.node = link, task, False, link.node

    async def content(self) -> Content:
        """Return the task's content. Raises Temporary when it cannot be read."""
        content = self.task.content
        return await self._link.fetch(self.task) if isinstance(content, Reference) else content

    async def answer(self, result: PipelineResult) -> None:
        """Send the answer. Without a connection it goes nowhere. Raises ValueError for one that cannot be sent."""
        task = self.task
        answer = encode_answer(Answer(task.message, task.n, task.token, result))
        if self._end():
            await self._link.post("answer", answer, token=task.token)

    async def give_back(self) -> None:
        """Return the task to its queue."""
        if self._end():
            await self._link.post("back", token=self.task.token)

    async def discard(self) -> None:
        """End the lease without an answer."""
        if self._end():
            await self._link.post("discard", token=self.task.token)

    def _end(self) -> bool:
        if self.ended:
            return False
        self.ended = True
        self._link.leases.pop(self.task.token, None)
        return True


class _Link:
    """One connection to the node."""

    def __init__(
        self,
        stream: Stream,
        ready: asyncio.Queue[RemoteLease],
        folder: Path,
        on_settings: OnSettings,
        node: str,
    ) -> None:
        self._stream, self._ready, self._folder = stream, ready, folder
        self._on_settings, self.node = on_settings, node
        self.leases: dict[str, RemoteLease] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._fetched: dict[str, _Fetched] = {}
        self._number = 0
        self._settings: asyncio.Task[None] | None = None
        self._waiting: list[RemoteLease] = []  # tasks that came before new settings were taken
        self._stopping = False
        self._stopped, self._ended = asyncio.Event(), asyncio.Event()
        self.worked = False  # the first settings were taken

    async def run(self) -> None:
        """Read until the node goes. Raises BadFrame, OSError."""
        while (frame := await self._stream.read()) is not None:
            match frame.kind:
                case "task":
                    self._leased(frame)
                case "content":
                    self._piece(frame)
                case "result":
                    self._result(frame)
                case "welcome":
                    self._take_settings(frame)
                case "ping":
                    self.send("pong")
                case "stopped":
                    self._stopped.set()
                case kind:
                    raise BadFrame(f"a node says no {kind!r:.100}")

    def send(self, kind: str, data: bytes = b"", /, **fields: Any) -> None:
        """Send a frame, if the node is there to read it."""
        self._stream.write(frames.encode(kind, data, **fields))

    async def post(self, kind: str, data: bytes = b"", /, **fields: Any) -> None:
        """Send a frame, no faster than the node reads."""
        with suppress(OSError):
            self.send(kind, data, **fields)
            await self._stream.drain()

    async def stop(self) -> None:
        """Want no more tasks; give back those that wait for settings. On return no task comes any more."""
        if self._stopping:
            return
        self._stopping = True
        self.send("stop")
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait(
                    {asyncio.ensure_future(event.wait()) for event in (self._stopped, self._ended)},
                    return_when=asyncio.FIRST_COMPLETED,
                )
        while self._waiting:
            await self._waiting.pop().give_back()

    async def finish(self) -> None:
        """Give back what has no answer, and wait until the node has read that."""
        for lease in list(self.leases.values()):
            await lease.give_back()
        with suppress(OSError, RuntimeError, TimeoutError):
            self._stream.finish()
            async with asyncio.timeout(PATIENCE):
                await self._ended.wait()

    def end(self) -> None:
        """End every lease, call and fetch: the connection is gone."""
        self._ended.set()
        for lease in self.leases.values():
            lease.ended = True
        self.leases.clear()
        for future in (*self._calls.values(), *(one.done for one in self._fetched.values())):
            if not future.done():
                future.set_exception(Disconnected())
        if self._settings is not None:
            self._settings.cancel()
        self._stream.abort()

    # Settings

    def _take_settings(self, frame: Frame) -> None:
        """Take the node's settings; tasks that come meanwhile wait for that."""
        before = self._settings
        self._settings = asyncio.get_running_loop().create_task(self._apply(frame.get("settings", dict), before))

    async def _apply(self, settings: Mapping[str, Any], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._on_settings(self.node, settings)
        except Exception as error:
            logs.failed("taking the node's settings", error=error)
            if before is None:  # without any there is nothing to work with
                self._stream.abort()
                return
        if before is None:
            self.worked = True
            self.send("ready")
        if self._settings is asyncio.current_task():
            while self._waiting:
                self._ready.put_nowait(self._waiting.pop(0))

    # Tasks

    def _leased(self, frame: Frame) -> None:
        try:
            task = decode_task(frame.data)
        except ValueError as error:
            raise BadFrame(str(error)) from error
        lease = self.leases[task.token] = RemoteLease(self, task)
        if self._stopping:
            self.leases.pop(task.token)
            lease.ended = True
            self.send("back", token=task.token)
        elif self._settings is not None and self._settings.done():
            self._ready.put_nowait(lease)
        else:
            self._waiting.append(lease)

    async def fetch(self, task: Task) -> Content:
        """Return content that did not come with its task. Raises Temporary."""
        if task.token not in self.leases:
            raise Disconnected
        fetched = self._fetched[task.token] = _Fetched(self._folder, task.content.size)
        try:
            self.send("fetch", token=task.token)
            await fetched.done
            return fetched.pieces.content()
        finally:
            fetched.pieces.drop()
            self._fetched.pop(task.token, None)

    def _piece(self, frame: Frame) -> None:
        if (fetched := self._fetched.get(frame.get("token", str))) is None:
            return
        if "failed" in frame.fields:
            fetched.fail(Temporary(str(frame.fields["failed"])))
        else:
            fetched.add(frame.data, last=frame.get("last", bool))

    # Calls

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return the result of a call. Raises Disconnected, and the call's errors."""
        self._number += 1
        number = self._number
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            await self.post("call", id=number, name=name, arguments=dict(arguments))
            return await future
        finally:
            del self._calls[number]

    def _result(self, frame: Frame) -> None:
        future = self._calls.get(frame.get("id", int))
        if future is None or future.done():
            return
        if "error" in frame.fields:
            future.set_exception(error_from_json(frame.fields))
        else:
            future.set_result(frame.fields.get("result"))


class _Fetched:
    """Content on its way, and the future that is done with its last piece."""

    def __init__(self, folder: Path, size: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pieces = Pieces(folder, size)

    def add(self, piece: bytes, *, last: bool) -> None:
        """Add a piece."""
        if self.done.done():
            return
        try:
            self.pieces.add(piece)
        except Temporary as error:
            self.fail(error)
        except OSError as error:
            self.fail(Temporary(in_words(error)))
        else:
            if last:
                self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Give up."""
        if not self.done.done():
            self.done.set_exception(error)
