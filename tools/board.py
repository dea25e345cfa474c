"""Write deploy/grafana.json: a board with what an administrator looks at first. A test holds it to the code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Title, unit, and the queries with their legends.
PANELS = [
    ("Unaccounted recipients (must be 0)", "none", [("sendswitch_unaccounted_recipients", "")]),
    (
        "Taken and ended",
        "reqps",
        [
            ("rate(sendswitch_messages_accepted_total[5m])", "accepted"),
            ("sum by (state) (rate(sendswitch_deliveries_total[5m]))", "{{state}}"),
        ],
    ),
    ("Verdicts", "reqps", [("sum by (action) (rate(sendswitch_verdicts_total[5m]))", "{{action}}")]),
    (
        "Queue",
        "none",
        [
            ("sendswitch_queue_depth", "{{state}}"),
            ("sendswitch_quarantine_messages", "quarantine"),
        ],
    ),
    ("Oldest delivery on its way", "s", [("sendswitch_queue_oldest_seconds", "")]),
    (
        "Deferrals and missed deadlines",
        "reqps",
        [
            ("sum by (why) (rate(sendswitch_deferrals_total[5m]))", "{{why}}"),
            ("rate(sendswitch_deadlines_missed_total[5m])", "deadlines missed"),
        ],
    ),
    (
        "Steps, 95th percentile",
        "s",
        [
            (
                "histogram_quantile(0.95, sum by (processor, le)"
                " (rate(sendswitch_processor_duration_seconds_bucket[5m])))",
                "{{processor}}",
            ),
        ],
    ),
    (
        "Steps that failed",
        "reqps",
        [("sum by (processor) (rate(sendswitch_processor_errors_total[5m]))", "{{processor}}")],
    ),
    (
        "Group commit, 95th percentile",
        "s",
        [
            ("histogram_quantile(0.95, rate(sendswitch_spool_commit_seconds_bucket[5m]))", ""),
        ],
    ),
    ("Events waiting for the journal", "none", [("sendswitch_outbox_events", "")]),
    (
        "Connections",
        "none",
        [
            ("sendswitch_smtp_connections", "open"),
            ("rate(sendswitch_reinject_connect_failures_total[5m])", "next hop failures"),
        ],
    ),
    ("Canary", "s", [("sendswitch_canary_seconds", "through the chain")]),
]


def board() -> dict[str, object]:
    """The board as Grafana imports it; the data source is chosen there."""
    panels = []
    for n, (title, unit, queries) in enumerate(PANELS):
        targets = [
            {"refId": chr(65 + k), "expr": query, "legendFormat": legend, "datasource": "${datasource}"}
            for k, (query, legend) in enumerate(queries)
        ]
        panels.append(
            {
                "id": n + 1,
                "type": "timeseries",
                "title": title,
                "datasource": "${datasource}",
                "gridPos": {"h": 8, "w": 8, "x": n % 3 * 8, "y": n // 3 * 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
    return {
        "title": "SendSwitch",
        "uid": "sendswitch",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "deploy" / "grafana.json"
    target.write_text(json.dumps(board(), indent=1) + "\n")
    sys.stdout.write(f"{len(PANELS)} panels in {target.name}\n")
