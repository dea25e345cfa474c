"""`config …`: the settings, where they came from, and what the database holds as a file."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from sendswitch.admin import declared
from sendswitch.admin.declared import Step
from sendswitch.cli.output import Session
from sendswitch.config import reference
from sendswitch.config.load import load_with_origins
from sendswitch.config.model import Config
from sendswitch.control import ring
from sendswitch.db.connect import open_database
from sendswitch.processors import registry
from sendswitch.processors.entries import checked
from sendswitch.processors.masks import masked

app = typer.Typer(help="The configuration, and the database's as a file.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="Users, pipelines and lists as TOML, as `config export` prints them.")]
Prune = Annotated[bool, typer.Option("--prune", help="Also remove users and entries that the file does not name.")]


@app.command("show")
def show(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Only keys with this in them.")] = None,
    origin: Annotated[bool, typer.Option("--origin", help="Where each value came from.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
) -> None:
    """Show every setting in force; secrets are not shown."""
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
    """Print a file with every key in a comment. Each has its default and what it means."""
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
    text = declared.export(open_database(session.config().database_url, migrate=False), show=str if secrets else masked)
    session.done(text.rstrip(), text=text)


@app.command("plan")
def plan(context: typer.Context, file: File, prune: Prune = False) -> None:
    """Show what `apply` would change. Changes nothing."""
    session: Session = context.obj
    _tell(session, _plan(session, file, prune), done=False)


@app.command("apply")
def apply(context: typer.Context, file: File, prune: Prune = False) -> None:
    """Make users, pipelines and lists what the file says. All of it is done, or nothing."""
    session: Session = context.obj
    config = session.config()
    steps = _plan(session, file, prune)
    declared.apply(open_database(config.database_url), steps, author=getpass.getuser())
    if steps:
        ring(config.node.data)
    _tell(session, steps, done=True)


def _plan(session: Session, file: Path, prune: bool) -> list[Step]:
    config = session.config()

    def check(text: str, name: str) -> object:
        return registry.check(text, name, config.pipelines.deadline)

    return declared.plan(open_database(config.database_url), declared.read(file, check, checked), prune=prune)


def _tell(session: Session, steps: list[Step], *, done: bool) -> None:
    rows = [{"of": step.of, "what": step.what, "diff": step.diff(masked)} for step in steps]
    if session.json:
        session.print_json({"applied": done, "steps": rows})
        return
    for row in rows:
        print(f"{row['of']}: {row['what']}")
        for line in row["diff"]:
            print(f"    {line}")
    count = f"{len(steps)} change{'s' if len(steps) != 1 else ''}"
    print(f"{count}{' made' if done else ''}" if steps else "nothing to change: all is as the file says")
