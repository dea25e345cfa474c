"""Commands for backups: one file with all data, made while the node runs, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sendswitch.admin import backup
from sendswitch.cli.output import Session, readable

app = typer.Typer(help="Backups of spool and database.", no_args_is_help=True)


@app.command("create")
def create(context: typer.Context, file: Annotated[Path, typer.Argument(help="A new file; a tar archive.")]) -> None:
    """Copy all data into one file while the node runs.

    The data are the spool, the database and the outbox of webhooks.
    """
    session: Session = context.obj
    with Console(stderr=True).status("") as shown:
        made = backup.create(session.installation, session.actor, file=file, progress=shown.update)
    session.done(
        f"{made.messages} messages and {made.rows} rows are in {file}",
        file=str(file),
        messages=made.messages,
        rows=made.rows,
        created=made.created,
    )


@app.command("restore")
def restore(context: typer.Context, file: Annotated[Path, typer.Argument(help="What `create` made.")]) -> None:
    """Put a backup into an empty folder and database. Its mail is suspended until you resume it."""
    session: Session = context.obj
    made = backup.restore(session.installation, session.actor, file=file)
    session.done(
        f"{made.messages} messages and {made.rows} rows are restored from {readable(made.created)}. What was on its"
        " way is suspended, because it may have been delivered since; look at `sendswitch queue list`, then"
        " `sendswitch queue resume`",
        messages=made.messages,
        rows=made.rows,
        created=made.created,
    )
