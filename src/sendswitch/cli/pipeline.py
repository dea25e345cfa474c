"""`pipeline …`: a user's pipeline in every version, and the candidate that runs beside the live one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sendswitch.admin import pipelines
from sendswitch.cli.output import Session, readable
from sendswitch.cli.user import Address
from sendswitch.errors import InvalidConfiguration, in_words

app = typer.Typer(help="Pipelines: what happens to a user's mail.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The pipeline as TOML.")]


Secrets = Annotated[bool, typer.Option("--secrets", help="Show secrets, too.")]


@app.command("set")
def set_(context: typer.Context, address: Address, file: File) -> None:
    """Check a pipeline and make it the user's. It applies from now on, to deferred mail too."""
    session: Session = context.obj
    stored = session.client.call(pipelines.set_live, address=address, text=read_file(file), name=str(file))
    session.done(
        f"pipeline of {address} is version {stored.version}: {shown_steps(stored.steps)}",
        address=address,
        version=stored.version,
        node_told=session.client.running,
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
    stored = session.client.call(pipelines.show, address=address, version=version, secrets=secrets)
    head = f"# {stored.address}, version {stored.version}, {readable(stored.created)}"
    session.done(
        f"{head}\n{stored.text.rstrip()}",
        address=stored.address,
        version=stored.version,
        created=stored.created,
        text=stored.text,
    )


@app.command("check")
def check(context: typer.Context, file: File) -> None:
    """Check a pipeline file; every error at once. Changes nothing."""
    session: Session = context.obj
    steps = session.here.call(pipelines.check, text=read_file(file), name=str(file))
    session.done(f"{file}: fine. {shown_steps(steps)}", ok=True, steps=list(steps))


Number = Annotated[int | None, typer.Argument(help="A version's number.")]


@app.command("history")
def history(context: typer.Context, address: Address) -> None:
    """List every version of a user's pipeline, the newest first."""
    session: Session = context.obj
    rows = [
        {
            "version": one.version,
            "role": one.role,
            "created": one.created,
            "by": one.author,
            "steps": shown_steps(one.steps),
        }
        for one in session.client.call(pipelines.history, address=address)
    ]
    session.show(rows, ("version", "role", "created", "by", "steps"), f"{address} has no pipeline", spare=("by",))


@app.command("diff")
def diff(
    context: typer.Context, address: Address, one: Number = None, other: Number = None, secrets: Secrets = False
) -> None:
    """Show the changes between two versions.

    By default they are the live version and the one before it.
    """
    session: Session = context.obj
    found = session.client.call(pipelines.diff, address=address, old=one, new=other, secrets=secrets)
    same = "they are the same" if found.same else "they differ in secrets only; --secrets shows them"
    session.done("\n".join(found.diff) or same, old=found.old, new=found.new, diff=list(found.diff))


@app.command("candidate")
def candidate(context: typer.Context, address: Address, file: File) -> None:
    """Run a pipeline beside the live one, without effect.

    The candidate gets all mail that comes. `compare` shows where the two differ.
    """
    session: Session = context.obj
    stored = session.client.call(pipelines.set_candidate, address=address, text=read_file(file), name=str(file))
    version, running = stored.version, session.client.running
    session.done(f"version {version} runs beside the live pipeline of {address}", version=version, node_told=running)


@app.command("compare")
def compare(
    context: typer.Context,
    address: Address,
    version: Annotated[int | None, typer.Option("--version", help="Candidate version; default: the current.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most differences that are shown.")] = 100,
) -> None:
    """Show where a candidate differs from the live pipeline.

    The number of messages on which both agree is shown too.
    """
    session: Session = context.obj
    found = session.client.call(pipelines.compare, address=address, version=version, limit=limit)
    rows = [
        {
            "id": one.id,
            "from": one.sender or "<>",
            "to": one.recipient,
            "subject": one.subject,
            "was": one.was,
            "would_be": one.now,
            "because": one.reason,
        }
        for one in found.differences
    ]
    if session.json:
        told = {"version": found.version, "total": found.total, "agreed": found.agreed}
        session.print_json(told | {"actions": found.actions, "differences": rows})
        return
    if rows:
        columns = ("id", "from", "to", "subject", "was", "would_be", "because")
        session.show(rows, columns, "", spare=("to", "from", "because"))
    share = f", {100 * found.agreed / found.total:.1f} %" if found.total else ""
    print(f"version {found.version} agreed on {found.agreed} of {found.total} messages{share}")


@app.command("promote")
def promote(context: typer.Context, address: Address) -> None:
    """Make the candidate the live pipeline."""
    session: Session = context.obj
    done = session.client.call(pipelines.promote, address=address)
    sentence = f"the candidate, version {done.was}, is the live pipeline of {address} now, as version {done.version}"
    session.done(sentence, candidate=done.was, version=done.version, node_told=session.client.running)


@app.command("withdraw")
def withdraw(context: typer.Context, address: Address) -> None:
    """Stop running the candidate. Keeps its comparison."""
    session: Session = context.obj
    session.client.call(pipelines.withdraw, address=address)
    session.done(f"{address} has no candidate now", address=address, node_told=session.client.running)


@app.command("rollback")
def rollback(context: typer.Context, address: Address, version: Number = None) -> None:
    """Make an earlier version live again. By default it is the last that was different."""
    session: Session = context.obj
    done = session.client.call(pipelines.roll_back, address=address, version=version)
    sentence = f"version {done.was} is the live pipeline of {address} again, as version {done.version}"
    session.done(sentence, old=done.was, version=done.version, node_told=session.client.running)


def shown_steps(steps: Sequence[str]) -> str:
    """Return the processors of a pipeline in their order."""
    return " → ".join(steps) or "no steps, everything passes"


# An option that names a file by a relative path.
_RELATIVE = re.compile(r"""^([ \t]*file[ \t]*=[ \t]*)(["'])([^"'/\n][^"'\n]*)\2""", re.M)


def read_file(file: Path) -> str:
    """Return the text of a pipeline file. `file = "filter.py"` becomes an absolute path when that file is in its
    folder.

    Raises InvalidConfiguration when it cannot be read.
    """

    def absolute(found: re.Match[str]) -> str:
        beside = (file.parent / found[3]).absolute()
        return f'{found[1]}"{beside}"' if beside.is_file() else found[0]

    try:
        return _RELATIVE.sub(absolute, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfiguration([f"{file}: cannot be read: {in_words(error)}"]) from error
