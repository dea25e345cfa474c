"""The calls of worker processes to their node, and the settings that it tells them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Engine

from sendswitch import logs
from sendswitch.accounts.users import get_pipeline
from sendswitch.broker.calls import Call
from sendswitch.config.model import Config
from sendswitch.db import lists
from sendswitch.db.connect import in_thread
from sendswitch.errors import Refused
from sendswitch.mail.address import key
from sendswitch.processors.base import AutoReply, AutoReplySender, Counters, Notice, NoticeSink
from sendswitch.queue.settings import Current
from sendswitch.worker.runtime import routed

# Queries to the database for workers of users' own at once, so that the site's work never waits for theirs.
OWN_AT_ONCE = 2


def settings_for_workers(
    fixed: Config, config: Config, lists_read: str, log_level: str, *, own: bool, others: Sequence[int] = ()
) -> dict[str, Any]:
    """Return what a worker must know of the configuration: of the one that the node started with, and of the one that
    is in force. `lists` changes with the kept lists, and `log_level` may be set for a time. `others` are the numbers of
    the other nodes behind this one's web port.

    A worker of a user's own (`own`) logs as its user says, and reaches what its user's machine may reach.
    """
    return {
        "own": own,
        "others": others,
        "host": fixed.node.host,
        "allow": () if own else fixed.webhooks.allow,
        "limit": fixed.pipelines.limit,
        "sandbox": not own and fixed.pipelines.sandbox != "none",
        "log_format": config.log.format,
        "log_level": log_level,
        "lists": f"{lists_read} {config.routing.recipient_delimiter}",
    }


class WorkerCalls:
    """The calls of workers, carried out on the node's database and with its services."""

    def __init__(
        self,
        engine: Engine,
        config: Callable[[], Config],
        current: Current,
        *,
        outbox: NoticeSink,
        auto_replies: AutoReplySender,
        counters: Counters,
    ) -> None:
        self._engine, self._config, self._current = engine, config, current
        self._outbox, self._auto_replies, self._counters = outbox, auto_replies, counters
        self._told: dict[str, Any] | None = None
        self._own_turn = asyncio.Semaphore(OWN_AT_ONCE)

    def of(self, owner: str) -> Mapping[str, Call]:
        """Return the calls by name for workers of a user's own, or with '' for those of the site.

        A user's own worker sees what is its user's, and has nothing done in the name of the site.
        """
        if owner:
            return {
                "pipeline": partial(self._own_pipeline, owner),
                "lists": partial(self._own_lists, owner),
                "routed": partial(self._own_routed, owner),
            }
        return {
            "pipeline": self._pipeline,
            "lists": self._lists,
            "routed": self._routed,
            "notice": self._notice,
            "auto_reply": self._auto_reply,
            "within_limit": self._within_limit,
        }

    async def _pipeline(self, told: Mapping[str, Any]) -> str:
        """Return the text of a pipeline, as the database has it. Raises NotFound, Temporary."""
        return (await in_thread(get_pipeline, self._engine, str(told["owner"]), int(told["version"]))).text

    async def _own_pipeline(self, owner: str, told: Mapping[str, Any]) -> str:
        if key(str(told["owner"])) != key(owner):
            raise Refused(f"the pipeline of {told['owner']} is not that of {owner}")
        async with self._own_turn:
            return await self._pipeline(told)

    async def _own_routed(self, owner: str, told: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """Return the pipelines of the user, whatever the worker asks for."""
        return [(str(name), bool(candidate)) for name, candidate in told["names"] if key(str(name)) == key(owner)][:2]

    async def _own_lists(self, owner: str, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a user's own lists."""
        async with self._own_turn:
            return self._as_told(await in_thread(lists.entries, self._engine, lists.scope_of(owner)))

    async def _lists(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return every entry of the kept lists; while the database is away, as they were read last."""
        try:
            entries = await in_thread(lists.entries, self._engine)
        except Exception as error:
            if self._told is None:
                raise
            logs.failed("reading the lists for a worker", error=error)
            return self._told
        self._told = self._as_told(entries)
        return self._told

    def _as_told(self, entries: Iterable[lists.ListEntry]) -> dict[str, Any]:
        rows = [(e.scope, e.list, e.entry, e.expires, e.reason) for e in entries]
        return {"rows": rows, "delimiters": self._config().routing.recipient_delimiter}

    async def _routed(self, told: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """Return which of some pipelines still have a route."""
        names = ((str(owner), bool(candidate)) for owner, candidate in told["names"])
        return routed(names, self._current.settings.routes)

    async def _notice(self, told: Mapping[str, Any]) -> None:
        await self._outbox.put(Notice(**{**told, "secrets": tuple(told["secrets"])}))

    async def _auto_reply(self, told: Mapping[str, Any]) -> bool:
        return await self._auto_replies.send(AutoReply(**{**told, "data": base64.b64decode(told["data"])}))

    async def _within_limit(self, told: Mapping[str, Any]) -> bool:
        return await self._counters.within_limit(**told)
