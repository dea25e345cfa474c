"""`user add|list|rm|restore|password`: users, who have a pipeline and may log in."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.admin import users
from sendswitch.cli.output import Session

app = typer.Typer(help="Users: whose mail has a pipeline.", no_args_is_help=True)

Address = Annotated[str, typer.Argument(help="user@domain, or @domain for all of a domain.")]


@app.command("add")
def add(context: typer.Context, address: Address) -> None:
    """Add a user. Mail is delivered as before until there is a pipeline."""
    session: Session = context.obj
    session.client.call(users.add, address=address)
    session.done(f"user {address} added; now: sendswitch pipeline set {address} FILE", address=address)


@app.command("list")
def list_(
    context: typer.Context,
    removed: Annotated[bool, typer.Option("--removed", help="Those that `user restore` can bring back.")] = False,
) -> None:
    """List all users."""
    session: Session = context.obj
    if removed:
        gone = [
            {"address": one.address, "removed": one.removed, "by": one.author}
            for one in session.client.call(users.list_removed)
        ]
        session.show(gone, ("address", "removed", "by"), "no user was removed in the last 30 days")
        return
    rows = [asdict(user) for user in session.client.call(users.list_users)]
    session.show(rows, ("address", "pipeline", "login", "since"), "no users; add one: sendswitch user add user@domain")


@app.command("password")
def password(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="user@domain.")],
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Take the password from standard input, its first line.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the user's password.")] = False,
) -> None:
    """Set a user's password for AUTH on listeners.

    Without --stdin a new password is made and shown once.
    """
    session: Session = context.obj
    if stdin and remove:
        raise typer.BadParameter("--stdin and --remove are two things; ask for one")
    given = sys.stdin.readline().rstrip("\r\n") if stdin else ""
    if stdin and not given:
        raise typer.BadParameter("standard input has no password in its first line")
    wanted = "" if remove else given or None
    new = session.client.call(users.set_password, address=address, password=wanted)
    if remove:
        session.done(f"{address} can no longer log in", address=address)
    elif given:
        session.done(f"{address} logs in with the password you gave", address=address)
    else:
        session.done(
            f"{address} logs in with this password, which is not shown again: {new}", address=address, password=new
        )


@app.command("rm")
def remove(
    context: typer.Context,
    address: Address,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a user and the pipeline. Mail is delivered unfiltered from then on. `user restore` undoes it."""
    session: Session = context.obj
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is no terminal to ask on; add --yes")
        typer.confirm(f"Remove {address} and the pipeline, and deliver this mail unfiltered?", abort=True)
    session.client.call(users.remove, address=address)
    running, undo = session.client.running, f"sendswitch user restore {address}"
    session.done(f"user {address} removed; undo: {undo}", address=address, undo=undo, node_told=running)


@app.command("restore")
def restore(context: typer.Context, address: Address) -> None:
    """Bring a removed user back, with password and pipeline. It is possible for 30 days."""
    session: Session = context.obj
    version = session.client.call(users.restore, address=address)
    running = session.client.running
    pipeline = f"version {version} of the pipeline is live" if version else "there is no pipeline"
    session.done(f"user {address} is back; {pipeline}", address=address, version=version, node_told=running)
