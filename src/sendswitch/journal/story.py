"""One message's story in sentences.

`timeline` returns every event in order. `explain` returns one recipient's story: its origin, its pipeline, each step
with its facts and result, every attempt with the next hop's reply, and the end. Both are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sendswitch.journal.events import BEGINNINGS, Event, EventKind


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a timeline. `recipient` is '' for the whole message; `about` has the fields of the event."""

    at: float
    recipient: str
    event: str
    text: str
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step of a pipeline as it was recorded."""

    processor: str
    version: str
    seconds: float
    outcome: str
    saw: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One recipient's story. `state` is the present state; `sentences` are in order."""

    recipient: str
    state: str
    sentences: tuple[str, ...]
    steps: tuple[RecordedStep, ...]


# The last sentence of a story, by state.
_STANDS = {
    "accepted": "It waits for its pipeline's verdict or for its next attempt.",
    "decided": "It is decided and waits to be carried out.",
    "held": "It is held until its time is over, or `sendswitch hold answer` decides it.",
    "quarantined": "It is in quarantine; `sendswitch quarantine release` lets it go.",
    "delivered": "It was delivered.",
    "forwarded": "It was forwarded.",
    "rejected": "It was refused while the sender waited; we never had it.",
    "refused": "It was not taken; its sender still has it, or gave up.",
    "bounced": "It was not delivered, and the sender was told.",
    "discarded": "It was thrown away.",
    "failed": "It was not delivered; the sender was not told.",
}


def recipients(events: Iterable[Event]) -> dict[int, str]:
    """Return the recipients by delivery number, with the targets of forwards."""
    found: dict[int, str] = {}
    for event in events:
        if event.n is None:
            found |= dict(enumerate(event.data.get("to", ())))
        for n, address, _ in event.data.get("children", ()):
            found[int(n)] = address
    return found


def timeline(events: Sequence[Event]) -> list[Line]:
    """Return every event in order, each in one sentence."""
    to = recipients(events)
    return [
        Line(e.at, to.get(e.n, "") if e.n is not None else "", e.event, _sentence(e), e.data)
        for e in sorted(events, key=lambda event: event.seq)
    ]


def explain(events: Sequence[Event], n: int, state: str) -> Explanation:
    """Return the story of delivery `n`, which stands in `state`."""
    ordered = sorted(events, key=lambda event: event.seq)
    to = recipients(ordered).get(n, "")
    sentences: list[str] = []
    steps: list[RecordedStep] = []
    for event in ordered:
        if event.n is None and (event.event not in BEGINNINGS or n < len(event.data.get("to", ()))):
            sentences += _beginning(event, n)
            steps += steps_of(event.data.get("verdicts", {}).get(str(n), {}))
        elif any(int(child) == n for child, _, _ in event.data.get("children", ())):
            sentences.append(f"It came here {_CAME.get(event.event, 'into the queue again')} from delivery {event.n}.")
        elif event.n == n and event.event == EventKind.CANDIDATE:
            sentences.append(_sentence(event))
        elif event.n == n:
            told = steps_of(event.data)
            steps += told
            sentences += [*_whose(event.data), *numbered(told), _sentence(event)]
    sentences.append(_STANDS.get(state, f"It is {state}."))
    return Explanation(to, state, tuple(sentences), tuple(steps))


def _beginning(event: Event, n: int) -> list[str]:
    verdict = event.data.get("verdicts", {}).get(str(n), {})
    judged = [*_whose(verdict), *numbered(steps_of(verdict)), verdict_told(verdict)] if verdict else []
    return [_sentence(event), *judged]


def _whose(data: Mapping[str, Any]) -> list[str]:
    owner, version, worker = data.get("pipeline"), data.get("version"), data.get("worker")
    if not owner:
        return []
    if not worker:
        return [f"The pipeline of {owner}, version {version}, was asked."] if version else []
    if data.get("file"):
        return [f"The worker {worker} of {owner} ran a pipeline from a file, digest {data['file']}."]
    return [f"The worker {worker} of {owner} ran version {version} of the pipeline."]


def numbered(steps: Iterable[RecordedStep]) -> list[str]:
    """Return each step in a sentence that begins with its number."""
    return [f"Step {number}: {_told(step)}" for number, step in enumerate(steps, 1)]


def steps_of(data: Mapping[str, Any]) -> list[RecordedStep]:
    """Return the steps in a verdict's trace."""
    return [
        RecordedStep(
            str(step.get("processor", "")),
            str(step.get("version", "")),
            float(step.get("seconds", 0.0)),
            str(step.get("outcome", "")),
            str(step.get("saw", "")),
        )
        for step in data.get("trace", ())
    ]


def _told(step: RecordedStep) -> str:
    version = f" (version {step.version})" if step.version else ""
    saw = f": {step.saw}" if step.saw else ""
    if step.outcome == "not asked":
        return f"{step.processor}{version} was not asked{saw}."
    return f"{step.processor}{version} took {step.seconds * 1000:.1f} ms and said {step.outcome}{saw}."


def verdict_told(verdict: Mapping[str, Any]) -> str:
    """Return a verdict, as JSON, in a sentence."""
    action = str(verdict.get("action", "no action")).upper()
    tags = f" with the tags {', '.join(verdict['tags'])}" if verdict.get("tags") else ""
    score = f"{' and' if tags else ' with'} the score {verdict['score']:g}" if verdict.get("score") is not None else ""
    reason = f", because {verdict['reason']}" if verdict.get("reason") else ""
    reply = f"; a sender is told {verdict['reply']}" if verdict.get("reply") else ""
    return f"The verdict was {action}{tags}{score}{reason}{reply}."


def _because(data: Mapping[str, Any]) -> str:
    return f", because {data['reason']}" if data.get("reason") else ""


def _sentence(event: Event) -> str:
    if "by" in event.data:
        return _by_hand(event)
    told = _SENTENCES.get(event.event)
    return told(event.event, event.data) if told is not None else _other(event.event, event.data)


def _other(kind: str, data: Mapping[str, Any]) -> str:
    return f"{kind.capitalize()}: {data.get('reason', '')}".rstrip(": ") + "."


def _verdict(kind: str, data: Mapping[str, Any]) -> str:
    return verdict_told(data)


def _delivered(kind: str, data: Mapping[str, Any]) -> str:
    return f"The next hop took it in {data.get('seconds', 0) * 1000:.0f} ms and said: {data.get('reply')}."


def _candidate(kind: str, data: Mapping[str, Any]) -> str:
    same = f"would have been {data.get('now')}" if data.get("differing") else "agreed"
    why = f", because {data['reason']}" if data.get("differing") else ""
    return f"The candidate, version {data.get('version')}, {same}{why}."


def _deferred(kind: str, data: Mapping[str, Any]) -> str:
    what = "No answer from the pipeline" if "trace" in data else "Not delivered"
    doubt = "; it may have arrived all the same" if data.get("may_have_been_delivered") else ""
    return f"{what} at attempt {data.get('attempt')}: {data.get('why')}{doubt}; tried again later."


def _given_up(kind: str, data: Mapping[str, Any]) -> str:
    told = "the sender was sent a report" if kind == EventKind.BOUNCED else "nobody could be told"
    return f"Given up, {told}: {data.get('reply')} ({data.get('reason')})."


def _forwarded(kind: str, data: Mapping[str, Any]) -> str:
    copy = ", with a copy here" if data.get("copy") else ""
    sender = f", with a sender of {data['srs']}" if data.get("srs") else ""
    return f"Forwarded to {', '.join(data.get('to', ())) or 'nobody new'}{copy}{sender}."


def _put_aside(kind: str, data: Mapping[str, Any]) -> str:
    return f"{kind.capitalize()}: {data.get('reason') or 'the pipeline asked for it'}."


def _delay_over(kind: str, data: Mapping[str, Any]) -> str:
    return "The delay was over; the pipeline is asked again."


def _hold_expired(kind: str, data: Mapping[str, Any]) -> str:
    return f"The time of its hold was over; then: {verdict_told(data.get('then', {}))}"


def _by_hand(event: Event) -> str:
    """Return a sentence about a person's act."""
    data = event.data
    rule = data.get("rule", data.get("order"))  # older events have "order"
    by = f"by {data['by']}" + (f" with rule {rule}" if rule else "") + _because(data)
    match event.event:
        case EventKind.REQUEUED:
            return f"Put into the queue again {'without its pipeline ' if data.get('unfiltered') else ''}{by}."
        case EventKind.SENT_ON:
            return f"Sent on to {', '.join(str(address) for _, address, _ in data.get('children', ()))} {by}."
        case EventKind.ANSWERED:
            return f"Answered {str(data.get('answer')).upper()} {by}."
    return f"{event.event.capitalize()} {by}."


_THROUGH = {
    "filter": "after the queue (content filter)",
    "proxy": "before the queue (proxy filter)",
    "report": "as a report of our own",
}


def _came(kind: str, data: Mapping[str, Any]) -> str:
    client = data.get("client", {})
    where = client.get("name") or client.get("helo") or ""
    address = f" [{client['address']}]" if client.get("address") else ""
    by = f" from {where or 'a client'}{address}" if where or address else ""
    by += f" as {client['login']}" if client.get("login") else ""
    subject = f', "{data["subject"]}"' if data.get("subject") else ""
    begin = "Accepted" if kind == EventKind.ACCEPTED else "Refused"
    through = _THROUGH.get(data.get("via", ""), str(data.get("via", "")))
    came = f"{begin} {through}{by}: from <{data.get('from', '')}>, {data.get('size', 0)} bytes{subject}."
    for address, sender in data.get("returned", {}).items():
        came += f" It came for <{address}>, which stands for <{sender}>."
    for state in ("delivered", "rejected", "refused"):
        if state in data:
            came += f" The sender was told: {data[state]}."
    return came + (f" That was because {data['why']}." if data.get("why") else "")


_CAME: Mapping[str, str] = {EventKind.FORWARDED: "by a forward", EventKind.SENT_ON: "by hand"}
_SENTENCES: Mapping[str, Callable[[str, Mapping[str, Any]], str]] = {
    EventKind.ACCEPTED: _came,
    EventKind.REJECTED: _came,
    EventKind.REFUSED: _came,
    EventKind.VERDICT: _verdict,
    EventKind.CANDIDATE: _candidate,
    EventKind.DELIVERED: _delivered,
    EventKind.DEFERRED: _deferred,
    EventKind.FORWARDED: _forwarded,
    EventKind.BOUNCED: _given_up,
    EventKind.FAILED: _given_up,
    EventKind.HELD: _put_aside,
    EventKind.DELAY_OVER: _delay_over,
    EventKind.HOLD_EXPIRED: _hold_expired,
    EventKind.QUARANTINED: _put_aside,
}
