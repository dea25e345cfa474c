"""A probe: a message of our own, sent through Postfix and back to us, to see whether the chain works.

`send` hands it to Postfix; `trail` finds it in the spool by its Message-ID and returns the stages it passed.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate

from sendswitch.journal.events import EventKind
from sendswitch.mail.content import InMemory
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.ids import to_text
from sendswitch.reply import Reply
from sendswitch.smtp.client import ClientOptions
from sendswitch.smtp.endpoint import Endpoint
from sendswitch.smtp.pool import Pool
from sendswitch.spool.history import arrivals, deliveries_events

SUBJECT = "SendSwitch probe"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a probe: the place, the reply there, and the seconds since the probe was sent."""

    name: str
    said: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """A message that is known by its Message-ID; `began` is when it was sent (seconds since the epoch)."""

    message_id: str
    began: float


async def send(endpoint: Endpoint, *, host: str, sender: str, to: str, limit: float) -> tuple[Probe, Reply]:
    """Send a probe to an SMTP server. Return the server's reply, or a 4xx of ours when it could not be reached."""
    probe = Probe(f"<probe-{secrets.token_hex(8)}@{host}>", time.time())
    text = (
        f"From: <{sender}>\r\nTo: <{to}>\r\nSubject: {SUBJECT}\r\nDate: {formatdate(probe.began)}\r\n"
        f"Message-ID: {probe.message_id}\r\nAuto-Submitted: auto-generated\r\n\r\n"
        "This message checks the way of mail through Postfix and SendSwitch. Nothing need be done about it.\r\n"
    )
    pool = Pool(endpoint, ClientOptions(helo=host, connect=limit, command=limit, content=limit), size=1, idle=1.0)
    try:
        async with asyncio.timeout(limit):
            envelope = Envelope(sender, (Recipient(to, "NEVER"),), Client())
            result = await pool.deliver(envelope, InMemory(text.encode()))
        reply = result.outcomes[0].reply
    except TimeoutError:
        reply = None
    finally:
        pool.close()
    return probe, reply or Reply(451, "4.4.2", f"no answer within {limit:g} s")


def trail(connection: sqlite3.Connection, probe: Probe, after: int) -> tuple[list[Stage], str]:
    """Return the stations that a probe reached in this spool behind event `after`, and its state; '' before it came."""
    for message, at, told in arrivals(connection, after):
        if told.get("message_id") == probe.message_id:
            return _stages(connection, message, at, told, probe.began)
    return [], ""


def _stages(
    connection: sqlite3.Connection, message: int, at: float, told: Mapping[str, object], began: float
) -> tuple[list[Stage], str]:
    client = told.get("client")
    ident = client.get("ident", "") if isinstance(client, dict) else ""
    came = f"{to_text(message)}{f', from Postfix queue id {ident}' if ident else ''}"
    stages = [Stage("SendSwitch", came, at - began)]
    state = ""
    for name in ("delivered", "rejected"):  # before the queue all is told in one
        if name in told:
            stages.append(Stage("next hop", str(told[name]), at - began))
            state = name
    for happened, event, data in deliveries_events(connection, message):
        state = event
        if event == EventKind.VERDICT:
            whose = f"pipeline of {data.get('pipeline')}, version {data.get('version')}"
            stages.append(Stage(whose, str(data.get("action")), happened - began))
        else:
            said = data.get("reply") or data.get("why") or data.get("reason") or event
            stages.append(
                Stage(
                    "next hop" if event in (EventKind.DELIVERED, EventKind.DEFERRED) else event,
                    str(said),
                    happened - began,
                )
            )
    return stages, state


def arrived(state: str) -> bool:
    """Return whether the chain has done with it, whatever the pipeline wanted."""
    return state not in ("", EventKind.VERDICT, EventKind.DEFERRED, EventKind.SUSPENDED)


def drawing(stages: Sequence[Stage]) -> str:
    """Return the way in lines, each station below the other, with the time it was reached."""
    width = max(len(stage.name) for stage in stages)
    return "\n".join(f"  ──▶ {stage.name:{width}}  {stage.seconds * 1000:7.0f} ms  {stage.said}" for stage in stages)
