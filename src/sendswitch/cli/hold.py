"""`hold list|answer`: held mail, which waits for a person's decision."""

from __future__ import annotations

from typing import Annotated

import typer

from sendswitch.admin import hold
from sendswitch.admin.deliveries import Results
from sendswitch.admin.hold import HeldAnswer
from sendswitch.cli.output import Session
from sendswitch.cli.quarantine import Chosen, Ids, User, Where, change, show_kept
from sendswitch.cli.queue import SEARCH, DryRun, Limit, Reason, Words

app = typer.Typer(help="Held mail, which waits for a person's decision.", no_args_is_help=True)


@app.command("list", context_settings=SEARCH)
def list_(
    context: typer.Context,
    words: Words = None,
    user: User = "",
    limit: Limit = 1000,
) -> None:
    """List held mail with the reason and expiry time."""
    show_kept(context.obj, hold.list_held, words or [], user, limit, "nothing is held")


@app.command("answer")
def answer(
    context: typer.Context,
    what: Annotated[HeldAnswer, typer.Argument(help="The decision.")],
    ids: Ids = None,
    where: Where = None,
    dry_run: DryRun = False,
    reason: Reason = "",
) -> None:
    """Decide about held mail. It is not filtered again; a second answer is refused."""
    session: Session = context.obj

    def page(chosen: Chosen) -> Results:
        return session.client.call(
            hold.answer,
            answer=what,
            reason=reason,
            ids=chosen.ids,
            search=chosen.search,
            after=chosen.after,
        )

    change(session, hold.list_held, "answered", page, ids, where, dry_run)
