"""The process a user's program runs in: reads calls on standard input, writes answers to standard output.

What the program prints goes to standard error, so that it cannot answer by accident. Calls run side by side.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import orjson

from sendswitch.mail.content import Content, InFile, InMemory
from sendswitch.mail.envelope import Client, Recipient
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict, checked
from sendswitch.processors.base import Context


def load(file: Path) -> Any:
    """The program's `process`. Raises whatever the file raises, or AttributeError."""
    namespace: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
    exec(compile(file.read_bytes(), str(file), "exec"), namespace)  # noqa: S102 - the user's own code
    process = namespace.get("process")
    if not asyncio.iscoroutinefunction(process):
        raise AttributeError(f"{file.name} has no `async def process(mail, context)`")
    return process


def explain(error: BaseException, file: Path) -> str:
    """The error as its author understands it: type, text and the line of their file."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f" at {file.name}:{lines[-1].lineno}: {lines[-1].line}" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


class Host:
    """Runs calls and writes their answers."""

    def __init__(self, file: Path, out: int) -> None:
        self._file, self._out = file, out
        self._process: Any = None
        self._broken = ""
        self._running: dict[int, asyncio.Task[None]] = {}
        try:
            self._process = load(file)
        except Exception as error:
            self._broken = explain(error, file)

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until standard input ends."""
        while line := await reader.readline():
            call = orjson.loads(line)
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
        context = Context(
            message=call["message"],
            recipient=Recipient(call["recipient"]),
            sender=call["sender"],
            client=Client(**call["client"]),
            now=call["now"],
            attempt=call["attempt"],
            tags=tuple(call["tags"]),
            rehearsal=call["rehearsal"],
            score=call["score"],
        )
        answer: dict[str, Any] = {"id": call["id"]}
        try:
            if self._broken:
                answer["error"] = self._broken
            else:
                verdict = await self._process(Mail(content), context)
                answer["verdict"] = _checked(verdict)
        except Exception as error:
            answer["error"] = explain(error, self._file)
        self._running.pop(call["id"], None)
        self._say(answer)

    def _cancel(self, number: int) -> None:
        task = self._running.pop(number, None)
        if task is not None:
            task.cancel()
        self._say({"id": number, "cancelled": True})

    def _say(self, answer: dict[str, Any]) -> None:
        data = memoryview(orjson.dumps(answer) + b"\n")
        while data:
            data = data[os.write(self._out, data) :]


def _checked(verdict: object) -> dict[str, Any] | None:
    if verdict is None:
        return None
    if not isinstance(verdict, Verdict):
        raise TypeError(f"process() returned {type(verdict).__name__}; return a Verdict or None")
    return checked(verdict).to_json()


async def _main(file: Path) -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # print() goes to standard error
    sys.stdout = sys.stderr
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await Host(file, out).serve(reader)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asyncio.run(_main(Path(sys.argv[1])))
