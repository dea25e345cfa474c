"""`user add|list|rm|password`: whose mail has a pipeline, and who may log in."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer

from sendswitch.accounts import users
from sendswitch.accounts.passwords import generate, set_password
from sendswitch.cli.output import Session, moment
from sendswitch.control import ring
from sendswitch.db.connect import open_database

app = typer.Typer(help="Users: whose mail has a pipeline.", no_args_is_help=True)

Address = Annotated[str, typer.Argument(help="user@domain, or @domain for all of a domain.")]


@app.command("add")
def add(context: typer.Context, address: Address) -> None:
    """Add a user. Mail is delivered as before until there is a pipeline."""
    session: Session = context.obj
    config = session.config()
    users.add_user(open_database(config.database_url), address)
    ring(config.node.data)
    session.done(f"user {address} added; now: sendswitch pipeline set {address} FILE", address=address)


@app.command("list")
def list_(
    context: typer.Context,
    removed: Annotated[bool, typer.Option("--removed", help="Those that `user restore` can bring back.")] = False,
) -> None:
    """List all users."""
    session: Session = context.obj
    if removed:
        found = users.list_removed(open_database(session.config().database_url, migrate=False))
        gone = [{"address": one.address, "removed": moment(one.removed), "by": one.author} for one in found]
        session.show(gone, ("address", "removed", "by"), "no user was removed in the last 30 days")
        return
    rows = [
        {
            "address": user.address,
            "pipeline": user.version or None,
            "login": user.login,
            "since": moment(user.created),
        }
        for user in users.list_users(open_database(session.config().database_url, migrate=False))
    ]
    session.show(rows, ("address", "pipeline", "login", "since"), "no users; add one: sendswitch user add user@domain")


@app.command("password")
def password(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="user@domain.")],
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Take the password from standard input, its first line.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="The user can no longer log in.")] = False,
) -> None:
    """Give a user a password for AUTH on listeners. It is a new one, shown once, or one of your own."""
    session: Session = context.obj
    if stdin and remove:
        raise typer.BadParameter("--stdin and --remove are two things; ask for one")
    given = sys.stdin.readline().rstrip("\r\n") if stdin else ""
    if stdin and not given:
        raise typer.BadParameter("standard input has no password in its first line")
    new = "" if remove else given or generate()
    set_password(open_database(session.config().database_url), address, new)
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
    config = session.config()
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is no terminal to ask on; add --yes")
        typer.confirm(f"Remove {address} and the pipeline, and deliver this mail unfiltered?", abort=True)
    users.remove_user(open_database(config.database_url), address, author=getpass.getuser())
    running = ring(config.node.data)
    undo = f"sendswitch user restore {address}"
    session.done(f"user {address} removed; undo: {undo}", address=address, undo=undo, node_told=running)


@app.command("restore")
def restore(context: typer.Context, address: Address) -> None:
    """Bring a removed user back, with password and pipeline. It is possible for 30 days."""
    session: Session = context.obj
    config = session.config()
    version = users.restore_user(open_database(config.database_url), address)
    running = ring(config.node.data)
    pipeline = f"version {version} of the pipeline is live" if version else "there is no pipeline"
    session.done(f"user {address} is back; {pipeline}", address=address, version=version, node_told=running)
