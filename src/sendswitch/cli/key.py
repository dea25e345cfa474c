"""`key add|list|rm`: the keys of users' programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.admin import access_keys
from sendswitch.admin.access_keys import Scope
from sendswitch.cli import secret_file
from sendswitch.cli.output import Session

app = typer.Typer(help="Keys of users' programs, such as their own workers.", no_args_is_help=True)


@app.command("add")
def add(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="The user, or @domain for all of a domain.")],
    scope: Annotated[
        Scope, typer.Option(help="What the key allows: work lets the user's own workers connect.")
    ] = "work",
    name: Annotated[str, typer.Option(help="A name by which people know it, such as that of the machine.")] = "",
    file: secret_file.Option = None,
) -> None:
    """Make a key for a user, and show it once or write it into a file."""
    session: Session = context.obj
    with secret_file.secret_file(file) as write:
        made = session.client.call(access_keys.add, address=address, scope=scope, name=name)
        write(made.key)
    if file is not None:
        session.done(f"key {made.id} of {address} is in {file}", id=made.id, address=address, file=str(file))
        return
    session.done(
        f"key {made.id} of {address}, which is not shown again: {made.key}", id=made.id, address=address, key=made.key
    )


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the keys of all users, without the keys themselves."""
    session: Session = context.obj
    rows = [
        {"number": one.id, **{name: value for name, value in asdict(one).items() if name != "id"}}
        for one in session.client.call(access_keys.list_keys)
    ]
    columns = ("number", "address", "scope", "name", "created", "used")
    session.show(rows, columns, "no keys; make one: sendswitch key add user@domain", spare=("created",))


@app.command("rm")
def remove(
    context: typer.Context, number: Annotated[int, typer.Argument(help="The number of the key in `key list`.")]
) -> None:
    """Remove a key, and disconnect the workers that use it."""
    session: Session = context.obj
    session.client.call(access_keys.remove, number=number)
    session.done(f"key {number} is removed", number=number)
