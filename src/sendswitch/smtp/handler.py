"""The receiver of a listener's mail, as sessions see it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply
from sendswitch.smtp.protocol.server import MailCommand, RcptCommand


class Sink(Protocol):
    """Takes the content of one message as it comes in."""

    def write(self, data: bytes) -> None:
        """Take a piece; must not block."""
        ...

    @property
    def full(self) -> bool:
        """Return whether `drain` must be awaited before more is written."""
        ...

    async def drain(self) -> None:
        """Move the written bytes out of memory. Raises Temporary when they cannot be stored."""
        ...

    def discard(self) -> None:
        """Forget the content; nothing of it stays. May be called at any time, more than once."""
        ...


class Handler(Protocol):
    """The receiver of a listener's mail. Its replies are sent as they are; a 421 ends the session (RFC 5321 3.8)."""

    def admit(self) -> Reply | None:
        """Take another session? None, or the reply that is all it gets. Must not block."""
        ...

    def mail(self, mail: MailCommand) -> Reply | asyncio.Future[Reply]:
        """Take a message of this sender and size? Must not block.

        A future is for replies that need a question to somebody else; nothing else in the session goes on meanwhile,
        and an error is a refusal for now.
        """
        ...

    def recipient(self, recipient: RcptCommand) -> Reply | asyncio.Future[Reply]:
        """Take this recipient? As `mail`."""
        ...

    def refused(self, envelope: Envelope, reply: Reply, why: str = "") -> None:
        """Note that a message was refused, wholly or for these recipients. Must not block or raise.

        Of the replies of `message` itself, only temporary refusals and errors come here.
        """
        ...

    def sink(self) -> Sink:
        """Return where the next message's content goes."""
        ...

    def message(self, envelope: Envelope, sink: Sink) -> asyncio.Future[tuple[Reply, ...]]:
        """Take the message: a positive reply promises that it is safe.

        The result of the future is the reply, or for LMTP one for each recipient. The session classifies the errors of
        this call and of the future. It is a future and no coroutine, because a task for each message is costly where
        nothing waits twice.
        """
        ...
