"""Every metric with its labels and help (Prometheus naming: base units, `_total` for counters).

Labels have few values; an address is never one.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()

SMTP_SESSIONS = Counter("sendswitch_smtp_sessions", "SMTP connections accepted.", registry=REGISTRY)
SMTP_CONNECTIONS = Gauge("sendswitch_smtp_connections", "SMTP connections open now.", registry=REGISTRY)
LOGINS = Counter("sendswitch_smtp_logins", "Passwords given to listeners, by outcome.", ["outcome"], registry=REGISTRY)
ACCEPTED = Counter("sendswitch_messages_accepted", "Messages made safe and acknowledged.", registry=REGISTRY)
OVERLOAD = Gauge(
    "sendswitch_overloaded", "1 while no mail is taken because there is too much to do.", registry=REGISTRY
)
REFUSED = Counter("sendswitch_messages_refused", "Messages not taken, by reply class.", ["class"], registry=REGISTRY)
VERDICTS = Counter("sendswitch_verdicts", "Verdicts that counted, by action.", ["action"], registry=REGISTRY)
DEFERRALS = Counter(
    "sendswitch_deferrals", "Answers that put a decision off, and retries of delivery.", ["why"], registry=REGISTRY
)
CANARY_SECONDS = Gauge("sendswitch_canary_seconds", "Time the last canary took through the chain.", registry=REGISTRY)
CANARY_FAILURES = Counter("sendswitch_canary_failures", "Canaries that did not come through.", registry=REGISTRY)
CANDIDATES = Counter(
    "sendswitch_candidates", "Answers of candidates beside the live ones, by outcome.", ["outcome"], registry=REGISTRY
)
WEBHOOKS = Counter(
    "sendswitch_webhook_attempts", "Tries to tell a webhook, by outcome.", ["outcome"], registry=REGISTRY
)
BACKGROUND_FAILURES = Counter(
    "sendswitch_background_failures", "Failures of work beside the mail, by part.", ["part"], registry=REGISTRY
)
REOFFERED = Counter("sendswitch_tasks_reoffered", "Tasks that were lost and offered again.", registry=REGISTRY)
DEADLINES = Counter("sendswitch_deadlines_missed", "Tasks without a verdict in time.", registry=REGISTRY)
ENDED = Counter("sendswitch_deliveries", "Deliveries that ended, by state.", ["state"], registry=REGISTRY)
QUEUE = Gauge(
    "sendswitch_queue_depth", "Deliveries in the spool that are not final, by state.", ["state"], registry=REGISTRY
)
QUEUE_OLDEST = Gauge("sendswitch_queue_oldest_seconds", "Age of the oldest delivery on its way.", registry=REGISTRY)
QUARANTINED = Gauge("sendswitch_quarantine_messages", "Deliveries in quarantine.", registry=REGISTRY)
OUTBOX = Gauge("sendswitch_outbox_events", "Events that wait for the journal.", registry=REGISTRY)
RECORDED = Gauge("sendswitch_recorded_bytes", "Content kept of final messages.", registry=REGISTRY)
SPANS = Counter(
    "sendswitch_trace_spans",
    "Spans for the OpenTelemetry collector, and events dropped before.",
    ["outcome"],
    registry=REGISTRY,
)
UNACCOUNTED = Gauge(
    "sendswitch_unaccounted_recipients",
    "What the audit finds wrong in spool and journal; must be 0.",
    registry=REGISTRY,
)
DAMAGED = Counter(
    "sendswitch_damaged_deliveries", "Deliveries held because their content is not what was stored.", registry=REGISTRY
)
POISON = Counter(
    "sendswitch_poison_deliveries", "Deliveries put into quarantine because their pipeline broke.", registry=REGISTRY
)
JOURNAL_FAILURES = Counter("sendswitch_journal_failures", "Batches the database did not take.", registry=REGISTRY)
SPOOL_COMMIT = Histogram(
    "sendswitch_spool_commit_seconds",
    "Duration of one durable group commit.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
    registry=REGISTRY,
)
SPOOL_GROUP = Histogram(
    "sendswitch_spool_group_operations",
    "Operations in one group commit.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
    registry=REGISTRY,
)
SPOOL_FAILURES = Counter("sendswitch_spool_failures", "Commits that failed.", registry=REGISTRY)
NEXT_HOP_CONNECT_FAILURES = Counter(
    "sendswitch_reinject_connect_failures", "Connections to the next hop that failed.", registry=REGISTRY
)
WORKERS = Gauge("sendswitch_workers", "Worker processes that are connected.", registry=REGISTRY)
TASKS_LOST = Counter(
    "sendswitch_tasks_lost", "Tasks whose worker died or hung; they are offered again.", registry=REGISTRY
)
OFFLINE = Counter(
    "sendswitch_offline",
    "Deliveries for which no worker was online, by what came of them.",
    ["then"],
    registry=REGISTRY,
)
ANSWERS_IGNORED = Counter(
    "sendswitch_answers_ignored",
    "Answers of workers that had no effect: late, forged or for another task.",
    registry=REGISTRY,
)
PROCESSOR_SECONDS = Histogram(
    "sendswitch_processor_duration_seconds", "Time in one processor.", ["processor"], registry=REGISTRY
)
PROCESSOR_ERRORS = Counter(
    "sendswitch_processor_errors", "Processors that failed or ran out of time.", ["processor"], registry=REGISTRY
)


@cache
def _ended(state: str) -> Counter:
    return ENDED.labels(state)


def ended(state: str) -> None:
    """Count one delivery that ended; on the path of every message, so the label is looked up once."""
    _ended(state).inc()


@cache
def processor_seconds(name: str) -> Histogram:
    """Return the histogram of one processor; looked up once."""
    return PROCESSOR_SECONDS.labels(name)


def value(gauge: Gauge) -> float:
    """Return a gauge's value now."""
    return float(next(iter(gauge.collect())).samples[0].value)


def text() -> bytes:
    """Return all metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
