"""`pipeline set|show|check`: a TOML file a user, kept in the database in every version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sendswitch.cli.output import Session, moment
from sendswitch.cli.user import Address
from sendswitch.config.pipeline import PipelineConfig
from sendswitch.db import users
from sendswitch.db.connect import open_database
from sendswitch.errors import InvalidConfiguration
from sendswitch.processors import registry
from sendswitch.switch.doorbell import ring

app = typer.Typer(help="Pipelines: what happens to a user's mail.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The pipeline as TOML.")]


@app.command("set")
def set_(context: typer.Context, address: Address, file: File) -> None:
    """Check a pipeline and make it the user's; mail that comes from now on meets it."""
    session: Session = context.obj
    config = session.config()
    text = read_file(file)
    steps = registry.check(text, str(file))
    version = users.set_pipeline(open_database(config.database_url), address, text)
    running = ring(config.node.data)
    session.done(
        f"pipeline of {address} is version {version}: {shown_steps(steps)}",
        address=address,
        version=version,
        node_told=running,
    )


@app.command("show")
def show(
    context: typer.Context,
    address: Address,
    version: Annotated[int | None, typer.Option("--version", help="A version; the newest by default.")] = None,
) -> None:
    """Show a user's pipeline."""
    session: Session = context.obj
    stored = users.get_pipeline(open_database(session.config().database_url), address, version)
    head = f"# {stored.owner}, version {stored.version}, {moment(stored.created)}"
    session.done(
        f"{head}\n{stored.text.rstrip()}",
        address=stored.owner,
        version=stored.version,
        created=stored.created,
        text=stored.text,
    )


@app.command("check")
def check(context: typer.Context, file: File) -> None:
    """Check a pipeline file; every error at once. Changes nothing."""
    session: Session = context.obj
    steps = registry.check(read_file(file), str(file))
    session.done(f"{file}: fine. {shown_steps(steps)}", ok=True, steps=[step.use for step in steps.step])


def shown_steps(config: PipelineConfig) -> str:
    """The processors of a pipeline in their order."""
    return " → ".join(step.use for step in config.step) or "no steps, everything passes"


def read_file(file: Path) -> str:
    """A pipeline file's text. Raises InvalidConfiguration when it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfiguration([f"{file}: cannot be read: {error}"]) from error
