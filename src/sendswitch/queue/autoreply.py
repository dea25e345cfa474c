"""Automatic replies that pipelines send: once for each sender in a time, then messages in the spool like any other."""

from __future__ import annotations

from sendswitch.clock import Clock
from sendswitch.processors.base import AutoReply
from sendswitch.queue.active import ActiveQueue
from sendswitch.spool.autoreply_log import write_reply
from sendswitch.spool.spool import Spool, own_message


class AutoReplies:
    """The sender of automatic replies of one node (`processors.base.AutoReplySender`)."""

    def __init__(self, spool: Spool, queue: ActiveQueue, lifetime: float, clock: Clock) -> None:
        self._spool, self._queue, self._lifetime, self._clock = spool, queue, lifetime, clock

    async def send(self, reply: AutoReply) -> bool:
        """Send a reply, unless its sender had one before. Both is on disk on return, or neither."""
        now = self._clock()
        message, delivery = own_message(self._spool, reply.to, reply.data, now=now, lifetime=self._lifetime)
        row = self._spool.row(message, [delivery], {"about": reply.about})

        sent: bool = await self._queue.enqueue(
            [delivery],
            lambda: write_reply(self._spool, row, reply.owner, reply.to, again=reply.again, now=now),
        )
        return sent
