"""The calls of worker processes to their node, and the settings that it tells them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from sendswitch import logs
from sendswitch.accounts.users import get_pipeline
from sendswitch.broker.calls import Call
from sendswitch.config.model import Config
from sendswitch.db import lists
from sendswitch.db.connect import in_thread
from sendswitch.processors.base import AutoReply, AutoReplySender, Counters, Notice, NoticeSink
from sendswitch.queue.settings import Current
from sendswitch.worker.runtime import named


def settings_for_workers(fixed: Config, config: Config, lists_read: int, log_level: str) -> dict[str, Any]:
    """Return what a worker must know of the configuration: of the one that the node started with, and of the one that
    is in force. `lists` changes with the kept lists, and `log_level` may be set for a time.
    """
    return {
        "host": fixed.node.host,
        "allow": fixed.webhooks.allow,
        "limit": fixed.pipelines.limit,
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

    def by_name(self) -> dict[str, Call]:
        """Return the calls by name."""
        return {
            "pipeline": self._pipeline,
            "lists": self._lists,
            "routed": self._routed,
            "notice": self._notice,
            "auto_reply": self._auto_reply,
            "within_limit": self._within_limit,
        }

    async def _pipeline(self, told: Mapping[str, Any]) -> str:
        """Return the text of a pipeline, as the database has it now. Raises NotFound, Temporary.

        It is not kept here: a user who is removed and added again begins with version 1 anew.
        """
        return (await in_thread(get_pipeline, self._engine, str(told["owner"]), int(told["version"]))).text

    async def _lists(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return every entry of the kept lists; while the database is away, as they were read last."""
        try:
            entries = await in_thread(lists.entries, self._engine)
        except Exception as error:
            if self._told is None:
                raise
            logs.failed("reading the lists for a worker", error=error)
            return self._told
        rows = [(e.scope, e.list, e.entry, e.expires, e.reason) for e in entries]
        self._told = {"rows": rows, "delimiters": self._config().routing.recipient_delimiter}
        return self._told

    async def _routed(self, told: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """Return which of some pipelines still have a route."""
        routed = named(self._current.settings.routes)
        return [(owner, candidate) for owner, candidate in told["names"] if (owner, candidate) in routed]

    async def _notice(self, told: Mapping[str, Any]) -> None:
        await self._outbox.put(Notice(**{**told, "secrets": tuple(told["secrets"])}))

    async def _auto_reply(self, told: Mapping[str, Any]) -> bool:
        return await self._auto_replies.send(AutoReply(**{**told, "data": base64.b64decode(told["data"])}))

    async def _within_limit(self, told: Mapping[str, Any]) -> bool:
        return await self._counters.within_limit(**told)
