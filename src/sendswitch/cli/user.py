"""`user add|list|rm`: whose mail has a pipeline."""

from __future__ import annotations

from typing import Annotated

import typer

from sendswitch.cli.output import Session, moment
from sendswitch.db import users
from sendswitch.db.connect import open_database
from sendswitch.switch.control import ring

app = typer.Typer(help="Users: whose mail has a pipeline.", no_args_is_help=True)

Address = Annotated[str, typer.Argument(help="user@domain, or @domain for all of a domain.")]


@app.command("add")
def add(context: typer.Context, address: Address) -> None:
    """Add a user. Mail is delivered as before until there is a pipeline."""
    session: Session = context.obj
    config = session.config()
    users.add_user(open_database(config.database_url), address)
    session.done(f"user {address} added; now: sendswitch pipeline set {address} FILE", address=address)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List all users."""
    session: Session = context.obj
    rows = [
        {"address": user.address, "pipeline": user.version or None, "since": moment(user.created)}
        for user in users.list_users(open_database(session.config().database_url))
    ]
    session.show(rows, ("address", "pipeline", "since"), "no users; add one: sendswitch user add user@domain")


@app.command("rm")
def remove(context: typer.Context, address: Address) -> None:
    """Remove a user and the pipeline; mail is delivered unfiltered from then on."""
    session: Session = context.obj
    config = session.config()
    users.remove_user(open_database(config.database_url), address)
    running = ring(config.node.data)
    session.done(f"user {address} removed", address=address, node_told=running)
