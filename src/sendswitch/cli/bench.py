"""`bench`: how fast, as ratios to real peers in one run."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.bench import suite
from sendswitch.cli.output import Session


def bench(
    context: typer.Context,
    only: Annotated[list[str] | None, typer.Option("--only", help=f"One of {', '.join(suite.MEASURES)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round of everything, a tenth of the backlog.")] = False,
) -> None:
    """Measure against other mail programs. Exits with 1 if a target is missed."""
    session: Session = context.obj
    unknown = set(only or ()) - set(suite.MEASURES)
    if unknown:
        raise typer.BadParameter(f"{sorted(unknown)[0]} is none of {', '.join(suite.MEASURES)}")

    def tell(text: str) -> None:
        sys.stderr.write(text + "\n")

    results = suite.run(only or list(suite.MEASURES), quick=quick, tell=tell)
    if session.json:
        session.print_json({"machine": suite.machine(), "results": [asdict(result) for result in results]})
    else:
        rows = [
            {
                "what": result.name,
                "measured": f"{result.value:.2f}",
                "must_be": result.must,
                "reached": "yes" if result.reached else "NO",
                "figures": result.detail,
            }
            for result in results
        ]
        session.show(rows, ("what", "measured", "must_be", "reached", "figures"), "")
    if not all(result.reached for result in results):
        raise typer.Exit(1)
