"""The events of a message as the spans of a trace (OpenTelemetry), made from the journal afterwards.

The mail path knows no traces, so that they cost nothing while they are off, and a crash leaves no span half open: an
event that comes twice makes the same spans with the same ids. The trace's id is made from the message's, so that
another node, a worker or a webhook can name the trace too.

Spans carry no addresses, subjects or words of the mail, because they go to other people's machines. `mail.message.id`
is the id for `sendswitch message explain`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from sendswitch.journal.events import Event, EventKind
from sendswitch.journal.story import steps_of
from sendswitch.mail import ids

Attribute = str | int | float | bool
_ALL = 1 << 64
# Events that are a failure for who looks at a trace.
_FAILED = frozenset((EventKind.DEFERRED, EventKind.BOUNCED, EventKind.FAILED, EventKind.REJECTED, EventKind.REFUSED))


@dataclass(frozen=True, slots=True)
class Span:
    """One thing that took time. Ids are numbers of 128 and 64 bits, `parent` 0 for none; times in seconds."""

    name: str
    kind: Literal["server", "client", "consumer", "internal"]
    trace: int
    id: int
    parent: int
    begin: float
    end: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    error: str = ""


def trace_of(message: int) -> int:
    """Return the id of a message's trace."""
    return int.from_bytes(_hash(16, message))


def sampled(message: int, share: float) -> bool:
    """Return whether a message's trace is among this share of all, 0.0 to 1.0; every node says the same."""
    return trace_of(message) % _ALL < share * _ALL


def traceparent(message: int) -> str:
    """Return the trace context for a request about a message (W3C Trace Context 3.2.2)."""
    return f"00-{trace_of(message):032x}-{_root(message):016x}-01"


def spans(events: Iterable[Event], share: float = 1.0) -> Iterator[Span]:
    """Yield the spans of these events, of those messages that are sampled."""
    for event in events:
        if event.event != EventKind.CANDIDATE and sampled(event.message, share):
            yield from _of(event)


def _of(event: Event) -> Iterator[Span]:
    data = event.data
    if event.n is None:
        yield _received(event)
        for n, verdict in data.get("verdicts", {}).items():
            yield from _processed(event, int(n), verdict)
    elif event.event == EventKind.VERDICT or "trace" in data:
        yield from _processed(event, event.n, data)
    else:
        yield _happened(event)


def _received(event: Event) -> Span:
    """Return the span from the message's first byte to the moment it was safe: its id is made when it begins."""
    data = event.data
    attributes: dict[str, Attribute] = _about(event) | {
        "mail.size": int(data.get("size", 0)),
        "mail.recipients": len(data.get("to", ())),
        "mail.via": str(data.get("via", "")),
    }
    begin = min(ids.received(event.message), event.at)
    error = str(data.get("rejected") or data.get("refused", ""))[:3]
    root = _root(event.message)
    return Span("receive", "server", trace_of(event.message), root, 0, begin, event.at, attributes, error)


def _processed(event: Event, n: int, data: Mapping[str, Any]) -> Iterator[Span]:
    """Yield the spans of one pipeline, and of its steps, one after the other up to the verdict."""
    trace, own = trace_of(event.message), _id(event, "process", n)
    steps = steps_of(data)
    begin = event.at - sum(step.seconds for step in steps)
    attributes = _about(event, n) | {
        "messaging.operation.type": "process",
        "messaging.message.id": f"{ids.to_text(event.message)}/{n}",
        "mail.action": str(data.get("action") or "defer"),
        "mail.tags": " ".join(data.get("tags", ())),
        "mail.pipeline.version": int(data.get("version", 0)),
    }
    error = "defer" if event.event == EventKind.DEFERRED else ""
    yield Span("process", "consumer", trace, own, _root(event.message), begin, event.at, attributes, error)
    for number, step in enumerate(steps, 1):
        end = begin + step.seconds
        about: dict[str, Attribute] = {
            "mail.processor": step.processor,
            "mail.processor.version": step.version,
            "mail.outcome": step.outcome,
        }
        yield Span(f"step {step.processor}", "internal", trace, _id(event, "step", n, number), own, begin, end, about)
        begin = end


def _happened(event: Event) -> Span:
    """Return the span of an attempt, or of another event, which takes no time."""
    data = event.data
    attributes = _about(event, event.n or 0)
    attempt = event.event in (EventKind.DELIVERED, EventKind.DEFERRED)
    reply = str(data.get("reply") or data.get("why") or "")[:3]
    if reply.isdigit():
        attributes["smtp.reply.code"] = int(reply)
    if "attempt" in data:
        attributes["mail.attempt"] = int(data["attempt"])
    begin = event.at - float(data.get("seconds", 0.0))
    name, kind = ("deliver", "client") if attempt else (event.event, "internal")
    error = event.event if event.event in _FAILED else ""
    trace, own, root = trace_of(event.message), _id(event, "event"), _root(event.message)
    return Span(
        name, "client" if kind == "client" else "internal", trace, own, root, begin, event.at, attributes, error
    )


def _about(event: Event, n: int | None = None) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {"mail.message.id": ids.to_text(event.message)}
    return found if n is None else found | {"mail.delivery": n}


def _root(message: int) -> int:
    return int.from_bytes(_hash(8, message, "receive"))


def _id(event: Event, *what: object) -> int:
    return int.from_bytes(_hash(8, event.message, event.seq, *what))


def _hash(size: int, *parts: object) -> bytes:
    # An id of zeros means none (W3C Trace Context 3.2.2.3); no message is worth a case of its own for 2 ** -64.
    return blake2b(repr(parts).encode(), digest_size=size).digest()
