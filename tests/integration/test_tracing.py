"""Traces at a collector: what a node's mail looks like there, and a collector that is away costs nothing but traces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import Counter

from sendswitch import metrics, tracing
from sendswitch.bench.peers import Node
from sendswitch.journal.events import Event
from sendswitch.journal.spans import Span, trace_of
from sendswitch.mail import ids
from sendswitch.tracing import Tracing
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, send, until


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP as a collector does, reading it with OpenTelemetry's own schema."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.status, self.spans, self.resources, self.authorization = 200, list[Any](), dict[str, str](), ""
        threading.Thread(target=self.serve_forever, args=(0.05,)).start()


class Request(BaseHTTPRequestHandler):
    """One export."""

    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorization = self.headers["Authorization"]
        if self.server.status == 200:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.resources |= {a.key: a.value.string_value for a in group.resource.attributes}
                self.server.spans += [span for scope in group.scope_spans for span in scope.spans]
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.shutdown()
    running.server_close()


def test_a_message_s_way_is_seen_at_the_collector(tmp_path: Path, collector: Collector) -> None:
    (tmp_path / "token").write_text("Bearer s3cret\n")
    section = {
        "endpoint": f"http://127.0.0.1:{collector.server_port}/v1/traces",
        "header": {"Authorization": {"file": str(tmp_path / "token")}},
    }
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK | {"tracing": section}) as node:
        node.add_pipeline("joe@example.test", "[[step]]\nuse = 'lists'\n[[step]]\nuse = 'tag'\ntags = ['X']\n")
        send(node.port, "joe@example.test")
        until(lambda: len(collector.spans) == 5, node=node)
        names = {span.name: span for span in collector.spans}
        assert set(names) == {"receive", "process", "step lists", "step tag", "deliver"}
        root = names["receive"]
        assert root.parent_span_id == b""
        assert all(span.trace_id == root.trace_id for span in collector.spans)
        assert names["deliver"].parent_span_id == names["process"].parent_span_id == root.span_id
        assert names["step tag"].parent_span_id == names["process"].span_id
        assert root.start_time_unix_nano <= root.end_time_unix_nano <= names["deliver"].end_time_unix_nano
        assert collector.resources["service.name"] == "sendswitch"
        assert collector.authorization == "Bearer s3cret"
        about = {a.key: a.value.string_value for a in root.attributes}
        shown = node.run("message", "explain", about["mail.message.id"])
        assert "joe@example.test" in shown.stdout
        assert "joe" not in str(collector.spans)
        assert "s3cret" not in node.run("config", "show", "--json").stdout
        # A collector that refuses: mail goes on, and the log says so once.
        collector.status = 400
        for _ in range(3):
            send(node.port, "joe@example.test")
            until(lambda: node.log.read_text().count('"taken":false') == 1, node=node)
        until(lambda: len(hop.parcels) == 4, node=node)
        collector.status = 200
        until(lambda: len(said(node, "message", "list")) == 4, node=node)
        send(node.port, "joe@example.test")
        until(lambda: '"taken":true' in node.log.read_text(), node=node)
        assert [node.log.read_text().count(f'"taken":{taken}') for taken in ("true", "false")] == [1, 1]
        clean(node)


def events(count: int) -> list[Event]:
    return [Event(n, ids.first_at(1.7e9) + n, None, 1.7e9, "accepted", {}) for n in range(count)]


def total(counter: Counter, outcome: str) -> float:
    samples = [sample for family in counter.collect() for sample in family.samples]
    found = [one.value for one in samples if one.name.endswith("_total") and outcome in one.labels.values()]
    return sum(found)


async def test_a_collector_that_is_slow_loses_traces_and_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST", 700)
    go, sent = threading.Event(), list[Span]()

    def export(batch: Sequence[Span]) -> bool:
        assert go.wait(20)
        sent.extend(batch)
        return True

    dropped = total(metrics.SPANS, "dropped")
    sending = Tracing(export, share=1.0)
    task = asyncio.create_task(sending.run())
    many = events(2000)
    sending.add(many[:500])
    while sending.waiting == 0:
        await asyncio.sleep(0)
    while sending.waiting:
        await asyncio.sleep(0)
    for at in (500, 1000, 1500):
        sending.add(many[at : at + 500])
    while total(metrics.SPANS, "dropped") - dropped < 800:
        await asyncio.sleep(0.01)
    go.set()
    while len(sent) < 1200:
        await asyncio.sleep(0.01)
    assert [span.trace for span in sent] == [trace_of(event.message) for event in many[:1200]]
    task.cancel()
