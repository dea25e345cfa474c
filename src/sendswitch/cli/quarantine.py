"""`quarantine list|release|delete`: mail that was put aside; one by one, or all that a search finds."""

from __future__ import annotations

import getpass
import sqlite3
import time
from collections.abc import Callable
from typing import Annotated

import typer

from sendswitch.cli.codes import EX_TEMPFAIL
from sendswitch.cli.output import Bytes, Session, exit_code, moment
from sendswitch.cli.queue import ALL, SEARCH, DryRun, Limit, Words, delivery_facts
from sendswitch.cli.words import read_terms
from sendswitch.control import ring
from sendswitch.errors import NotFound, SendSwitchError, in_words
from sendswitch.journal.search import OF_SPOOLED
from sendswitch.spool import admin
from sendswitch.spool.states import State

app = typer.Typer(help="The quarantine: mail that was put aside.", no_args_is_help=True)

# Columns that a narrow terminal does without, the first first.
SPARE = ("size", "until", "from", "since", "subject")

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids as `list` shows them.")]
User = Annotated[str, typer.Option("--user", help="Only this recipient's.")]
Where = Annotated[list[str] | None, typer.Option("--where", help="All that this search finds, instead of ids.")]


@app.command("list", context_settings=SEARCH)
def list_(
    context: typer.Context,
    words: Words = None,
    user: User = "",
    limit: Limit = 1000,
) -> None:
    """List what is in quarantine, with the reason."""
    show_kept(context.obj, State.QUARANTINED, words or [], user, limit, "the quarantine is empty")


@app.command("release")
def release(context: typer.Context, ids: Ids = None, where: Where = None, dry_run: DryRun = False) -> None:
    """Deliver to the recipient; it is not filtered again. A second release is refused."""
    session: Session = context.obj
    connection = admin.open_files(session.config().node.data)
    by = getpass.getuser()
    chosen = choose(session, State.QUARANTINED, ids, where, dry_run)
    each(session, chosen, "released", lambda id_: admin.release(connection, id_, time.time(), by=by))


@app.command("delete")
def delete(context: typer.Context, ids: Ids = None, where: Where = None, dry_run: DryRun = False) -> None:
    """Delete; until its record goes, `message requeue` brings it back."""
    session: Session = context.obj
    connection = admin.open_files(session.config().node.data)
    by = getpass.getuser()
    chosen = choose(session, State.QUARANTINED, ids, where, dry_run)
    each(session, chosen, "deleted", lambda id_: admin.delete(connection, id_, time.time(), by=by))


def show_kept(session: Session, state: State, words: list[str], user: str, limit: int, empty: str) -> None:
    """List what is kept in a state and a search finds, for one recipient or, with '', for all."""
    connection = admin.open_files(session.config().node.data)
    terms = read_terms([*words, *([f"user:{user}"] if user else ())], OF_SPOOLED)
    _list(session, admin.rows(connection, (state,), terms=terms, limit=limit), empty)


def choose(session: Session, state: State, ids: list[str] | None, where: list[str] | None, dry_run: bool) -> list[str]:
    """Return the ids that are meant, given or found. With `dry_run` they are listed and the command ends."""
    if bool(ids) == bool(where):
        raise typer.BadParameter("give ids, or --where with a search; one of both")
    chosen = list(ids or ())
    if where or dry_run:
        connection = admin.open_files(session.config().node.data)
        if where:
            found = admin.rows(connection, (state,), terms=read_terms(where, OF_SPOOLED), limit=ALL)
        else:
            found = [admin.row(connection, id_) for id_ in chosen]
        if dry_run:
            _list(session, found, "no delivery matches")
            raise typer.Exit(0)
        chosen = [row.id for row in found]
        if not chosen:
            raise NotFound(f"no {state} delivery matches")
    return chosen


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
            worst = max(worst, exit_code(error) or 1)
        except sqlite3.Error as error:
            results.append({"id": id_, "result": f"the spool cannot be used: {in_words(error)}"})
            worst = EX_TEMPFAIL
    ring(session.config().node.data)
    session.show(results, ("id", "result"), "no delivery matches")
    if worst:
        raise typer.Exit(worst)


def _list(session: Session, found: list[admin.Row], empty: str) -> None:
    rows = [delivery_facts(row) if session.json else _listed(row) for row in found]
    session.show(rows, ("id", "since", "from", "to", "subject", "size", "why", "until"), empty, spare=SPARE)


def _listed(row: admin.Row) -> dict[str, object]:
    return {
        "id": row.id,
        "since": moment(row.since),
        "from": row.sender or "<>",
        "to": row.recipient,
        "subject": row.subject,
        "size": Bytes(row.size),
        "why": row.reply or row.reason,
        "until": moment(row.due),
    }
