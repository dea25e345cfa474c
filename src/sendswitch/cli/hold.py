"""`hold list|answer`: mail that waits for somebody to decide."""

from __future__ import annotations

import getpass
import time
from enum import StrEnum
from typing import Annotated

import typer

from sendswitch.cli.output import Session
from sendswitch.cli.quarantine import Ids, User, Where, choose, each, show_kept
from sendswitch.cli.queue import SEARCH, DryRun, Limit, Reason, Words
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import MAX_REASON
from sendswitch.spool import admin
from sendswitch.spool.states import State

app = typer.Typer(help="Held mail. It waits for somebody to decide, or for its time to be over.", no_args_is_help=True)


class PipelineResult(StrEnum):
    """What a person may say, as `admin.ANSWERS` knows it."""

    PASS = "pass"  # noqa: S105 - an answer
    DENY = "deny"
    QUARANTINE = "quarantine"
    DISCARD = "discard"


@app.command("list", context_settings=SEARCH)
def list_(
    context: typer.Context,
    words: Words = None,
    user: User = "",
    limit: Limit = 1000,
) -> None:
    """List what is held, with the reason and until when."""
    show_kept(context.obj, State.HELD, words or [], user, limit, "nothing is held")


@app.command("answer")
def answer(
    context: typer.Context,
    what: Annotated[PipelineResult, typer.Argument(help="What becomes of it.")],
    ids: Ids = None,
    where: Where = None,
    dry_run: DryRun = False,
    reason: Reason = "",
) -> None:
    """Decide held mail. It is not filtered again; a second answer is refused."""
    session: Session = context.obj
    connection = admin.open_files(session.config().node.data)
    by, why = getpass.getuser(), storable(reason, MAX_REASON)

    def act(id_: str) -> None:
        admin.answer(connection, id_, what.value, time.time(), by=by, reason=why)

    each(session, choose(session, State.HELD, ids, where, dry_run), "answered", act)
