"""One function per event, one line per event: JSON with fixed keys, the message's id first.

Made here and not by a logging library, because two lines a message are written on the path every message takes.
Keys: ts level event msg_id rcpt, then what the event adds. Addresses are logged (a mail administrator needs them,
Postfix does too); subjects and content never are.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from typing import Literal

import orjson

Format = Literal["json", "text"]
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_format: Format = "json"
_level = LEVELS["info"]
_second = (0, "")
_lines: list[bytes] = []
# What stands in every line of this process.
_named: dict[str, object] = {}
_DIVIDES = re.compile(r'[\s"=]')


def setup(form: Format = "json", level: str = "info") -> None:
    """Send events to stderr in this form. Call once, at the start of a command."""
    global _format, _level
    _format, _level = form, LEVELS[level]
    # The libraries' own loggers go the same way, warnings and worse only.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def lowest_level() -> str:
    """Return the lowest level that is logged."""
    return next(name for name, number in LEVELS.items() if number == _level)


def set_level(level: str) -> str:
    """Set the lowest level that is logged. Return the level before."""
    global _level
    before, _level = lowest_level(), LEVELS[level]
    return before


def name_node(number: int) -> None:
    """Write the number of the node into each line, from now on: several of one machine write into one log."""
    _named["node"] = number


def _emit(level: str, event: str, **facts: object) -> None:
    """Write one line. On the event loop, the lines of one turn are one write."""
    if LEVELS[level] < _level:
        return
    if _format == "json":
        line = orjson.dumps({"ts": _now(), "level": level, "event": event, **_named, **facts}, default=str)
    else:
        told = " ".join(f"{key}={_shown(value)}" for key, value in (_named | facts).items() if value not in ("", None))
        line = f"{_now()} {level:7} {event:12} {told}".encode("utf-8", "replace")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _write(line + b"\n")
        return
    if not _lines:
        loop.call_soon(flush)
    _lines.append(line)


def _shown(value: object) -> str:
    """Return a value for a line that people read. A stranger's text in it can end neither the value nor the line."""
    text = str(value)
    if text.isprintable() and not _DIVIDES.search(text):
        return text
    return orjson.dumps(text).decode()


def flush() -> None:
    """Write the buffered lines."""
    if _lines:
        _lines.append(b"")
        _write(b"\n".join(_lines))
        _lines.clear()


def _write(data: bytes) -> None:
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        return  # nobody reads: mail goes on


def _now() -> str:
    """Return ISO 8601 in UTC; the part up to the second is made once a second."""
    global _second
    now = time.time()
    second = int(now)
    if second != _second[0]:
        _second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return f"{_second[1]}.{int((now - second) * 1000):03d}Z"


def accepted(msg_id: str, *, sender: str, recipients: int, size: int, client: str, helo: str, via: str) -> None:
    """Log that a message is safe and the client got its 250."""
    _emit(
        "info",
        "accepted",
        msg_id=msg_id,
        sender=sender,
        recipients=recipients,
        size=size,
        client=client,
        helo=helo,
        via=via,
    )


def refused(*, sender: str, recipients: int, client: str, reply: str, cause: str = "", msg_id: str = "") -> None:
    """Log that a message was not taken; the client was told `reply`."""
    _emit(
        "warning",
        "refused",
        msg_id=msg_id,
        sender=sender,
        recipients=recipients,
        client=client,
        reply=reply,
        cause=cause,
    )


def verdict(msg_id: str, *, rcpt: str, action: str, tags: tuple[str, ...], reason: str, dur_ms: float) -> None:
    """Log that a pipeline answered, or its deadline did."""
    _emit(
        "info",
        "verdict",
        msg_id=msg_id,
        rcpt=rcpt,
        action=action,
        tags=list(tags),
        reason=reason,
        dur_ms=round(dur_ms, 2),
    )


def ended(msg_id: str, *, rcpt: str, state: str, reply: str, dur_ms: float) -> None:
    """Log that a delivery reached its last state (delivered, bounced, …)."""
    _emit("info", "ended", msg_id=msg_id, rcpt=rcpt, state=state, reply=reply, dur_ms=round(dur_ms, 2))


def kept(msg_id: str, *, rcpt: str, state: str, reason: str, until: float | None) -> None:
    """Log that a delivery is held or quarantined."""
    _emit("info", "kept", msg_id=msg_id, rcpt=rcpt, state=state, reason=reason, until=until)


def poison(msg_id: str, *, rcpt: str) -> None:
    """Log that a delivery's pipeline crashed three times. It is in quarantine, its pipeline is not run again."""
    _emit("error", "poison", msg_id=msg_id, rcpt=rcpt)


def suspected(*, deliveries: int) -> None:
    """Log that the node was killed while it had these deliveries in hand; their pipelines are asked one at a time."""
    _emit("warning", "suspected", deliveries=deliveries)


def deferred(msg_id: str, *, rcpt: str, why: str, attempt: int, retry_in: float) -> None:
    """Log that something failed for now and will be tried again."""
    _emit("warning", "deferred", msg_id=msg_id, rcpt=rcpt, why=why, attempt=attempt, retry_in=round(retry_in, 1))


def journal_failed(*, error: Exception, retry_in: float) -> None:
    """Log that the database took no events; they wait in the spool."""
    _emit("error", "journal_failed", error=str(error), retry_in=round(retry_in, 1))


def journal_recovered(*, events: int) -> None:
    """Log that the database takes events again."""
    _emit("info", "journal_recovered", events=events)


def unaccounted(msg_id: str, *, rule: str, what: str) -> None:
    """Log that the audit found an inconsistency; `sendswitch audit` shows all."""
    _emit("error", "unaccounted", msg_id=msg_id, rule=rule, what=what)


def session_failed(*, client: str, error: Exception) -> None:
    """Log that an SMTP session met an error of ours; the client read a generic reply."""
    _emit("error", "session_failed", client=client, error=str(error), cause=repr(error.__cause__ or error))


def traces(*, taken: bool) -> None:
    """Log that the OpenTelemetry collector takes our spans again, or no longer; mail goes on."""
    _emit("info" if taken else "warning", "traces", taken=taken)


def clock_set(*, seconds: float | None, hurried: int) -> None:
    """Log that the clock was set, by so many seconds or before the start. Mail that the wrong clock delayed is tried
    now.
    """
    _emit("warning", "clock_set", seconds=None if seconds is None else round(seconds, 3), hurried=hurried)


def login_refused(*, client: str, user: str) -> None:
    """Log that a client gave a wrong or an unknown password. A program that reads the log may block such clients."""
    _emit("warning", "login_refused", client=client, user=user)


def tls_failed(*, client: str, error: Exception) -> None:
    """Log that a client broke off its TLS handshake, or spoke no TLS."""
    _emit("info", "tls_failed", client=client, error=str(error))


def tls_given_up(next_hop: str, why: str) -> None:
    """Log that TLS with the next hop failed where it may be used (`tls = "may"`): mail goes in clear text."""
    _emit("warning", "tls_given_up", next_hop=next_hop, why=why)


def failed(what: str, *, error: Exception, msg_id: str = "") -> None:
    """Log that a part of the switch met an error it could not classify; mail it concerns is tried again."""
    _emit("error", "failed", msg_id=msg_id, what=what, error=repr(error))


def background_failed(part: str, *, error: Exception, retry_in: float) -> None:
    """Log that a background part ended with an error. It is started again."""
    _emit("error", "background_failed", part=part, error=repr(error), retry_in=round(retry_in, 1))


def spool_failed(*, error: Exception) -> None:
    """Log that the spool could not be written; mail is answered with 451 until it can."""
    _emit("error", "spool_failed", error=repr(error))


def spool_recovered() -> None:
    """Log that the spool can be written again."""
    _emit("warning", "spool_recovered")


def started(**facts: object) -> None:
    """Log that the node is up; the facts are its addresses."""
    _emit("info", "started", **facts)


def upgraded(*, changes: list[str]) -> None:
    """Log that the spool of an older program was upgraded; these defaults changed, where not configured."""
    _emit("warning", "upgraded", changes=changes)


def database_upgraded(*, before: str, after: str, copy: str) -> None:
    """Log that the database of an older program was upgraded. `copy` is a file with the old one (SQLite)."""
    _emit("warning", "database_upgraded", before=before, after=after, copy=copy)


def recovered(*, deliveries: int, orphans: int) -> None:
    """Log that the spool was opened, with the deliveries in it and the files of messages that were never
    acknowledged.
    """
    _emit("info", "recovered", deliveries=deliveries, orphans=orphans)


def stopping(*, why: str) -> None:
    """Log that the node begins to stop."""
    _emit("info", "stopping", why=why)


def stopped() -> None:
    """Log that the node has stopped; everything is in the spool."""
    _emit("info", "stopped")


def configured(*, restart: list[str]) -> None:
    """Log that the configuration was read again and holds; `restart` are the changed keys that wait for a restart."""
    _emit("info", "configured", restart=restart)


def configuration_refused(*, problems: list[str]) -> None:
    """Log that the configuration was read again and is wrong; the one before stays."""
    _emit("error", "configuration_refused", problems=problems)


def level_changed(*, was: str, now: str) -> None:
    """Log that another level of events is shown."""
    _emit("warning", "level_changed", was=was, now=now)


def overloaded(*, why: str) -> None:
    """Log that there is too much to do: new mail is answered with 421 until there is less."""
    _emit("warning", "overloaded", why=why)


def overload_over(*, dur_ms: float) -> None:
    """Log that mail is taken again."""
    _emit("info", "overload_over", dur_ms=round(dur_ms))


def canary_lost(*, why: str) -> None:
    """Log that a probe sent through the chain did not come through in time."""
    _emit("error", "canary_lost", why=why)


def worker_connected(name: str, *, pid: int, places: int, user: str = "") -> None:
    """Log that a worker connected to the node: one of the site, or one of a user's own, which has no pid."""
    about = {"user": user} if user else {"pid": pid}
    _emit("info", "worker_connected", worker=name, places=places, **about)


def pipeline_read(file: str) -> None:
    """Log that a worker uses the pipeline of its file as it was edited."""
    _emit("info", "pipeline_read", file=file)


def worker_refused(*, client: str, why: str) -> None:
    """Log that a worker of a user's own was not let in."""
    _emit("warning", "worker_refused", client=client, why=why)


def worker_gone(name: str, *, pid: int, lost: int, done: int) -> None:
    """Log that a worker process is gone. The `lost` tasks that it had are offered again, one at a time."""
    _emit("warning" if lost else "info", "worker_gone", worker=name, pid=pid, lost=lost, done=done)


def worker_hung(name: str, *, pid: int) -> None:
    """Log that a worker process was silent for too long. It is disconnected, and killed if the node started it."""
    _emit("error", "worker_hung", worker=name, pid=pid)


def worker_replaced(name: str, *, why: str, retry_in: float) -> None:
    """Log that another process takes the place of a worker process."""
    _emit("warning", "worker_replaced", worker=name, why=why, retry_in=round(retry_in, 1))


def node_hung(number: int, *, pid: int) -> None:
    """Log that one of this machine's nodes was silent for too long. It is killed, and started again."""
    _emit("error", "node_hung", node=number, pid=pid)


def node_restarted(number: int, *, status: int, retry_in: float) -> None:
    """Log that one of this machine's nodes ended. Its mail is in its spool; it is started again."""
    _emit("error", "node_restarted", node=number, status=status, retry_in=round(retry_in, 1))


def node_away(*, error: str, retry_in: float) -> None:
    """Log that a worker cannot reach its node."""
    _emit("warning", "node_away", error=error, retry_in=round(retry_in, 1))


def broker_connected(broker: str) -> None:
    """Log that there is a connection to RabbitMQ."""
    _emit("info", "broker_connected", broker=broker)


def broker_away(*, why: str, retry_in: float) -> None:
    """Log that there is no connection to RabbitMQ. Mail waits in the spool until there is one."""
    _emit("warning", "broker_away", why=why, retry_in=round(retry_in, 1))


def workers_offline(queue: str, *, after: float) -> None:
    """Log that a queue has had no worker for `after` seconds. Its mail is dealt with as when_offline says."""
    _emit("warning", "workers_offline", queue=queue, after=after)


def workers_online(queue: str, *, waiting: int) -> None:
    """Log that a queue has a worker again. `waiting` deliveries were put off meanwhile and are offered now."""
    _emit("info", "workers_online", queue=queue, waiting=waiting)


def answer_ignored(*, account: str, key: str, why: str) -> None:
    """Log an answer of a worker that has no effect: late, forged, or for somebody else's task."""
    _emit("warning", "answer_ignored", account=account, key=key, why=why)


def draining() -> None:
    """Log that the node stopped taking mail on request. Mail in the queue goes on."""
    _emit("warning", "draining")


def reloaded(*, users: int) -> None:
    """Log that changed users and pipelines were read from the database. `users` is the number of users with a route."""
    _emit("info", "reloaded", users=users)


def webhook(msg_id: str, *, id: str, status: int, said: str, attempt: int, due: float | None) -> None:
    """Log that a webhook was tried: the receiver's status (0 for none) and words; `due` is when it is tried again."""
    level = "info" if 200 <= status < 300 else "warning"
    _emit(level, "webhook", msg_id=msg_id, id=id, status=status, said=said, attempt=attempt, due=due)


def processor_output(msg_id: str, *, processor: str, text: str) -> None:
    """Log that a user's program wrote to its standard error."""
    _emit("info", "processor_output", msg_id=msg_id, processor=processor, text=text)
