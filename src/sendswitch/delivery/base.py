"""The courier, which takes a message to the next hop."""

from __future__ import annotations

from typing import Protocol

from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply
from sendswitch.smtp.client import Delivered


class Courier(Protocol):
    """A courier to one next hop; safe to use from many tasks at once.

    Contract: `deliver` never raises for what the next hop does; each recipient gets an outcome, in order. A
    positive reply means the next hop has the message durably, as far as it says. A 4xx may be tried again; a 5xx
    will not succeed. `uncertain` means it may have the message although no positive reply was seen: trying again
    can duplicate it. Cancelling is like losing the connection.
    """

    async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        """Hand one message to all recipients. `unanimous`: to none unless the next hop accepts each of them."""
        ...

    async def check(self) -> Reply | None:
        """Return the reply that says what is wrong with the next hop, None when nothing is."""
        ...

    def close(self) -> None:
        """Close idle connections. Deliveries under way go on."""
        ...
