"""`bench`: how fast, as ratios to real peers in one run."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.bench import measure
from sendswitch.cli.output import Session


def bench(
    context: typer.Context,
    only: Annotated[list[str] | None, typer.Option("--only", help=f"One of {', '.join(measure.MEASURES)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round of everything, a tenth of the backlog.")] = False,
) -> None:
    """Measure against smtp-source, smtp-sink, Postfix and aiosmtpd; exit 1 when a figure is not reached."""
    session: Session = context.obj
    unknown = set(only or ()) - set(measure.MEASURES)
    if unknown:
        raise typer.BadParameter(f"{sorted(unknown)[0]} is none of {', '.join(measure.MEASURES)}")

    def tell(text: str) -> None:
        sys.stderr.write(text + "\n")

    results = measure.run(only or list(measure.MEASURES), quick=quick, tell=tell)
    if session.json:
        session.print_json({"machine": measure.machine(), "results": [asdict(result) for result in results]})
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
