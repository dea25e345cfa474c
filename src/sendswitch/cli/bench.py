"""`bench`: how fast, as ratios to real peers in one run."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Placeholder."""
