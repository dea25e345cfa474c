"""Candidates: a new version of a pipeline runs beside the live one on the same mail, without effect.

Each comparison becomes an event for the journal. Rules:
1. A candidate never holds mail up: it is asked after the live answer counted, and at most a tenth of a worker's places
   are for candidates. What comes beyond that is left out and counted, not queued.
2. Its failure is its own: nothing here can put off, change or end a delivery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from sendswitch import logs, metrics
from sendswitch.errors import SpoolUnavailable
from sendswitch.journal.compare import action, differing, told
from sendswitch.journal.events import EventKind
from sendswitch.mail.content import Content, InFile
from sendswitch.mail.verdict import Deferral, PipelineResult
from sendswitch.queue.dispatcher import Dispatcher
from sendswitch.routing import Route
from sendswitch.spool.records import Delivery

# Most candidates asked at once; of the hundred places a worker has by default, so many may hang with them.
AT_ONCE = 10

Note = Callable[[int, int, EventKind, dict[str, Any]], Awaitable[None]]
"""Writes an event about a message's delivery that changes nothing."""


class Candidates:
    """The questions of one node to candidates."""

    def __init__(self, dispatcher: Dispatcher, note: Note, *, most: int = AT_ONCE) -> None:
        self._dispatcher, self._note, self._most = dispatcher, note, most
        self._tasks: set[asyncio.Task[None]] = set()
        dispatcher.on_verdict(self.compare)

    def compare(self, delivery: Delivery, route: Route, answer: PipelineResult) -> None:
        """Ask the candidate of a route about a delivery that has its answer, and record how they differ."""
        if len(self._tasks) >= self._most:
            metrics.CANDIDATES.labels("left out").inc()
            return
        task = asyncio.get_running_loop().create_task(self._compare(delivery, route, answer, delivery.message.content))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Ask no more, and wait for no answer."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _compare(self, delivery: Delivery, route: Route, was: PipelineResult, content: Content | None) -> None:
        message = delivery.message
        try:
            # Now, because the mail may be delivered and its content forgotten before a worker begins.
            held = await message.load() if content is None else content

            way = replace(route, version=route.candidate, queue=route.candidate_queue)
            now = await self._dispatcher.rehearse(delivery, way, held)
            if isinstance(held, InFile) and not await asyncio.to_thread(held.path.exists):
                raise SpoolUnavailable("the content went before the candidate had read it")
            fields = _differing(was, now)
            data = {
                "pipeline": route.owner,
                "version": route.candidate,
                "live": route.version,
                "was": told(was),
                "was_action": action(was),
                "now": told(now),
                "now_action": action(now),
                "differing": list(fields),
                "reason": now.reason,
                "trace": [step.to_json() for step in now.trace],
            }
            await self._note(message.id, delivery.n, EventKind.CANDIDATE, data)
        except Exception as error:
            metrics.CANDIDATES.labels("failed").inc()
            logs.failed(f"the candidate of {route.owner}", error=error, msg_id=message.text_id)
        else:
            metrics.CANDIDATES.labels("differs" if fields else "agrees").inc()


def _differing(was: PipelineResult, now: PipelineResult) -> tuple[str, ...]:
    if isinstance(was, Deferral):
        return () if isinstance(now, Deferral) else ("action",)
    return differing(was, now)
