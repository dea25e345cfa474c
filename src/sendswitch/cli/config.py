"""`config …`: the settings with their origins, and users, pipelines and lists as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sendswitch.admin import configuration
from sendswitch.admin.configuration import PlannedChange
from sendswitch.cli.output import Session
from sendswitch.config import reference
from sendswitch.config.load import load_with_origins, read_text
from sendswitch.config.model import Config

app = typer.Typer(help="Configuration, and database content as a file.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="Users, pipelines and lists as TOML, as `config export` prints them.")]
Prune = Annotated[bool, typer.Option("--prune", help="Also remove users and entries that the file does not name.")]


@app.command("show")
def show(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Only keys with this in them.")] = None,
    origin: Annotated[bool, typer.Option("--origin", help="Where each value came from.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
) -> None:
    """Show the effective settings, without secrets."""
    session: Session = context.obj
    loaded = load_with_origins(session.config_file)
    rows = [
        row
        for row in reference.rows(loaded.config, loaded.origins)
        if (not words or any(word in row["key"] for word in words)) and not (changed and row["origin"] == "default")
    ]
    session.show(rows, ("key", "value", "origin") if origin else ("key", "value"), "no key matches")


@app.command("sample")
def sample(context: typer.Context) -> None:
    """Print a file with every key, its default and its meaning."""
    session: Session = context.obj
    text = reference.sample()
    session.done(text.rstrip(), text=text)


@app.command("reference")
def reference_(context: typer.Context) -> None:
    """Print the reference page of the configuration."""
    session: Session = context.obj
    text = reference.page()
    session.done(text.rstrip(), text=text)


@app.command("schema")
def schema(context: typer.Context) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    session: Session = context.obj
    session.print_json(Config.model_json_schema())


@app.command("export")
def export(
    context: typer.Context,
    secrets: Annotated[bool, typer.Option("--secrets", help="With secrets, as `apply` needs them.")] = False,
) -> None:
    """Print users, live pipelines and lists as a file. `plan` and `apply` read it."""
    session: Session = context.obj
    text = session.client.call(configuration.export, secrets=secrets)
    session.done(text.rstrip(), text=text)


@app.command("plan")
def plan(context: typer.Context, file: File, prune: Prune = False) -> None:
    """Show the changes that `apply` would make. Changes nothing."""
    session: Session = context.obj
    planned = session.client.call(configuration.plan, text=read_text(file), name=str(file), prune=prune)
    _tell(session, planned, done=False)


@app.command("apply")
def apply(context: typer.Context, file: File, prune: Prune = False) -> None:
    """Set users, pipelines and lists as in the file.

    All changes are made, or none.
    """
    session: Session = context.obj
    made = session.client.call(configuration.apply, text=read_text(file), name=str(file), prune=prune)
    _tell(session, made, done=True)


def _tell(session: Session, changes: Sequence[PlannedChange], *, done: bool) -> None:
    if session.json:
        session.print_json({"applied": done, "steps": [asdict(change) for change in changes]})
        return
    for change in changes:
        print(f"{change.of}: {change.what}")
        for line in change.diff:
            print(f"    {line}")
    count = f"{len(changes)} change{'s' if len(changes) != 1 else ''}"
    print(f"{count}{' made' if done else ''}" if changes else "nothing to change: all is as the file says")
