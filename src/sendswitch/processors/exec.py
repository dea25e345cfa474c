"""A program of any language: the message on standard input, the envelope in its environment, the answer by exit status.

    0           no opinion, or the verdict it printed as JSON
    in `exits`  what is said there; 77 (EX_NOPERM) is `deny` unless told otherwise
    any other   a failure of the step: `on_error` decides

What it writes to standard error is kept with the step as what it saw. It runs from /, with nothing of our environment,
with limits to its memory, its processor time, its files and the number of its processes. When it ends, at the step's
`limit`, and when the node dies, every process that it started is killed (`supervise`). Without a sandbox it runs as the
node's user, who can do much: then let only people you trust set this step.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

import orjson
from pydantic import Field, field_validator

from sendswitch.config.units import Duration, Size
from sendswitch.errors import Temporary
from sendswitch.mail.message import Mail
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import Action, Verdict, parse_refusal
from sendswitch.mail.verdict_json import verdict_from_json
from sendswitch.processors import base
from sendswitch.processors.hosting import sandbox, supervise
from sendswitch.processors.services.connections import Nothing, SharedClient, pieces

# Bytes of an answer, and of what is kept of standard error: its end, where the reason is.
MOST_ANSWER, MOST_TOLD = 1024 * 1024, 800
# Seconds for what is on its way in pipes when the program has ended; seconds to end its processes in, before the one
# that does so is killed as well.
MERCY, PATIENCE = 0.5, 2 * supervise.PATIENCE

# Processes of the sandbox itself, and most bytes of what it says about the end of its program.
SANDBOX, MOST_STATUS = 2, 4096

Outcome = Literal["none", "pass", "tag", "deny", "quarantine"]


class ExecOptions(base.Options):
    """Options of `exec`."""

    command: tuple[str, ...] = Field(min_length=1, description="The program, as an absolute path, and its arguments.")
    exits: dict[str, Outcome] = Field(
        {"77": "deny"}, description="What exit statuses mean: none, pass, tag, deny or quarantine."
    )
    tag: base.Tag = Field("PROGRAM", description="The tag of the outcome `tag`.")
    reply: base.Refusal = Field(
        "550 5.7.1 Message refused by the recipient's filter", description="What a denied sender is told."
    )
    memory: Size = Field(512_000_000, ge=1_000_000, description="Most memory of a process, in bytes of address space.")
    cpu: Duration = Field(30.0, ge=1, description="Most processor time of a process.")
    files: Size = Field(100_000_000, description="Most bytes of a file it writes.")
    processes: int = Field(64, ge=1, le=10_000, description="Most processes that it has at once.")
    at_once: int = Field(
        4,
        ge=1,
        le=100,
        description="Most that run at once in a worker, for all pipelines with this command and number.",
    )

    @field_validator("command")
    @classmethod
    def _program(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        program = Path(value[0])
        if not program.is_absolute():
            raise ValueError(f"{program} must be an absolute path")
        if not (program.is_file() and os.access(program, os.X_OK)):
            raise ValueError(f"{program} is no program that can be run")
        if any("\0" in word for word in value):
            raise ValueError("an argument cannot have a NUL in it")
        return value

    @field_validator("exits")
    @classmethod
    def _statuses(cls, value: dict[str, Outcome]) -> dict[str, Outcome]:
        for status in value:
            if not status.isdecimal() or not 1 <= int(status) <= 255:
                raise ValueError(f"{status!r} is no exit status from 1 to 255")
        return value


class ProgramFailed(Temporary):
    """The program ended in a way that means nothing; its last words are in the message's trace."""


class Exec:
    """The step that runs a program."""

    Options: ClassVar[type[base.Options]] = ExecOptions
    version = "1"

    def __init__(self, options: ExecOptions) -> None:
        self._options = options
        self._shared = SharedClient(Nothing, options.at_once, Exec, options.command)
        self._sandbox = False

    def setup(self, services: base.Services) -> None:
        """Take what the site wants for user code."""
        self._sandbox = services.sandbox

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the verdict of its exit status or of its JSON. Raises ProgramFailed with the end of standard error."""
        async with self._shared.use():
            status, said, told = await self._run(mail, context)
        if status == 0:
            return _printed(said, told)
        outcome = self._options.exits.get(str(status))
        if outcome is None:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise ProgramFailed(f"{self._options.command[0]} {how}{': ' * bool(told)}{told}")
        return self._verdict(outcome, told or f"{self._options.command[0]} ended with status {status}")

    def _verdict(self, outcome: Outcome, reason: str) -> Verdict:
        match outcome:
            case "pass":
                return Verdict.passed(reason)
            case "tag":
                return Verdict.tagged(self._options.tag, reason=reason)
            case "deny":
                return Verdict(Action.DENY, reason=reason, reply=parse_refusal(self._options.reply))
            case "quarantine":
                return Verdict.quarantine(reason)
        return Verdict(reason=reason)

    async def _run(self, mail: Mail, context: base.Context) -> tuple[int, bytes, str]:
        """Return the exit status, the standard output, and the end of standard error."""
        options = self._options
        if self._sandbox:
            return await self._run_in_sandbox(mail, context)
        return await self._run_command(mail, context, options.command, options.processes)

    async def _run_in_sandbox(self, mail: Mail, context: base.Context) -> tuple[int, bytes, str]:
        """Return the same of a program in a sandbox. Raises ProgramFailed where the sandbox failed, NoSandbox."""
        command, ours, theirs = self._options.command, *os.pipe()
        try:
            readable = sandbox.for_file(Path(command[0]))
            line = await asyncio.to_thread(sandbox.wrapped, command, readable, theirs)
            _, said, told = await self._run_command(mail, context, line, self._options.processes + SANDBOX, theirs)
            os.set_blocking(ours, False)
            with suppress(BlockingIOError):  # nothing was said
                if (status := sandbox.ended_with(os.read(ours, MOST_STATUS))) is not None:
                    return status, said, told
            raise ProgramFailed(f"{command[0]} was not run to its end in the sandbox{': ' * bool(told)}{told}")
        finally:
            os.close(ours)
            os.close(theirs)

    async def _run_command(
        self, mail: Mail, context: base.Context, command: Sequence[str], processes: int, file: int = 0
    ) -> tuple[int, bytes, str]:
        """Return the exit status of a command, what it said, and the end of standard error. It gets the open `file`."""
        options = self._options
        limits = (os.getpid(), options.memory, round(options.cpu), options.files, processes, file)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", supervise.__file__, *map(str, limits), *command),
            pass_fds=(file,) if file else (),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=_environment(mail, context),
            cwd="/",
            start_new_session=True,
        )
        said, told = _Kept(MOST_ANSWER + 1), _Kept(MOST_TOLD, end=True)
        talking = [
            asyncio.create_task(work)
            for work in (_feed(process, mail), said.read(process.stdout), told.read(process.stderr))
        ]
        try:
            status = await process.wait()
            await asyncio.wait(talking, timeout=MERCY)
        finally:
            await _finished(_end(process, talking))
        return status, bytes(said.data), _words(bytes(told.data))

    async def close(self) -> None:
        """Release the places."""
        await self._shared.release()


def _printed(said: bytes, told: str) -> Verdict | None:
    if len(said) > MOST_ANSWER:
        raise ProgramFailed(f"it printed more than {MOST_ANSWER} bytes")
    if not said.strip():
        return Verdict(reason=told) if told else None
    try:
        answer = orjson.loads(said)
        return verdict_from_json(answer, outside=True) if answer else None
    except (ValueError, TypeError, AttributeError) as error:
        raise ProgramFailed(f"it printed what is no verdict: {error}: {said[:100]!r}") from error


def _environment(mail: Mail, context: base.Context) -> dict[str, str]:
    """Return the environment of the program. Names are those of Postfix's local(8) where it has one."""
    client, recipient = context.client, context.recipient.address
    local, _, domain = recipient.rpartition("@")
    known = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "SENDER": context.sender,
        "RECIPIENT": recipient,
        "LOCAL": local,
        "DOMAIN": domain,
        "CLIENT_ADDRESS": client.address,
        "CLIENT_HOSTNAME": client.name,
        "CLIENT_HELO": client.helo,
        "CLIENT_PROTOCOL": client.protocol,
        "QUEUE_ID": client.ident,
        "LOGIN": client.login,
        "MESSAGE": context.message,
        "SIZE": str(mail.size),
        "ATTEMPT": str(context.attempt),
        "TAGS": " ".join(context.tags),
        "SCORE": "" if context.score is None else f"{context.score:g}",
        "REHEARSAL": "1" if context.rehearsal else "",
    }
    return {name: value.replace("\0", "").encode("utf-8", "replace").decode() for name, value in known.items()}


async def _feed(process: Process, mail: Mail) -> None:
    """Write the message to standard input. A program need not read it to its end."""
    assert process.stdin is not None
    with suppress(ConnectionError, RuntimeError):
        async for piece in pieces(mail.content):
            process.stdin.write(piece)
            await process.stdin.drain()
    with suppress(ConnectionError, RuntimeError):
        process.stdin.close()
        await process.stdin.wait_closed()  # whose error would be logged by asyncio when nobody asks for it


class _Kept:
    """The first or last `most` bytes of a stream, which is read to its end so that its writer never waits."""

    def __init__(self, most: int, *, end: bool = False) -> None:
        self.data = bytearray()
        self._most, self._end = most, end

    async def read(self, stream: asyncio.StreamReader | None) -> None:
        """Read to the end of the stream."""
        assert stream is not None
        while piece := await stream.read(65536):
            self.data += piece
            if len(self.data) > self._most:
                del self.data[slice(None, -self._most) if self._end else slice(self._most, None)]


def _words(told: bytes) -> str:
    return " ".join(storable(told.decode("utf-8", "replace"), MOST_TOLD).split())


async def _end(process: Process, talking: Sequence[asyncio.Task[None]]) -> None:
    """End the program, its descendants, its supervisor, and the tasks that talk to it."""
    for task in talking:
        task.cancel()
    await asyncio.wait(talking)
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), PATIENCE)
    except TimeoutError:
        if process.returncode is None:  # the supervisor was stopped; its pid is not reused before it is reaped
            await asyncio.to_thread(_kill, process.pid)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), MERCY)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # a program may have killed its supervisor
    # asyncio waits for the other ends of the pipes, which a process that cannot be killed may hold.
    process._transport.close()  # type: ignore[attr-defined]
    await asyncio.sleep(0)


def _kill(pid: int) -> None:
    """Kill a supervisor that does not react, and its descendants."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # so that it reaps none of them and they stay below it
        supervise.kill_below(pid)
        supervise.kill_below(pid)
        os.kill(pid, signal.SIGKILL)


async def _finished(work: Coroutine[None, None, None]) -> None:
    """Run `work` to its end. Raises CancelledError afterwards if this task was cancelled meanwhile."""
    task, cancelled = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
