"""`list show|add|rm|test`: allow and deny lists of users, domains and the site."""

from __future__ import annotations

import getpass
import time
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import typer

from sendswitch.accounts.users import get_pipeline
from sendswitch.bootstrap.parts import load_routes, read_book
from sendswitch.cli.output import Session, moment
from sendswitch.config.load import parse
from sendswitch.config.model import Config
from sendswitch.config.units import duration
from sendswitch.control import ring
from sendswitch.db import lists
from sendswitch.db.connect import open_database
from sendswitch.errors import NotFound, in_words
from sendswitch.mail.address import key
from sendswitch.processors.entries import Entries, Entry, checked

app = typer.Typer(help="Allow and deny lists of users, domains and the site.", no_args_is_help=True)

For = Annotated[str, typer.Option("--for", help="user@domain or domain; without it the whole site.")]
Which = Annotated[Literal["allow", "deny"], typer.Argument(help="allow or deny.")]


@app.command("show")
def show(
    context: typer.Context,
    whose: Annotated[str | None, typer.Option("--for", help="Only of this user@domain or domain; '' the site.")] = None,
) -> None:
    """Show entries with their numbers, reasons and times."""
    session: Session = context.obj
    scope = None if whose is None else lists.scope_of(whose)
    found = lists.entries(open_database(session.config().database_url, migrate=False), scope)
    rows = [
        {
            "number": entry.id,
            "for": entry.scope or "the site",
            "list": entry.list,
            "entry": entry.entry,
            "until": moment(entry.expires),
            "reason": entry.reason,
            "by": entry.author,
        }
        for entry in found
    ]
    columns = ("number", "for", "list", "entry", "until", "reason", "by")
    session.show(rows, columns, "no entries; add one: sendswitch list add deny spam.example", spare=("by", "reason"))


@app.command("add")
def add(
    context: typer.Context,
    which: Which,
    entries: Annotated[list[str] | None, typer.Argument(help="Addresses, domains, globs, networks, fields.")] = None,
    whose: For = "",
    file: Annotated[Path | None, typer.Option("--file", help="More of them, one a line; # begins a comment.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; who is refused by it does not read it.")] = "",
    expires: Annotated[
        str, typer.Option("--expires", help="For how long, such as 30d, or until which day; without it for ever.")
    ] = "",
) -> None:
    """Put entries on a list. One that is there already gets the new reason and time."""
    session: Session = context.obj
    config = session.config()
    wanted = [checked(entry) for entry in entries or []]
    if file is not None:
        wanted += _from_file(file, quiet=session.json)
    if not wanted:
        raise typer.BadParameter("name an entry, or a --file of them")
    until = _until(expires) if expires else None
    scope = lists.scope_of(whose)
    new = lists.add(
        open_database(config.database_url),
        scope,
        which,
        wanted,
        reason=reason[:500],
        author=getpass.getuser()[:64],
        expires=until,
    )
    ring(config.node.data)
    whom = scope or "the site"
    session.done(
        f"{new} new on the {which} list of {whom}", new=new, given=len(wanted), **{"for": scope, "list": which}
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
    """Take entries off, all of them or none."""
    session: Session = context.obj
    config = session.config()
    done = lists.remove(open_database(config.database_url), numbers)
    ring(config.node.data)
    session.done(f"{done} taken off", removed=done)


@app.command("test")
def probe(
    context: typer.Context,
    sender: Annotated[str, typer.Argument(help="An address that might write, or that of a client.")],
    to: Annotated[str, typer.Option("--to", help="The recipient.")],
    address: Annotated[str, typer.Option("--ip", help="The client's address.")] = "",
) -> None:
    """Say which kept entry would decide about a sender. For whom it is kept is told too."""
    session: Session = context.obj
    config, now = session.config(), time.time()
    address = sender if _is_client(sender) else address
    for pair in read_book(config).of(to):
        for which, entries in (("allow", pair.allow), ("deny", pair.deny)):
            entry = entries.sender(key(sender), now) or entries.client(address, now)
            if entry is not None:
                whose = pair.whose or "the site"
                told = f"{entry.text} on the {which} list of {whose}{': ' * bool(entry.reason)}{entry.reason}"
                but = _unasked(config, to, sender, address)
                about = {"entry": entry.text, "list": which, "reason": entry.reason, "for": pair.whose, "but": but}
                session.done(told + (f"; but {but}" if but else ""), **about)
                return
    raise NotFound(f"no entry that holds for {to} is about {sender}")


def _is_client(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def _unasked(config: Config, to: str, sender: str, address: str) -> str:
    """Return why a kept entry about a sender does not decide for a recipient, '' when it does."""
    engine = open_database(config.database_url, migrate=False)
    route = load_routes(engine, config).find(to)
    if route is None:
        return f"{to} has no pipeline, so nobody looks at lists"
    steps = parse(get_pipeline(engine, route.owner, route.version).text, route.owner)[0].get("step", [])
    own = [(n, step) for n, step in enumerate(steps, 1) if step.get("use") == "lists"]
    if not own:
        return f"the pipeline of {route.owner} has no step that uses lists"
    for n, step in own:
        for which in ("allow", "deny"):
            entries, now = Entries(map(Entry, step.get(which, ()))), time.time()
            entry = entries.sender(key(sender), now) or entries.client(address, now)
            if entry is not None:
                return f"{which} of step {n} in the pipeline of {route.owner} has {entry.text}, and is asked first"
    return ""


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
