"""One function per event, one line per event: JSON with fixed keys, the message's id first.

Keys: ts level event msg_id rcpt, then what the event adds. Addresses are logged (a mail administrator needs
them, Postfix does too); subjects and content never are.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, cast

import orjson
import structlog

Format = Literal["json", "text"]
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def setup(form: Format = "json", level: str = "info") -> None:
    """Send events to stderr. Call once, at the start of a command."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    ]
    factory: Any
    if form == "json":
        processors.append(structlog.processors.JSONRenderer(serializer=_dumps))
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        processors[-1] = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False, key="timestamp")
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=12))
        factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )
    global _log
    _log = structlog.get_logger().bind()
    # The libraries' own loggers go the same way, warnings and worse only.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _dumps(event: dict[str, Any], **_: Any) -> bytes:
    name = event.pop("event")
    return orjson.dumps({"ts": event.pop("ts"), "level": event.pop("level"), "event": name, **event}, default=str)


_log: Any = structlog.get_logger()


def accepted(msg_id: str, *, sender: str, recipients: int, size: int, client: str, helo: str, via: str) -> None:
    """A message is safe and the client was told so."""
    _log.info("accepted", msg_id=msg_id, sender=sender, rcpts=recipients, size=size, client=client, helo=helo, via=via)


def refused(*, sender: str, recipients: int, client: str, reply: str, cause: str, msg_id: str = "") -> None:
    """A message was not taken; the client was told `reply`."""
    _log.warning("refused", msg_id=msg_id, sender=sender, rcpts=recipients, client=client, reply=reply, cause=cause)


def verdict(msg_id: str, *, rcpt: str, action: str, tags: tuple[str, ...], reason: str, dur_ms: float) -> None:
    """A pipeline answered, or its deadline did."""
    _log.info(
        "verdict", msg_id=msg_id, rcpt=rcpt, verdict=action, tags=list(tags), reason=reason, dur_ms=round(dur_ms, 2)
    )


def ended(msg_id: str, *, rcpt: str, state: str, reply: str, dur_ms: float) -> None:
    """A delivery reached its last state (delivered, bounced, …)."""
    _log.info("ended", msg_id=msg_id, rcpt=rcpt, state=state, reply=reply, dur_ms=round(dur_ms, 2))


def kept(msg_id: str, *, rcpt: str, state: str, reason: str, until: float | None) -> None:
    """A delivery is held or quarantined."""
    _log.info("kept", msg_id=msg_id, rcpt=rcpt, state=state, reason=reason, until=until)


def deferred(msg_id: str, *, rcpt: str, why: str, attempt: int, retry_in: float) -> None:
    """Something failed for now and will be tried again."""
    _log.warning("deferred", msg_id=msg_id, rcpt=rcpt, why=why, attempt=attempt, retry_s=round(retry_in, 1))


def session_failed(*, address: str, error: Exception) -> None:
    """An SMTP session met an error of ours; the client read a generic reply."""
    _log.error("session_failed", client=address, error=str(error), cause=repr(error.__cause__ or error))


def failed(what: str, *, error: Exception, msg_id: str = "") -> None:
    """A part of the switch met an error it could not classify; mail it concerns is tried again."""
    _log.error("failed", msg_id=msg_id, what=what, error=repr(error), exc_info=error if _debugging() else None)


def spool_failed(*, error: Exception) -> None:
    """The spool could not be written; mail is answered with 451 until it can."""
    _log.error("spool_failed", error=repr(error))


def spool_recovered() -> None:
    """The spool can be written again."""
    _log.warning("spool_recovered")


def started(**facts: object) -> None:
    """The node is up; the facts are its addresses."""
    _log.info("started", **facts)


def recovered(*, deliveries: int, orphans: int) -> None:
    """The spool was opened: what is still on its way, and files of messages that were never acknowledged."""
    _log.info("recovered", deliveries=deliveries, orphans=orphans)


def stopping(*, why: str) -> None:
    """The node begins to stop."""
    _log.info("stopping", why=why)


def stopped() -> None:
    """The node has stopped; everything is in the spool."""
    _log.info("stopped")


def reloaded(*, users: int) -> None:
    """Users and pipelines were read again from the database."""
    _log.info("reloaded", users=users)


def processor_output(msg_id: str, *, processor: str, text: str) -> None:
    """A user's program wrote to its standard error."""
    _log.info("processor_output", msg_id=msg_id, processor=processor, text=text)


def _debugging() -> bool:
    return cast(bool, _log.is_enabled_for(10)) if hasattr(_log, "is_enabled_for") else False
