"""`queue list|flush`: what is on its way."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.cli.output import Session, moment
from sendswitch.spool import inspect
from sendswitch.spool.states import State
from sendswitch.switch.control import ring

app = typer.Typer(help="The queue: mail on its way or held.", no_args_is_help=True)

Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Most rows.")]


@app.command("list")
def list_(context: typer.Context, limit: Limit = 1000) -> None:
    """List deliveries that are not final, the oldest first."""
    session: Session = context.obj
    connection = inspect.open_files(session.config().node.data)
    found = inspect.rows(connection, (State.ACCEPTED, State.DECIDED, State.HELD), limit=limit)
    rows = [asdict(row) if session.json else _readable(row) for row in found]
    columns = ("id", "since", "from", "to", "size", "state", "next_try", "attempts", "last_answer")
    session.show(rows, columns, "the queue is empty")


@app.command("flush")
def flush(context: typer.Context) -> None:
    """Try everything that waits for another attempt now."""
    session: Session = context.obj
    data = session.config().node.data
    count = inspect.flush(inspect.open_files(data), time.time())
    running = ring(data)
    hint = "" if running else "; no node is running here, it will be tried at the next start"
    session.done(f"{count} deliveries are due now{hint}", flushed=count, node_told=running)


def _readable(row: inspect.Row) -> dict[str, object]:
    return {
        "id": row.id,
        "since": moment(row.received),
        "from": row.sender or "<>",
        "to": row.recipient,
        "size": row.size,
        "state": row.state,
        "next_try": moment(row.due) if row.attempts or row.state == State.HELD else "now",
        "attempts": row.attempts,
        "last_answer": row.reply or row.reason,
    }
