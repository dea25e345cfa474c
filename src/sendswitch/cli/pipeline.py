"""`pipeline …`: a TOML file a user, kept in the database in every version; candidates run beside the live one."""

from __future__ import annotations

import difflib
import getpass
import re
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from sendswitch.accounts import users
from sendswitch.cli.output import Session, local, moment
from sendswitch.cli.user import Address
from sendswitch.conditions.pipeline import PipelineConfig
from sendswitch.control import ring
from sendswitch.db import journal
from sendswitch.db.connect import open_database
from sendswitch.errors import InvalidConfiguration, NotFound, in_words
from sendswitch.mail.ids import to_text
from sendswitch.processors import registry
from sendswitch.processors.masks import masked

app = typer.Typer(help="Pipelines: what happens to a user's mail.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The pipeline as TOML.")]


Secrets = Annotated[bool, typer.Option("--secrets", help="Show secrets, too.")]


@app.command("set")
def set_(context: typer.Context, address: Address, file: File) -> None:
    """Check a pipeline and make it the user's. Mail that comes from now on meets it."""
    session: Session = context.obj
    config = session.config()
    text = read_file(file)
    steps = registry.check(text, str(file), config.pipelines.deadline)
    version = users.set_pipeline(open_database(config.database_url), address, text, author=getpass.getuser())
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
    secrets: Secrets = False,
) -> None:
    """Show a user's pipeline."""
    session: Session = context.obj
    stored = users.get_pipeline(open_database(session.config().database_url, migrate=False), address, version)
    text = stored.text if secrets else masked(stored.text)
    head = f"# {stored.owner}, version {stored.version}, {local(stored.created)}"
    session.done(
        f"{head}\n{text.rstrip()}",
        address=stored.owner,
        version=stored.version,
        created=moment(stored.created),
        text=text,
    )


@app.command("check")
def check(context: typer.Context, file: File) -> None:
    """Check a pipeline file; every error at once. Changes nothing."""
    session: Session = context.obj
    steps = registry.check(read_file(file), str(file), session.config().pipelines.deadline)
    session.done(f"{file}: fine. {shown_steps(steps)}", ok=True, steps=[step.use for step in steps.step])


Number = Annotated[int | None, typer.Argument(help="A version's number.")]


@app.command("history")
def history(context: typer.Context, address: Address) -> None:
    """List every version of a user's pipeline, the newest first."""
    session: Session = context.obj
    stored = users.history(open_database(session.config().database_url, migrate=False), address)
    live = next((one.version for one in stored if one.role == "live"), 0)
    rows = [
        {
            "version": one.version,
            "role": one.role if one.role != "live" or one.version == live else "earlier",
            "created": moment(one.created),
            "by": one.author,
            "steps": shown_steps(PipelineConfig(**tomllib.loads(one.text))),
        }
        for one in stored
    ]
    session.show(rows, ("version", "role", "created", "by", "steps"), f"{address} has no pipeline", spare=("by",))


@app.command("diff")
def diff(
    context: typer.Context, address: Address, one: Number = None, other: Number = None, secrets: Secrets = False
) -> None:
    """Show what changed between two versions. By default they are the live one and the one before it."""
    session: Session = context.obj
    engine = open_database(session.config().database_url, migrate=False)
    live = [stored.version for stored in users.history(engine, address) if stored.role == "live"]
    if other is None and one is None and len(live) < 2:
        raise NotFound(f"{address} has had no other pipeline")
    old, new = (
        users.get_pipeline(engine, address, version)
        for version in (one if one is not None else live[1], other if other is not None else live[0])
    )
    names = (f"version {old.version}", f"version {new.version}")
    texts = [one.text if secrets else masked(one.text) for one in (old, new)]
    lines = list(difflib.unified_diff(texts[0].splitlines(), texts[1].splitlines(), *names, lineterm=""))
    same = "they are the same" if old.text == new.text else "they differ in secrets only; --secrets shows them"
    session.done("\n".join(lines) or same, old=old.version, new=new.version, diff=lines)


@app.command("candidate")
def candidate(context: typer.Context, address: Address, file: File) -> None:
    """Run a pipeline beside the live one, without effect.

    It gets all mail that comes; `compare` shows how they agree.
    """
    session: Session = context.obj
    config = session.config()
    text = read_file(file)
    registry.check(text, str(file), config.pipelines.deadline)
    engine = open_database(config.database_url)
    users.get_pipeline(engine, address)  # there must be a live one beside which it runs
    version = users.set_pipeline(engine, address, text, author=getpass.getuser(), role="candidate")
    running = ring(config.node.data)
    session.done(f"version {version} runs beside the live pipeline of {address}", version=version, node_told=running)


@app.command("compare")
def compare(
    context: typer.Context,
    address: Address,
    version: Annotated[int | None, typer.Option("--version", help="One that was; by default the one that is.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most differences that are shown.")] = 100,
) -> None:
    """Show where a candidate did not agree with the live one. How often it did is told too."""
    session: Session = context.obj
    engine = open_database(session.config().database_url, migrate=False)
    if version is None:
        version = next((one.version for one in users.history(engine, address) if one.role == "candidate"), None)
    if version is None:
        raise NotFound(f"{address} has no candidate; `sendswitch pipeline history {address}` shows earlier ones")
    counts = journal.agreement(engine, address, version)
    found = journal.disagreements(engine, address, version, limit)
    total, agreed = sum(row[3] for row in counts), sum(row[3] for row in counts if not row[2])
    rows = [
        {
            "id": f"{to_text(row['message'])}.{row['n']}",
            "from": row["sender"] or "<>",
            "to": row["recipient"],
            "subject": row["subject"],
            "was": row["told_was"],
            "would_be": row["told_now"],
            "because": row["reason"],
        }
        for row in found
    ]
    if session.json:
        actions = [{"was": was, "now": now, "differs": differs, "messages": n} for was, now, differs, n in counts]
        told = {"version": version, "total": total, "agreed": agreed, "actions": actions, "differences": rows}
        session.print_json(told)
        return
    if rows:
        columns = ("id", "from", "to", "subject", "was", "would_be", "because")
        session.show(rows, columns, "", spare=("to", "from", "because"))
    share = f", {100 * agreed / total:.1f} %" if total else ""
    print(f"version {version} agreed on {agreed} of {total} messages{share}")


@app.command("promote")
def promote(context: typer.Context, address: Address) -> None:
    """Make the candidate the live pipeline."""
    session: Session = context.obj
    config = session.config()
    was, version = users.promote(open_database(config.database_url), address, author=getpass.getuser())
    sentence = f"the candidate, version {was}, is the live pipeline of {address} now, as version {version}"
    session.done(sentence, candidate=was, version=version, node_told=ring(config.node.data))


@app.command("withdraw")
def withdraw(context: typer.Context, address: Address) -> None:
    """Run the candidate no longer; what it was compared to stays."""
    session: Session = context.obj
    config = session.config()
    users.withdraw(open_database(config.database_url), address)
    session.done(f"{address} has no candidate now", address=address, node_told=ring(config.node.data))


@app.command("rollback")
def rollback(context: typer.Context, address: Address, version: Number = None) -> None:
    """Make an earlier version live again. By default it is the last that was different."""
    session: Session = context.obj
    config = session.config()
    old, new = users.roll_back(open_database(config.database_url), address, version, author=getpass.getuser())
    sentence = f"version {old} is the live pipeline of {address} again, as version {new}"
    session.done(sentence, old=old, version=new, node_told=ring(config.node.data))


def shown_steps(config: PipelineConfig) -> str:
    """Return the processors of a pipeline in their order."""
    return " → ".join(step.use for step in config.step) or "no steps, everything passes"


# An option that names a file by a relative path.
_RELATIVE = re.compile(r"""^([ \t]*file[ \t]*=[ \t]*)(["'])([^"'/\n][^"'\n]*)\2""", re.M)


def read_file(file: Path) -> str:
    """Return the text of a pipeline file. A `file = "filter.py"` beside it becomes an absolute path.

    Raises InvalidConfiguration when it cannot be read.
    """

    def absolute(found: re.Match[str]) -> str:
        beside = (file.parent / found[3]).absolute()
        return f'{found[1]}"{beside}"' if beside.is_file() else found[0]

    try:
        return _RELATIVE.sub(absolute, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfiguration([f"{file}: cannot be read: {in_words(error)}"]) from error
