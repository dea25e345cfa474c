"""A process in which a user's code runs, and the calls that wait for it.

In a process a loop without an await, or an allocation without end, costs its own mail only: at the time limit the
process is killed, and its other messages are offered again in a new one. The process has none of our environment, and a
limit to its memory.

The protocol with `host` is lines: a JSON object, then as many bytes as it says.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from sendswitch import logs
from sendswitch.errors import Temporary
from sendswitch.mail.content import InFile, read_all
from sendswitch.mail.message import Mail
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import Verdict
from sendswitch.mail.verdict_json import verdict_from_json
from sendswitch.processors import base
from sendswitch.processors.hosting.sandbox import for_python, wrapped
from sendswitch.processors.hosting.wire import context_to_json

# Seconds a cancelled call may take to give up before its process is killed.
MERCY = 0.5
# One message that breaks the process must not take others along for ever.
ATTEMPTS = 3
MAX_ANSWER = 1024 * 1024
# Seconds in which a process must show that it still listens, and how often not before its code is known to block.
BEAT, HUNG = 1.0, 3
# Messages of one step that are each in a process of their own at once.
ALONE = 4
# Bytes of address space.
MEMORY = 512_000_000
# Large messages in the sandboxes of one step at once: each is in memory meanwhile.
LARGE = 2
# Answers that nobody asked for before a process is ended, and bytes of what it prints that are logged in a second.
UNASKED, LOGGED = 1000, 65536
# Characters kept of what a process said last.
LAST_WORDS = 500


@dataclass(frozen=True, slots=True)
class Code:
    """The code to run: an `async def process` in a file, or a package's processor with its options. It goes to standard
    input, because every user of the machine can read a command line. In a sandbox it can read what `places` returns,
    which may raise NoSandbox.
    """

    kind: Literal["file", "processor"]
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    places: Callable[[], tuple[Path, ...]] = tuple


class UserCodeError(Temporary):
    """The user's program failed; its traceback is in the message's trace."""


class Died(Exception):
    """The process ended while it had the message."""


class Hosting:
    """The process of one step: started with the first message, and again when `stamp` returns another value.

    Many messages share it. When it dies, hangs or runs out of memory, the fault may be any message's: each is offered
    again in a process of its own, where only its own fault can stop it.
    """

    def __init__(self, name: str, code: Code, memory: int, stamp: Callable[[], object]) -> None:
        self.name, self._code, self._memory, self._stamp = name, code, memory, stamp
        self.sandbox = False
        self._large = asyncio.Semaphore(LARGE)
        self._started_for: object = None
        self._child: Child | None = None
        self._starting = asyncio.Lock()
        self._alone = asyncio.Semaphore(ALONE)
        self._hung = 0
        self._closed = False

    async def ask(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the code's answer. Raises UserCodeError with the line that failed."""
        last = ""
        for attempt in range(ATTEMPTS):
            # Code that does nothing but block is not asked together with others again and again.
            together = attempt == 0 and self._hung < HUNG
            try:
                answer = await (self._together(mail, context) if together else self._by_itself(mail, context))
            except Died as error:
                last = str(error)
                if not together:
                    context.broke.append(self.name)
                continue
            if together and "memory" in answer:
                continue
            return self._read(answer, context)
        raise UserCodeError(f"{self.name}: the process ended {ATTEMPTS} times{'; it said last: ' * bool(last)}{last}")

    async def _together(self, mail: Mail, context: base.Context) -> dict[str, Any]:
        child = await self._running()
        try:
            answer = await child.ask(mail, context)
        except Died as error:
            self._hung += child.hung
            child.hung = False
            raise Died(child.last_words) from error
        finally:
            if self._closed:
                child.retire()  # the pipeline was replaced while this message was in it
        if "memory" in answer:
            await child.kill()  # what filled it is still in it
        return answer

    async def _by_itself(self, mail: Mail, context: base.Context) -> dict[str, Any]:
        async with self._alone:
            child = await self._start(watched=False)
            try:
                return await child.ask(mail, context)
            except Died as error:
                raise Died(child.last_words) from error
            finally:
                await child.kill()

    def _read(self, answer: dict[str, Any], context: base.Context) -> Verdict | None:
        if printed := str(answer.get("printed", "")):
            context.notes.append(f"it printed: {storable(printed, LAST_WORDS)}")
        if "error" in answer:
            raise UserCodeError(str(answer["error"])[:2000])
        verdict = answer.get("verdict")
        return None if verdict is None else verdict_from_json(verdict, outside=True)

    async def close(self) -> None:
        """End the process once the messages it has are done."""
        self._closed = True
        if self._child is not None:
            self._child.retire()
            if self._child.idle:
                await self._child.gone()

    async def _running(self) -> Child:
        async with self._starting:
            stamp = self._stamp()
            if stamp != self._started_for:
                self._hung = 0
            if self._child is None or self._child.ended or stamp != self._started_for:
                if self._child is not None:
                    self._child.retire()
                self._started_for = stamp
                self._child = await self._start(watched=True)
            return self._child

    async def _start(self, *, watched: bool) -> Child:
        """Start a process. Raises NoSandbox."""
        large = self._large if self.sandbox else None
        return await Child.start(self.name, self._code, self._memory, watched=watched, large=large)


def environment() -> dict[str, str]:
    """Return an environment with nothing of ours but where packages are that are not in Python's own places."""
    beside = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    known = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    return known | ({"PYTHONPATH": os.pathsep.join(beside)} if beside else {})


class Child:
    """One process and the calls that wait for it."""

    def __init__(
        self, process: asyncio.subprocess.Process, name: str, *, watched: bool, large: asyncio.Semaphore | None
    ) -> None:
        self._process, self._name, self._large = process, name, large
        self._stray, self._pings = 0, 1
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._retired = self.hung = False
        self._going: asyncio.Future[None] | None = None
        self.last_words = ""
        self._alive, self._busy = asyncio.Event(), asyncio.Event()
        self._readers = [asyncio.ensure_future(self._read_answers()), asyncio.ensure_future(self._read_errors())]
        if watched:
            self._readers.append(asyncio.ensure_future(self._watch()))

    @classmethod
    async def start(
        cls, name: str, code: Code, memory: int, *, watched: bool, large: asyncio.Semaphore | None
    ) -> Child:
        """Start it, in a sandbox where there is a `large`, which limits the large messages in it. One that is `watched`
        is killed when it does not listen any more. Raises NoSandbox.
        """
        words = [sys.executable, "-m", "sendswitch.processors.hosting.host", str(memory)]
        if large is None:
            words.append(str(os.getpid()))
        else:
            words = await asyncio.to_thread(lambda: wrapped([*words, "sandbox"], (*for_python(), *code.places())))
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            start_new_session=True,
            limit=MAX_ANSWER,
        )
        child = cls(process, name, watched=watched, large=large)
        assert process.stdin is not None
        process.stdin.write(orjson.dumps({"kind": code.kind, "what": code.what, "options": code.options}) + b"\n")
        return child

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None or self._readers[0].done()

    async def ask(self, mail: Mail, context: base.Context) -> dict[str, Any]:
        if self._large is None or not isinstance(mail.content, InFile):
            return await self._ask(mail, context)
        async with self._large:  # which is in its memory until it is answered
            return await self._ask(mail, context)

    async def _ask(self, mail: Mail, context: base.Context) -> dict[str, Any]:
        self._next += 1
        number = self._next
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        self._busy.set()
        try:
            await self._send(number, mail, context)
            answer: dict[str, Any] = await future
            return answer
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(number, context))
            raise
        finally:
            self._calls.pop(number, None)
            if self._retired and not self._calls:
                self._go()

    async def _send(self, number: int, mail: Mail, context: base.Context) -> None:
        content = mail.content
        if not isinstance(content, InFile):
            await self._write(number, context, raw=mail.raw)
        elif self._large is None:
            await self._write(number, context, path=str(content.path))
        else:  # it sees no file of ours
            await self._write(number, context, raw=await asyncio.to_thread(read_all, content))

    async def _write(self, number: int, context: base.Context, *, path: str = "", raw: bytes = b"") -> None:
        """Write a call at once, so that it is whole whenever this is cancelled. Raises Died."""
        call = {"id": number, "path": path, "size": len(raw), "context": context_to_json(context)}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(orjson.dumps(call) + b"\n" + raw)
            await self._process.stdin.drain()
        except (OSError, RuntimeError) as error:
            raise Died from error

    async def _cancel(self, number: int, context: base.Context) -> None:
        """Ask the program to stop this call; a process that does not answer is stuck, and killed."""
        waiter = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(orjson.dumps({"cancel": number}) + b"\n")
            async with asyncio.timeout(MERCY):
                await waiter
        except (OSError, RuntimeError, TimeoutError, Died):
            context.broke.append(self._name)
            await self.kill()

    def retire(self) -> None:
        """Take no more calls; end after the last."""
        self._retired = True
        if not self._calls:
            self._go()

    def _go(self) -> None:
        """End the process in the background. SIGKILL follows a SIGTERM without effect."""
        if self._going is None:
            self._going = asyncio.ensure_future(self._end())

    @property
    def idle(self) -> bool:
        """Return whether no call waits."""
        return not self._calls

    async def gone(self) -> None:
        """Wait until a retired process has ended, which takes MERCY at most."""
        if self._going is not None:
            await self._going

    async def _end(self) -> None:
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(MERCY):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        await self._close()

    async def kill(self) -> None:
        """End it now, with every process it started."""
        self._signal(signal.SIGKILL)
        await self._process.wait()
        await self._close()
        self._fail_all()

    async def _close(self) -> None:
        """Close our ends of its pipes: a process that left the group may hold the others for ever."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._process._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    def _signal(self, number: signal.Signals) -> None:
        # When it has ended its number may be somebody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _fail_all(self) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(Died())

    async def _read_answers(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                answer = orjson.loads(line)
                self._alive.set()
                future = self._calls.get(answer.get("id", 0))
                if future is not None and not future.done():
                    future.set_result(answer)
                else:
                    await self._said_unasked()
        except (ValueError, AttributeError) as error:
            logs.failed(f"reading answers of {self._name}", error=error)
            self._signal(signal.SIGKILL)
        finally:
            self._fail_all()

    async def _said_unasked(self) -> None:
        """Count an answer to no call: to a ping, or too late. Raises ValueError for a process that says too much."""
        self._stray += 1
        if self._stray > self._pings + UNASKED:
            raise ValueError("it answers what nobody asked")
        await asyncio.sleep(0)

    async def _watch(self) -> None:
        """Kill it when it says nothing for a while although it was asked to: code that blocks, blocks all its calls."""
        await self._alive.wait()  # it has loaded the code, which may take its time
        assert self._process.stdin is not None
        with suppress(OSError, RuntimeError):
            while True:
                await self._busy.wait()
                self._busy.clear()
                while self._calls:
                    self._alive.clear()
                    self._pings += 1
                    self._process.stdin.write(b'{"ping": 1}\n')
                    try:
                        async with asyncio.timeout(BEAT):
                            await self._alive.wait()
                    except TimeoutError:
                        self.hung = True
                        self._signal(signal.SIGKILL)
                        return
                    await asyncio.sleep(BEAT / 2)

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        second, told = 0, 0
        while chunk := await self._process.stderr.read(4096):
            text = chunk.decode("utf-8", "replace").rstrip()
            self.last_words = " ".join(storable((self.last_words + text)[-LAST_WORDS:], LAST_WORDS).split())
            if (now := int(time.monotonic())) != second:
                second, told = now, 0
            if told < LOGGED:  # what it prints without end would fill the disk
                logs.processor_output("", processor=self._name, text=text)
            told += len(chunk)
