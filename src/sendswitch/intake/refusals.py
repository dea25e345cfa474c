"""Refused mail in the history: sender, recipients, and the reply to the client.

A client that keeps trying must not fill the disk: the same refusal is stored once a minute, at most a limited number a
minute, and none when the disk is nearly full. All refusals are counted and logged.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace

from sendswitch import logs, metrics
from sendswitch.clock import Clock
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.reply import Reply
from sendswitch.spool.records import Delivery
from sendswitch.spool.spool import Spool, new_message
from sendswitch.spool.states import State

# Seconds in which the same refusal is kept once, and how many are kept in that time.
QUIET, MOST = 60.0, 500
# Bytes of the disk that are left to the mail that is here already.
LEFT = 64 * 1024 * 1024


class Refusals:
    """The writer of refusals to a spool."""

    def __init__(self, spool: Spool, clock: Clock) -> None:
        self._spool, self._clock = spool, clock
        self._kept: OrderedDict[tuple[str, tuple[str, ...], int], float] = OrderedDict()

    def keep(self, envelope: Envelope, reply: Reply, why: str, via: str) -> None:
        """Count, log and keep one. Never raises; a spool that cannot be written keeps none."""
        metrics.REFUSED.labels(f"{reply.code // 100}xx").inc()
        logs.refused(
            sender=envelope.sender,
            recipients=len(envelope.recipients),
            client=envelope.client.address,
            reply=str(reply),
            cause=why,
        )
        if not self._is_new(envelope, reply) or self._spool.free() < LEFT:
            return
        if not envelope.recipients:  # refused before anybody was named
            envelope = replace(envelope, recipients=(Recipient(""),))
        message = new_message(self._spool, envelope, InMemory(b""), now=self._clock(), lifetime=0.0, via=via)
        deliveries = [
            Delivery(message, n, to, state=State.REFUSED, reply=str(reply)) for n, to in enumerate(envelope.recipients)
        ]
        self._spool.accept(message, deliveries, data={"refused": str(reply), "why": why}).add_done_callback(_ignore)

    def _is_new(self, envelope: Envelope, reply: Reply) -> bool:
        now = self._clock()
        while self._kept and (next(iter(self._kept.values())) <= now - QUIET or next(iter(self._kept.values())) > now):
            self._kept.popitem(last=False)
        what = (envelope.sender, tuple(recipient.address for recipient in envelope.recipients), reply.code)
        if what in self._kept or len(self._kept) >= MOST:
            return False
        self._kept[what] = now
        return True


def _ignore(future: asyncio.Future[None]) -> None:
    """Ignore an event that could not be written. The log has it, and the spool reports its own failure."""
    if not future.cancelled():
        future.exception()
