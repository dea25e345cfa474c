"""`list show|add|rm|test`: allow and deny lists of users, domains and the site."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sendswitch.admin import lists
from sendswitch.admin.base import at
from sendswitch.admin.lists import MOST, Which
from sendswitch.cli.output import Session
from sendswitch.config.units import duration
from sendswitch.errors import NotFound, in_words
from sendswitch.processors.list_entries import checked

app = typer.Typer(help="Allow and deny lists of users, domains and the site.", no_args_is_help=True)

For = Annotated[str, typer.Option("--for", help="user@domain or domain; without it the whole site.")]
List = Annotated[Which, typer.Argument(help="allow or deny.")]


@app.command("show")
def show(
    context: typer.Context,
    whose: Annotated[str | None, typer.Option("--for", help="Only of this user@domain or domain; '' the site.")] = None,
) -> None:
    """Show entries with their numbers, reasons and times."""
    session: Session = context.obj
    rows = [
        {
            "number": entry.id,
            "for": entry.scope or "the site",
            "list": entry.list,
            "entry": entry.entry,
            "until": entry.expires,
            "reason": entry.reason,
            "by": entry.author,
        }
        for entry in session.client.call(lists.list_entries, scope=whose)
    ]
    columns = ("number", "for", "list", "entry", "until", "reason", "by")
    session.show(rows, columns, "no entries; add one: sendswitch list add deny spam.example", spare=("by", "reason"))


@app.command("add")
def add(
    context: typer.Context,
    which: List,
    entries: Annotated[list[str] | None, typer.Argument(help="Addresses, domains, globs, networks, fields.")] = None,
    whose: For = "",
    file: Annotated[Path | None, typer.Option("--file", help="File of entries, one a line; # is a comment.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Reason, for administrators only.")] = "",
    expires: Annotated[
        str, typer.Option("--expires", help="Duration such as 30d, or last day; by default it never expires.")
    ] = "",
) -> None:
    """Put entries on a list. An existing entry gets the new reason and expiry."""
    session: Session = context.obj
    wanted = [checked(entry) for entry in entries or []]
    if file is not None:
        wanted += _from_file(file, quiet=session.json)
    if not wanted:
        raise typer.BadParameter("name an entry, or a --file of them")
    until, new, scope = at(_until(expires)) if expires else None, 0, ""
    for start in range(0, len(wanted), MOST):
        piece = tuple(wanted[start : start + MOST])
        added = session.client.call(lists.add, list=which, entries=piece, scope=whose, reason=reason, expires=until)
        new, scope = new + added.new, added.scope
    session.done(
        f"{new} new on the {which} list of {scope or 'the site'}",
        new=new,
        given=len(wanted),
        **{"for": scope, "list": which},
    )


def _from_file(file: Path, *, quiet: bool) -> list[str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{file}: cannot be read: {in_words(error)}") from error
    from rich.progress import track

    found = []
    shown = quiet or len(lines) < 10_000
    for number, line in enumerate(track(lines, "reading", disable=shown, transient=True), 1):
        text = line.partition(" #")[0].strip()
        if text and not text.startswith("#"):
            try:
                found.append(checked(text))
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from error
    return found


@app.command("rm")
def remove(context: typer.Context, numbers: Annotated[list[int], typer.Argument(help="As `list show` tells.")]) -> None:
    """Remove list entries; all or none."""
    session: Session = context.obj
    done = session.client.call(lists.remove, ids=tuple(numbers))
    session.done(f"{done} taken off", removed=done)


@app.command("test")
def probe(
    context: typer.Context,
    sender: Annotated[str, typer.Argument(help="A sender's mail address or a client's IP address.")],
    to: Annotated[str, typer.Option("--to", help="The recipient.")],
    address: Annotated[str, typer.Option("--ip", help="The client's address.")] = "",
) -> None:
    """Show the list entry that would apply to a sender.

    The scope of the entry is shown too.
    """
    session: Session = context.obj
    found = session.client.call(lists.find, sender=sender, to=to, client=address)
    because = f": {found.reason}" if found.reason else ""
    told = f"{found.entry} on the {found.list} list of {found.scope or 'the site'}{because}"
    facts = asdict(found)
    session.done(told + (f"; but {found.but}" if found.but else ""), **facts | {"for": facts.pop("scope")})


def _until(text: str) -> float:
    """Return when an entry ends, from a time or a day (UTC). Raises ValueError."""
    with suppress(ValueError):
        return time.time() + duration(text)
    try:
        end = datetime.fromisoformat(text)
    except ValueError:
        hint = "write for how long, such as 30d, or a day, such as 2030-01-31"
        raise ValueError(f"--expires {text!r}: {hint}") from None
    return (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp()
