"""Events, and the rows they add up to.

An event is one line of a delivery's history. The spool writes it in the same transaction as the change itself. The
journal keeps every event, and one row for each message and each delivery with its present state, for searches. Folding
a batch twice gives the same rows: events arrive at least once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sendswitch.mail.address import key
from sendswitch.mail.text import storable


class EventKind(StrEnum):
    """The kinds of events. Those named after a state lead to it; of the others `STATES` says where they lead."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REFUSED = "refused"
    VERDICT = "verdict"
    CANDIDATE = "candidate"
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FORWARDED = "forwarded"
    BOUNCED = "bounced"
    FAILED = "failed"
    DISCARDED = "discarded"
    HELD = "held"
    DELAY_OVER = "delay over"
    HOLD_EXPIRED = "hold expired"
    ANSWERED = "answered"
    QUARANTINED = "quarantined"
    RELEASED = "released"
    DELETED = "deleted"
    SUSPENDED = "suspended"
    DROPPED = "dropped"
    REQUEUED = "requeued"
    SENT_ON = "sent on"


# The state that an event leads to where it has another name. None: the state stays.
STATES: Mapping[str, str | None] = {
    EventKind.VERDICT: "decided",
    EventKind.HOLD_EXPIRED: "decided",
    EventKind.DELAY_OVER: "accepted",
    EventKind.ANSWERED: "decided",
    EventKind.RELEASED: "decided",
    EventKind.DELETED: "discarded",
    EventKind.DEFERRED: None,
    EventKind.CANDIDATE: None,
    EventKind.SUSPENDED: None,
    EventKind.REQUEUED: None,
    EventKind.SENT_ON: None,
    EventKind.DROPPED: "discarded",
}
# What the first event of a message may be.
BEGINNINGS = (EventKind.ACCEPTED, EventKind.REJECTED, EventKind.REFUSED)
# Characters kept of what a stranger can make as long as they like.
MAX_TEXT = 500
MAX_ADDRESS = 320
MAX_READERS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `n` is the delivery's number, None for the whole message; `seq` rises in a spool.

    `event` is an `EventKind`, or the kind of a newer version, which is shown as it is.
    `raw` is `data` as JSON where it came from a store, so that it need not be encoded again.
    """

    seq: int
    message: int
    n: int | None
    at: float
    event: str
    data: Mapping[str, Any]
    raw: str = field(default="", compare=False, repr=False)


Row = dict[str, Any]
Key = tuple[int, int]


@dataclass(slots=True)
class Batch:
    """Rows to insert unless they exist, and changes of deliveries that exist."""

    messages: dict[int, Row] = field(default_factory=dict)
    deliveries: dict[Key, Row] = field(default_factory=dict)
    changes: dict[Key, Row] = field(default_factory=dict)
    comparisons: dict[tuple[int, int, int], Row] = field(default_factory=dict)


def fold(events: Iterable[Event]) -> Batch:
    """Return the rows these events add up to."""
    batch = Batch()
    for event in events:
        if event.event == EventKind.CANDIDATE:
            _compare(batch, event)
        elif event.n is not None:
            _change(batch, event)
        elif event.event in BEGINNINGS:
            _begin(batch, event)
    return batch


def _begin(batch: Batch, event: Event) -> None:
    data = event.data
    client = data.get("client", {})
    batch.messages[event.message] = {
        "id": event.message,
        "received": event.at,
        "sender": storable(data.get("from"), MAX_ADDRESS),
        "size": int(data.get("size", 0)),
        "via": storable(data.get("via"), 16),
        "client_address": storable(client.get("address"), 64),
        "client_name": storable(client.get("name"), 255),
        "helo": storable(client.get("helo"), 255),
        "queue_id": storable(client.get("ident"), 64),
        "subject": storable(data.get("subject"), MAX_TEXT),
        "message_id": storable(data.get("message_id"), MAX_TEXT),
        "header_to": storable(data.get("header_to"), MAX_READERS),
        "header_cc": storable(data.get("header_cc"), MAX_READERS),
        "reply_to": storable(data.get("reply_to"), MAX_TEXT),
        "parts": _words(data.get("parts", ())),
    }
    # Before the queue the first event may be the last as well.
    state = next((name for name in ("delivered", "rejected", "refused") if name in data), event.event)
    for n, address in enumerate(data.get("to", ())):
        row = _delivery(event, n, address, state)
        row["reply"] = storable(data.get(state), MAX_TEXT)
        _judge(row, data.get("verdicts", {}).get(str(n), {}))
        batch.deliveries[event.message, n] = row


def _delivery(event: Event, n: int, address: str, state: str) -> Row:
    return {
        "message": event.message,
        "n": n,
        "recipient": storable(address, MAX_ADDRESS),
        "recipient_key": storable(key(address), MAX_ADDRESS),
        "state": state,
        "since": event.at,
        "attempts": 0,
        "action": "",
        "tags": "",
        "processor": "",
        "reason": "",
        "reply": "",
        "score": None,
    }


def _change(batch: Batch, event: Event) -> None:
    assert event.n is not None
    change: Row = {}
    data = event.data
    state = STATES.get(event.event, event.event)
    if state is not None:
        change |= {"state": state, "since": event.at}
    if event.event == EventKind.VERDICT:
        _judge(change, data)
    elif event.event == EventKind.DEFERRED:
        change |= {"attempts": int(data.get("attempt", 0)), "reply": storable(data.get("why"), MAX_TEXT)}
    elif reply := data.get("reply") or data.get("reason"):
        change["reply"] = storable(reply, MAX_TEXT)
    for child, address, child_state in data.get("children", ()):
        batch.deliveries[event.message, int(child)] = _delivery(event, int(child), address, child_state)
    key = (event.message, event.n)
    if key in batch.deliveries:
        batch.deliveries[key] |= change
    else:
        batch.changes[key] = batch.changes.get(key, {}) | change


def _compare(batch: Batch, event: Event) -> None:
    data, n, version = event.data, event.n or 0, int(event.data.get("version", 0))
    batch.comparisons[event.message, n, version] = {
        "message": event.message,
        "n": n,
        "version": version,
        "owner_key": storable(key(data.get("pipeline", "")), MAX_ADDRESS),
        "was": storable(data.get("was_action"), 16),
        "now": storable(data.get("now_action"), 16),
        "differs": bool(data.get("differing")),
        "told_was": storable(data.get("was"), MAX_TEXT),
        "told_now": storable(data.get("now"), MAX_TEXT),
        "reason": storable(data.get("reason"), MAX_TEXT),
    }


def _judge(row: Row, verdict: Mapping[str, Any]) -> None:
    """Put a verdict into a delivery's row. The last step that was asked decided."""
    trace = verdict.get("trace", ())
    row["action"] = storable(verdict.get("action"), 16)
    tags = dict.fromkeys((*verdict.get("before", ()), *verdict.get("tags", ())))
    row["tags"] = _words(tags)
    row["processor"] = storable(trace[-1].get("processor"), 64) if trace else ""
    row["reason"] = storable(verdict.get("reason"), MAX_TEXT)
    row["score"] = verdict.get("score")


def _words(words: Iterable[str]) -> str:
    """Return words between spaces, so that one can be looked for without finding a part of another."""
    text = " ".join(words)
    return f" {text} " if text else ""
