"""A node's answers to the calls of workers that speak over RabbitMQ, and the limits to what they may ask."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from sendswitch.broker import frames
from sendswitch.broker.calls import CallsOf, SettingsOf, error_to_json
from sendswitch.broker.frames import BadFrame, Frame
from sendswitch.broker.rabbitmq.topology import SITE, owner_of
from sendswitch.broker.worker_server import OWN_CALLS
from sendswitch.errors import Refused, Temporary, in_words
from sendswitch.mail.content import Content
from sendswitch.mail.task import Task

# Bytes of content in the answer to one call, and most bytes of an answer; RabbitMQ 4 takes 16 MiB.
PIECE, MOST = 512 * 1024, 12 * 1024 * 1024
# Calls of the site's workers under way.
CALLS = 1_000
# Bytes of answers for one user's workers in one period, because RabbitMQ keeps what they do not read. More wait.
OWN_PERIOD = 32 * 1024 * 1024
# The beginning of the only address that a worker may name for the result of a call (direct reply-to).
REPLIES = "amq.rabbitmq.reply-to."

TaskOf = Callable[[str, str], Task]
"""Returns the task with a token, which workers of an account may speak of. Raises BadFrame."""
ContentOf = Callable[[Task], Awaitable[Content]]
"""Returns the content of a task. Raises Temporary."""
Reply = Callable[[bytes, str], Awaitable[None]]
"""Sends a frame to the address where a worker waits for it."""


class ServedCalls:
    """The calls of workers. `calls` returns what an owner's workers may ask, and `settings` what they must know."""

    def __init__(self, calls: CallsOf, settings: SettingsOf, task: TaskOf, content: ContentOf, reply: Reply) -> None:
        self._calls, self._settings, self._reply = calls, settings, reply
        self._task, self._content = task, content
        self._under_way: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()  # bytes in this period
        self._period = asyncio.Event()  # set at its end
        self._fetched: dict[str, Content] = {}  # by token, of this period

    def next_period(self) -> None:
        """Begin another period, of a few seconds."""
        self._sent.clear()
        self._fetched.clear()
        self._period.set()
        self._period = asyncio.Event()

    def call(self, frame: Frame, account: str, reply_to: str) -> Coroutine[Any, Any, None]:
        """Return the work of answering a call. Raises BadFrame for one that is refused without an answer."""
        most = CALLS if account == SITE else OWN_CALLS
        if not reply_to.startswith(REPLIES):
            raise BadFrame(f"a call that wants its answer at {reply_to!r:.100}")
        if self._under_way[account] >= most:
            raise BadFrame(f"more than {most} calls at once")
        number, name, arguments = frame.get("id", int), frame.get("name", str), frame.get("arguments", dict)
        self._under_way[account] += 1
        return self._answered(number, name, arguments, account, reply_to)

    async def _answered(
        self, number: int, name: str, arguments: Mapping[str, Any], account: str, reply_to: str
    ) -> None:
        try:
            while account != SITE and self._sent[account] >= OWN_PERIOD:
                await self._period.wait()
            body = await self._frame(number, name, arguments, account)
            self._sent[account] += len(body)
            await self._reply(body, reply_to)
        finally:
            self._under_way -= Counter((account,))

    async def _frame(self, number: int, name: str, arguments: Mapping[str, Any], account: str) -> bytes:
        """Return the frame with the result of a call, or with its error."""
        try:
            result, data = await self._result(name, arguments, account)
            body = frames.encode("result", data, id=number, result=result)
        except (KeyError, TypeError, ValueError) as error:
            body = frames.encode("result", id=number, **error_to_json(Refused(f"{name}: {error!r:.200}")))
        except Exception as error:
            body = frames.encode("result", id=number, **error_to_json(error))
        if len(body) > MOST:
            large = Temporary(f"the result of {name} has {len(body)} bytes; RabbitMQ takes {MOST} at most")
            body = frames.encode("result", id=number, **error_to_json(large))
        return body

    async def _result(self, name: str, arguments: Mapping[str, Any], account: str) -> tuple[Any, bytes]:
        """Return the result of a call. Raises its errors."""
        if name == "settings":
            settings = dict(self._settings(owner_of(account)))
            return {"settings": settings, "version": frames.digest(settings)}, b""
        if name == "content":
            return None, await self._piece(str(arguments["token"]), int(arguments["start"]), account)
        calls = self._calls(owner_of(account))
        if name not in calls:
            raise Refused(f"{name} is not for workers of {account}")
        return await calls[name](arguments), b""

    async def _piece(self, token: str, start: int, account: str) -> bytes:
        """Return a piece of the content of a task that a worker has. Raises Temporary, Refused."""
        try:
            task = self._task(token, account)
        except BadFrame as error:
            raise Refused(str(error)) from error
        if (content := self._fetched.get(token)) is None:
            content = self._fetched[token] = await self._content(task)
        try:
            return await asyncio.to_thread(_cut, content, start)
        except OSError as error:
            raise Temporary(in_words(error)) from error


def _cut(content: Content, start: int) -> bytes:
    out = b""
    for piece in content.chunks(start):
        out += piece
        if len(out) >= PIECE:
            return out[:PIECE]
    return out
