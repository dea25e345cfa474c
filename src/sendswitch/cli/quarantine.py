"""`quarantine list|release|delete`: mail in quarantine, one by one or all that a search finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from sendswitch.admin import deliveries, quarantine
from sendswitch.admin.base import Page
from sendswitch.admin.deliveries import DeliverySummary, Results
from sendswitch.cli.output import Bytes, Session, exit_code
from sendswitch.cli.queue import SEARCH, DryRun, Limit, Words
from sendswitch.cli.search_words import joined
from sendswitch.errors import error_of

app = typer.Typer(help="The quarantine.", no_args_is_help=True)

# Columns that a narrow terminal does without, the first first.
SPARE = ("size", "until", "from", "since", "subject")

ALL, NONE = 1_000_000, "no delivery matches"

Listing = Callable[..., Page[DeliverySummary]]
"""The use case that lists the mail."""

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids as `list` shows them.")]
User = Annotated[str, typer.Option("--user", help="Only this recipient's.")]
Where = Annotated[list[str] | None, typer.Option("--where", help="Select mail by this search, not by ids.")]


@app.command("list", context_settings=SEARCH)
def list_(
    context: typer.Context,
    words: Words = None,
    user: User = "",
    limit: Limit = 1000,
) -> None:
    """List the mail in quarantine with the reasons."""
    show_kept(context.obj, quarantine.list_quarantine, words or [], user, limit, "the quarantine is empty")


@app.command("release")
def release(context: typer.Context, ids: Ids = None, where: Where = None, dry_run: DryRun = False) -> None:
    """Deliver mail to the recipient. It is not filtered again; a second release is refused."""
    session: Session = context.obj

    def page(chosen: Chosen) -> Results:
        return session.client.call(quarantine.release, ids=chosen.ids, search=chosen.search, after=chosen.after)

    change(session, quarantine.list_quarantine, "released", page, ids, where, dry_run)


@app.command("delete")
def delete(context: typer.Context, ids: Ids = None, where: Where = None, dry_run: DryRun = False) -> None:
    """Delete mail. `message requeue` delivers it while its record is kept."""
    session: Session = context.obj

    def page(chosen: Chosen) -> Results:
        return session.client.call(quarantine.delete, ids=chosen.ids, search=chosen.search, after=chosen.after)

    change(session, quarantine.list_quarantine, "deleted", page, ids, where, dry_run)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The deliveries of a bulk request: ids, or a search with the cursor of its next page."""

    ids: tuple[str, ...]
    search: str = ""
    after: str = ""


def change(
    session: Session,
    listing: Listing,
    done: str,
    page: Callable[[Chosen], Results],
    ids: list[str] | None,
    where: list[str] | None,
    dry_run: bool,
) -> None:
    """Change the deliveries that are named or found, or with `dry_run` list them. `page` makes one request."""
    if bool(ids) == bool(where):
        raise typer.BadParameter("give ids, or --where with a search; one of both")
    chosen = Chosen(tuple(ids or ()), joined(where or ()))
    if not dry_run:
        tell_each(session, done, _pages(page, chosen))
    elif chosen.search:
        _list(session, session.pages(listing, ALL, search=chosen.search), NONE)
    else:
        _list(session, [session.client.call(deliveries.show, id=id_).delivery for id_ in chosen.ids], NONE)


def _pages(page: Callable[[Chosen], Results], chosen: Chosen) -> Iterator[Results]:
    while True:
        results = page(chosen)
        yield results
        if not results.next:
            return
        chosen = replace(chosen, after=results.next)


def show_kept(session: Session, listing: Listing, words: list[str], user: str, limit: int, empty: str) -> None:
    """List the mail that a search finds, for one recipient or, with '', for all."""
    search = joined([*words, *([f"user:{user}"] if user else ())])
    _list(session, session.pages(listing, limit, search=search), empty)


def tell_each(session: Session, done: str, pages: Iterable[Results]) -> None:
    """Print the result for each delivery, with progress on a terminal. Exit with the code of the worst failure."""
    from rich.console import Console

    rows: list[dict[str, str]] = []
    worst = 0
    with Console(stderr=True).status(done) as progress:
        for page in pages:
            for result in page.results:
                rows.append({"id": result.id, "result": result.text if result.kind else done})
                if result.kind:
                    worst = max(worst, exit_code(error_of(result.kind, [result.text])) or 1)
            progress.update(f"{done}: {len(rows)}")
    session.show(rows, ("id", "result"), NONE)
    if worst:
        raise typer.Exit(worst)


def _list(session: Session, found: Iterable[DeliverySummary], empty: str) -> None:
    rows = [asdict(row) if session.json else _listed(row) for row in found]
    session.show(rows, ("id", "since", "from", "to", "subject", "size", "why", "until"), empty, spare=SPARE)


def _listed(row: DeliverySummary) -> dict[str, object]:
    return {
        "id": row.id,
        "since": row.since,
        "from": row.sender or "<>",
        "to": row.recipient,
        "subject": row.subject,
        "size": Bytes(row.size),
        "why": row.reply or row.reason,
        "until": row.due,
    }
