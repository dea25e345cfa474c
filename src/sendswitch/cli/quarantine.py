"""`quarantine list|release|delete`: mail that was put aside."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.cli.output import Session, exit_code, moment
from sendswitch.cli.queue import Limit
from sendswitch.errors import SendSwitchError
from sendswitch.spool import inspect
from sendswitch.spool.states import State
from sendswitch.switch.control import ring

app = typer.Typer(help="The quarantine: mail that was put aside.", no_args_is_help=True)

Ids = Annotated[list[str], typer.Argument(help="Ids as `quarantine list` shows them.")]


@app.command("list")
def list_(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="Only this recipient's.")] = "",
    limit: Limit = 1000,
) -> None:
    """List what is in quarantine, with the reason."""
    show_kept(context.obj, State.QUARANTINED, user, limit, "the quarantine is empty")


@app.command("release")
def release(context: typer.Context, ids: Ids) -> None:
    """Deliver to the recipient; it is not filtered again. A second release is refused."""
    session: Session = context.obj
    connection = inspect.open_files(session.config().node.data)
    by = getpass.getuser()
    each(session, ids, "released", lambda id_: inspect.release(connection, id_, time.time(), by=by))


@app.command("delete")
def delete(context: typer.Context, ids: Ids) -> None:
    """Delete; until its record goes, `message requeue` brings it back."""
    session: Session = context.obj
    connection = inspect.open_files(session.config().node.data)
    by = getpass.getuser()
    each(session, ids, "deleted", lambda id_: inspect.delete(connection, id_, time.time(), by=by))


def show_kept(session: Session, state: State, user: str, limit: int, empty: str) -> None:
    """List what is kept in a state, for one recipient or, with '', for all."""
    connection = inspect.open_files(session.config().node.data)
    found = inspect.rows(connection, (state,), recipient=user, limit=limit)
    rows = [asdict(row) if session.json else _readable(row) for row in found]
    session.show(rows, ("id", "since", "from", "to", "size", "why", "until"), empty)


def each(session: Session, ids: list[str], done: str, act: Callable[[str], None]) -> None:
    """Act on each id and tell the node; what fails stops no other, and is told at the end by the exit code."""
    results: list[dict[str, str]] = []
    worst = 0
    for id_ in ids:
        try:
            act(id_)
            results.append({"id": id_, "result": done})
        except SendSwitchError as error:
            results.append({"id": id_, "result": str(error)})
            worst = max(worst, exit_code(error))
    ring(session.config().node.data)
    session.show(results, ("id", "result"), "")
    if worst:
        raise typer.Exit(worst)


def _readable(row: inspect.Row) -> dict[str, object]:
    return {
        "id": row.id,
        "since": moment(row.since),
        "from": row.sender or "<>",
        "to": row.recipient,
        "size": row.size,
        "why": row.reply or row.reason,
        "until": moment(row.due),
    }
