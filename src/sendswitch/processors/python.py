"""A user's own `async def process(mail, context)` in a file, run in a process of its own.

A process, because a loop without an await or an allocation without end must cost its own mail only: at the time
limit the process is killed, and the other messages it had are asked again in a fresh one. The process is started
with the first message, again when the file changes, and has none of our environment.

Speaks to `python_host` in lines: a JSON object, then as many bytes as it says.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import orjson
from pydantic import Field, field_validator

from sendswitch import logs
from sendswitch.errors import Temporary
from sendswitch.mail.content import InFile
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict, verdict_from_json
from sendswitch.processors import base

# Seconds a cancelled call may take to give up before its process is killed.
MERCY = 0.5
# One message that breaks the process must not take others along for ever.
ATTEMPTS = 3
MAX_ANSWER = 1024 * 1024


class PythonOptions(base.Options):
    """Options of `python`."""

    file: Path = Field(description="The file with `async def process(mail, context)`; absolute.")

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"{value} must be an absolute path")
        if not value.is_file():
            raise ValueError(f"{value} is not a file that can be read")
        try:
            compile(value.read_bytes(), str(value), "exec")
        except (SyntaxError, ValueError, OSError) as error:
            raise ValueError(f"{value} is not valid Python: {error}") from error
        return value


class UserCodeError(Temporary):
    """The user's program failed; its traceback is in the message's trace."""


class _Died(Exception):
    """The process ended while it had the message."""


class Python:
    """Asks the user's program."""

    Options: ClassVar[type[base.Options]] = PythonOptions

    def __init__(self, options: PythonOptions) -> None:
        self._file = options.file
        self._stamp = 0
        self.version = ""
        self._child: _Child | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """What the program answers. Raises UserCodeError with the line that failed."""
        for _ in range(ATTEMPTS):
            child = await self._running()
            try:
                answer = await child.ask(mail, context)
            except _Died:
                continue
            finally:
                if self._closed:
                    child.retire()  # the pipeline was replaced while this message was in it
            if "error" in answer:
                raise UserCodeError(str(answer["error"])[:2000])
            verdict = answer.get("verdict")
            return None if verdict is None else verdict_from_json(verdict)
        raise UserCodeError(f"{self._file.name}: the process ended {ATTEMPTS} times; its last words are in the log")

    async def close(self) -> None:
        """End the process once the messages it has are done."""
        self._closed = True
        if self._child is not None:
            self._child.retire()
            if self._child.idle:
                await self._child.gone()

    async def _running(self) -> _Child:
        async with self._starting:
            stamp = self._file.stat().st_mtime_ns
            if self._child is None or self._child.ended or stamp != self._stamp:
                if self._child is not None:
                    self._child.retire()
                self._stamp = stamp
                self.version = hashlib.sha256(self._file.read_bytes()).hexdigest()[:12]
                self._child = await _Child.start(self._file)
            return self._child


class _Child:
    """One process and the calls that wait for it."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process, self._name = process, name
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self._retired = False
        self._readers = (
            asyncio.ensure_future(self._read_answers()),
            asyncio.ensure_future(self._read_errors()),
        )

    @classmethod
    async def start(cls, file: Path) -> _Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sendswitch.processors.python_host",
            str(file),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            limit=MAX_ANSWER,
        )
        return cls(process, file.name)

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None or self._readers[0].done()

    async def ask(self, mail: Mail, context: base.Context) -> dict[str, Any]:
        self._next += 1
        number = self._next
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(number, mail, context)
            answer: dict[str, Any] = await future
            return answer
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(number))
            raise
        finally:
            self._calls.pop(number, None)
            if self._retired and not self._calls:
                self._signal(signal.SIGTERM)

    async def _send(self, number: int, mail: Mail, context: base.Context) -> None:
        content = mail.content
        path = str(content.path) if isinstance(content, InFile) else ""
        raw = b"" if path else mail.raw
        call = {
            "id": number,
            "path": path,
            "size": len(raw),
            "message": context.message,
            "recipient": context.recipient.address,
            "sender": context.sender,
            "client": {"address": context.client.address, "name": context.client.name, "helo": context.client.helo},
            "now": context.now,
            "attempt": context.attempt,
            "tags": context.tags,
            "rehearsal": context.rehearsal,
            "score": context.score,
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(orjson.dumps(call) + b"\n" + raw)
            await self._process.stdin.drain()
        except (OSError, RuntimeError) as error:
            raise _Died from error

    async def _cancel(self, number: int) -> None:
        """Ask the program to stop this call; a process that does not answer is stuck, and killed."""
        waiter = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(orjson.dumps({"cancel": number}) + b"\n")
            async with asyncio.timeout(MERCY):
                await waiter
        except (OSError, RuntimeError, TimeoutError, _Died):
            await self.kill()

    def retire(self) -> None:
        """Take no more calls; end after the last."""
        self._retired = True
        if not self._calls:
            self._signal(signal.SIGTERM)

    @property
    def idle(self) -> bool:
        """True when no call waits."""
        return not self._calls

    async def gone(self) -> None:
        """Wait until the process has ended; one that does not heed SIGTERM is killed."""
        try:
            async with asyncio.timeout(MERCY):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def kill(self) -> None:
        """End it now, with every process it started."""
        self._signal(signal.SIGKILL)
        await self._process.wait()
        for reader in self._readers:
            reader.cancel()
        self._fail_all()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _fail_all(self) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(_Died())

    async def _read_answers(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                answer = orjson.loads(line)
                future = self._calls.get(answer.get("id", 0))
                if future is not None and not future.done():
                    future.set_result(answer)
        except (ValueError, AttributeError) as error:
            logs.failed(f"reading answers of {self._name}", error=error)
            self._signal(signal.SIGKILL)
        finally:
            self._fail_all()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            text = chunk.decode("utf-8", "replace").rstrip()
            logs.processor_output("", processor=self._name, text=text)
