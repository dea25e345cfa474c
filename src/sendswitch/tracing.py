"""Traces for an OpenTelemetry collector (OTLP over HTTP).

Best effort: spans that the collector does not take in time are counted and dropped, for the journal has everything.
Nothing waits for it: the journal's relay hands events over, and a thread makes and sends the spans.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from sendswitch import logs, metrics
from sendswitch.errors import InvalidConfiguration
from sendswitch.journal.events import Event
from sendswitch.journal.spans import Span, spans

# Events that wait to be sent; at some hundred bytes each, a few megabytes. What comes on top is forgotten.
MOST = 20_000
# Events whose spans go out in one request.
PIECE = 500
# Seconds for one request, retries within it included.
LIMIT = 10.0

Export = Callable[[Sequence[Span]], bool]
"""A function that sends spans. It blocks, and returns whether the collector took them."""


class Tracing:
    """The sender of the spans of a share of all messages."""

    def __init__(self, export: Export, *, share: float) -> None:
        self._export, self._share = export, share
        self._waiting: deque[Event] = deque()
        self._some = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """Return how many events are not yet being sent."""
        return len(self._waiting)

    def add(self, events: Sequence[Event]) -> None:
        """Take events over; never waits. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._take, events)

    def _take(self, events: Sequence[Event]) -> None:
        room = MOST - len(self._waiting)
        self._waiting.extend(events[:room])
        if len(events) > room:
            metrics.SPANS.labels("dropped").inc(len(events) - room)
        self._some.set()

    async def run(self) -> None:
        """Send spans for ever."""
        failing = False
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                events = [self._waiting.popleft() for _ in range(min(PIECE, len(self._waiting)))]
                taken = await asyncio.to_thread(self._send, events)
                if taken is failing:
                    failing = not taken
                    logs.traces(taken=taken)

    def _send(self, events: Sequence[Event]) -> bool:
        made = list(spans(events, self._share))
        taken = not made or self._export(made)
        metrics.SPANS.labels("sent" if taken else "failed").inc(len(made))
        return taken


def otlp(endpoint: str, headers: Mapping[str, str], node: str) -> Export:
    """Return the exporter to a collector's URL, such as http://127.0.0.1:4318/v1/traces. Raises
    InvalidConfiguration.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import SpanExportResult
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
    except ModuleNotFoundError as error:
        raise InvalidConfiguration(
            [f"tracing.endpoint needs {error.name}, which is not installed; pip install 'sendswitch[otel]'"]
        ) from error
    exporter = OTLPSpanExporter(endpoint=endpoint, headers=dict(headers), timeout=LIMIT)
    resource = Resource.create({"service.name": "sendswitch", "service.instance.id": node})
    sampled = TraceFlags(TraceFlags.SAMPLED)

    def readable(span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace, span.id, is_remote=False, trace_flags=sampled),
            parent=SpanContext(span.trace, span.parent, is_remote=True, trace_flags=sampled) if span.parent else None,
            resource=resource,
            attributes=dict(span.attributes),
            kind=SpanKind[span.kind.upper()],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=int(span.begin * 1e9),
            end_time=int(span.end * 1e9),
        )

    def export(batch: Sequence[Span]) -> bool:
        try:
            return exporter.export([readable(span) for span in batch]) is SpanExportResult.SUCCESS
        except Exception as error:
            logs.failed("sending traces", error=error)
            return False

    return export
