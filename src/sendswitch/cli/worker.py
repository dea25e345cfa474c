"""`worker list`: the workers of the running node."""

from __future__ import annotations

from dataclasses import asdict

import typer

from sendswitch.admin import node
from sendswitch.cli.output import Session

app = typer.Typer(help="Workers, which run pipelines for the node.", no_args_is_help=True)


@app.callback()
def workers() -> None:
    """Workers, which run pipelines for the node."""


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the worker processes that are connected, with their tasks."""
    session: Session = context.obj
    rows = [asdict(worker) for worker in session.client.call(node.list_workers)]
    columns = ("name", "user", "pid", "since", "places", "leased", "done")
    session.show(rows, columns, "no worker process is connected")
