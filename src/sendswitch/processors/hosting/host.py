"""The process that a user's code runs in: reads calls on standard input, writes answers to standard output.

The first line names the code: an `async def process(mail, context)` in a file, or a package's processor with its
options. Text that the code prints goes to standard error, so that it is no answer by accident, and to the answer of the
call that printed it. Calls run side by side.
"""

from __future__ import annotations

import asyncio
import io
import os
import resource
import signal
import sys
import sysconfig
import traceback
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import orjson

from sendswitch.config.load import validate
from sendswitch.mail.content import Content, InFile, InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.mail.verdict_checks import checked
from sendswitch.processors import registry
from sendswitch.processors.base import Context, Processor, ServiceStep, with_present_names
from sendswitch.processors.hosting.supervise import close_others, ends_with
from sendswitch.processors.hosting.wire import context_from_json

Process = Callable[[Mail, Context], Awaitable[object]]
# Most processes and threads in a sandbox (root is not held to it).
MOST_PROCESSES = 256
# Characters kept of what one call prints.
MOST_PRINTED = 2000

_printed: ContextVar[list[str] | None] = ContextVar("printed", default=None)


class _Printing(io.TextIOBase):
    """Standard output and error: goes to the log, and to the call that printed it."""

    def write(self, text: str) -> int:
        os.write(2, text.encode("utf-8", "replace"))
        kept = _printed.get()
        if kept is not None and sum(map(len, kept)) < MOST_PRINTED:
            kept.append(text)
        return len(text)


def load(file: Path) -> Process:
    """Return the program's `process`. Raises whatever the file raises, or AttributeError."""
    namespace: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
    exec(compile(file.read_bytes(), str(file), "exec"), namespace)  # noqa: S102 - the user's own code
    process = namespace.get("process")
    if not asyncio.iscoroutinefunction(process):
        raise AttributeError(f"{file.name} has no `async def process(mail, context)`")
    made: Process = process
    return made


def make(name: str, options: dict[str, Any]) -> Process:
    """Return the answer of a package's processor. Raises its errors, and InvalidConfiguration."""
    kind = registry.find(name)
    made = with_present_names(kind(validate(kind.Options, options, name, {})))
    if isinstance(made, ServiceStep):

        async def asked(mail: Mail, context: Context) -> object:
            return made.evaluate(await made.query(mail, context), mail, context)

        return asked
    if isinstance(made, Processor):
        return made.process
    raise TypeError(f"{name} is no processor: it has neither `process` nor `query` and `evaluate`")


# Where code lies that its author did not write here.
_OTHERS = (sysconfig.get_path("stdlib"), str(Path(registry.__file__).parent.parent))


def explain(error: BaseException) -> str:
    """Return the error as its author understands it: type, text and the last line that is theirs."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_OTHERS, "<"))]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line}" if own else ""
    return f"{type(error).__name__}: {error}{where}"


class Host:
    """The runner of calls. It writes their answers."""

    def __init__(self, loading: Callable[[], Process], out: int) -> None:
        self._out = out
        self._process: Process | None = None
        self._broken = ""
        self._running: dict[int, asyncio.Task[None]] = {}
        try:
            self._process = loading()
        except (Exception, SystemExit) as error:
            self._broken = explain(error)

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Serve until standard input ends. Say first that the code is loaded."""
        self._say({})
        while line := await reader.readline():
            call = orjson.loads(line)
            if "ping" in call:
                self._say({})
                continue
            if "cancel" in call:
                self._cancel(call["cancel"])
                continue
            content: Content
            if call["path"]:
                path = Path(call["path"])
                content = InFile(path, path.stat().st_size)  # noqa: ASYNC240 - this process has nothing else to do
            else:
                content = InMemory(await reader.readexactly(call["size"]))
            self._running[call["id"]] = asyncio.create_task(self._run(call, content))

    async def _run(self, call: dict[str, Any], content: Content) -> None:
        context = context_from_json(call["context"])
        answer: dict[str, Any] = {"id": call["id"]}
        printed: list[str] = []
        _printed.set(printed)
        try:
            if self._process is None:
                answer["error"] = self._broken
            else:
                answer["verdict"] = _checked(await self._process(Mail(content), context))
        except Exception as error:
            answer["error"] = explain(error)
            if isinstance(error, MemoryError):
                answer["memory"] = True  # perhaps it was another call that took it
        if text := "".join(printed).strip():
            answer["printed"] = text[:MOST_PRINTED]
        self._running.pop(call["id"], None)
        self._say(answer)

    def _cancel(self, number: int) -> None:
        task = self._running.pop(number, None)
        if task is not None:
            task.cancel()
        self._say({"id": number, "cancelled": True})

    def _say(self, answer: dict[str, Any]) -> None:
        data = memoryview(orjson.dumps(answer, default=str) + b"\n")
        while data:
            data = data[os.write(self._out, data) :]


def _checked(verdict: object) -> dict[str, Any] | None:
    if verdict is None:
        return None
    if not isinstance(verdict, Verdict):
        raise TypeError(f"process() returned {type(verdict).__name__}; return a Verdict or None")
    return checked(verdict).to_json()


def _loading(code: dict[str, Any]) -> Callable[[], Process]:
    if code["kind"] == "file":
        return lambda: load(Path(code["what"]))
    return lambda: make(code["what"], code["options"])


async def _main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # print() goes to standard error
    sys.stdout = sys.stderr = _Printing()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await Host(_loading(orjson.loads(await reader.readline())), out).serve(reader)


if __name__ == "__main__":
    memory, boxed = int(sys.argv[1]), sys.argv[2] == "sandbox"
    # Or a program that never waits would run on without its parent, which in a sandbox is the first process.
    ends_with(1 if boxed else int(sys.argv[2]), signal.SIGKILL)
    close_others()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if boxed:  # where only its own processes count
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    asyncio.run(_main())
