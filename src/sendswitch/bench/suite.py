"""All measurements by name, and how they are run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sendswitch.bench.measure import (
    SESSIONS,
    SIZE,
    Result,
    backlog,
    chain,
    history,
    latency,
    line,
    memory,
    rehearsal,
    relay,
    several,
    stories,
)
from sendswitch.bench.peers import Postfix, public_folder
from sendswitch.bench.processors import looked_up, pipelines, scanners
from sendswitch.bench.users import many_users
from sendswitch.bench.workers import stalls, workers
from sendswitch.errors import Temporary

MEASURES: dict[str, Callable[[Path, bool], list[Result]]] = {
    "relay": lambda folder, quick: relay(folder, 1 if quick else 5),
    "chain": lambda folder, quick: chain(folder, 1 if quick else 7),
    "line": lambda folder, quick: line(folder, 1 if quick else 5),
    "journal": lambda folder, quick: history(folder, 1 if quick else 5),
    "replay": lambda folder, quick: rehearsal(folder, 2_000 if quick else 10_000),
    "stories": lambda folder, quick: stories(folder, 20_000 if quick else 1_000_000),
    "scanners": lambda folder, quick: scanners(folder, 1 if quick else 3),
    "pipelines": lambda folder, quick: pipelines(100 if quick else 1000),
    "lists": lambda folder, quick: looked_up(10_000 if quick else 100_000),
    "nodes": lambda folder, quick: several(folder, 1 if quick else 5),
    "users": lambda folder, quick: many_users(folder, 10_000 if quick else 100_000),
    "workers": lambda folder, quick: workers(folder, 1 if quick else 3),
    "stalls": lambda folder, quick: stalls(folder),
    "latency": lambda folder, quick: latency(folder),
    "memory": lambda folder, quick: memory(folder),
    "backlog": lambda folder, quick: backlog(folder, 10_000 if quick else 100_000),
}


def run(names: Sequence[str], *, quick: bool, tell: Callable[[str], None]) -> list[Result]:
    """Measure. Raises Temporary when a peer is missing or fails."""
    if not Postfix.available():
        raise Temporary("bench needs Postfix and root; as root: apt-get install postfix")
    results = []
    for name in names:
        tell(f"measuring {name} …")
        with public_folder("bench") as folder:
            results += MEASURES[name](folder, quick)
    return results


def machine() -> dict[str, object]:
    """Return a description of the machine, without names."""
    return {"cores": os.cpu_count(), "python": sys.version.split()[0], "sessions": SESSIONS, "size": SIZE}
