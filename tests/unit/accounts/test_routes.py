"""Routes: where a pipeline runs."""

from __future__ import annotations

import pytest

from sendswitch.accounts.routes import make_route
from sendswitch.conditions.pipeline import LIGHT
from sendswitch.config.model import Config
from sendswitch.processors import registry
from sendswitch.processors.base import READING
from sendswitch.routing import HERE, POOL


@pytest.mark.parametrize(
    ("pipeline", "queue"),
    [
        ("", HERE),
        ("[[step]]\nuse = 'lists'\n[[step]]\nuse = 'pass'\n", HERE),
        ("[[step]]\nuse = 'tag'\ntags = ['BIG']\nwhen = 'size > 1MB from:x'\n", HERE),
        ("[[step]]\nuse = 'tag'\ntags = ['X']\nwhen = 'is:ambiguous'\n", POOL),
        ("[[step]]\nuse = 'lists'\n[[step]]\nuse = 'sieve'\nscript = 'keep;'\n", POOL),
        ("[[step]]\nuse = 'reply'\ntext = 'away'\n", POOL),
    ],
)
def test_only_a_light_pipeline_runs_in_the_node(pipeline: str, queue: str) -> None:
    own = registry.check(pipeline, "ann@example.test")
    assert make_route("ann@example.test", 1, own.summary, Config()).queue == queue


def test_a_light_step_never_waits_and_reads_no_content() -> None:
    waiting = {name: getattr(registry.find(name), "waits", True) for name in registry.names()}
    assert {name for name in LIGHT if waiting[name]} == set()
    assert {name for name, waits in waiting.items() if not waits} == LIGHT
    assert frozenset() == LIGHT & READING
