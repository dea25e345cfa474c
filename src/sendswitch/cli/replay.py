"""`replay`: run a pipeline over recorded mail and show each difference from the verdict that counted."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sendswitch import durable
from sendswitch.admin import messages
from sendswitch.admin.replay import Replay
from sendswitch.bootstrap.parts import make_trial
from sendswitch.cli.output import Session
from sendswitch.cli.pipeline import read_file
from sendswitch.cli.search_words import joined
from sendswitch.errors import Refused
from sendswitch.journal.compare import Tally, tally_from_json
from sendswitch.journal.search import moment
from sendswitch.mail.ids import first_at, from_text, to_text
from sendswitch.spool import admin

# Seconds between two states written to the file of --state: so much is done again after an interruption.
SAVE = 1.0
# Rows that --where may find.
MOST_FOUND = 1_000_000
INTERRUPTED = 130


def replay(
    context: typer.Context,
    pipeline: Annotated[
        Path | None, typer.Option("--pipeline", help="The pipeline to run; by default each user's live one.")
    ] = None,
    user: Annotated[str, typer.Option("--user", help="Only mail to this user, or to @domain.")] = "",
    since: Annotated[str, typer.Option("--since", help="Start time: 7d, 2h, yesterday, 2026-11-21.")] = "7d",
    until: Annotated[str, typer.Option("--until", help="End time; now by default.")] = "",
    where: Annotated[list[str] | None, typer.Option("--where", help="Only mail that this search finds.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Maximum differences to show.")] = 1000,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="File for progress; the same command resumes from it."),
    ] = None,
) -> None:
    """Run a pipeline over recorded mail, without effect.

    Shows each message with a different result.
    """
    session: Session = context.obj
    now = time.time()
    text = read_file(pipeline) if pipeline else ""
    make = partial(make_trial, session.config())
    run = Replay(
        session.installation,
        session.actor,
        make=make,
        own=make(str(pipeline), 0, text) if pipeline else None,
        user=user,
        found=_found(session, where or []),
    )
    first, last = first_at(moment(since, now)) - 1, first_at(moment(until, now) if until else now + 1)
    asked = hashlib.sha256(orjson.dumps([text, user, since, until, where])).hexdigest()
    saved = _State(state, asked, Tally(limit))
    done = uvloop.run(_run(run, saved, max(first, saved.after), last))
    _tell(session, saved.tally, run.skipped)
    if not done:
        hint = f"the same command goes on behind {to_text(saved.after)}" if state else "--state FILE would let it go on"
        sys.stderr.write(f"sendswitch: interrupted; {hint}\n")
        raise typer.Exit(INTERRUPTED)


def _found(session: Session, words: list[str]) -> set[tuple[int, int]] | None:
    """Return the deliveries that a search finds; None without one."""
    if not words:
        return None
    found = session.pages(messages.search, MOST_FOUND, search=joined(words))
    return {admin.parse_id(row.id) for row in found}


class _State:
    """The progress of a replay, in a file if it has one."""

    def __init__(self, file: Path | None, asked: str, tally: Tally) -> None:
        self._file, self._asked, self.tally, self.after = file, asked, tally, 0
        self._saved = time.monotonic()
        if file is not None and file.exists():
            try:
                data = orjson.loads(file.read_bytes())
                asked_then, self.after = data["asked"], from_text(data["after"])
                self.tally = tally_from_json(data["tally"], tally.most)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise Refused(f"{file} is no state of a replay ({error}); name another file") from error
            if asked_then != asked:
                raise Refused(f"{file} is the state of another replay; name another file, or delete it to begin anew")

    def step(self, message: int, *, now: bool = False) -> None:
        """Record that everything up to this message is in the tally."""
        self.after = message
        if self._file is None or not (now or time.monotonic() - self._saved > SAVE):
            return
        data = {"asked": self._asked, "after": to_text(self.after), "tally": self.tally.to_json()}
        durable.replace(self._file, [orjson.dumps(data)])
        self._saved = time.monotonic()


async def _run(replay: Replay, state: _State, after: int, before: int) -> bool:
    """Ask about all cases. Return False when the user interrupted it."""
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        def on_message(message: int, read: int, total: int) -> bool:
            state.step(message)
            progress.update(bar, completed=read, total=total)
            return not interrupted.is_set()

        done = await replay.run(state.tally, after=after, before=before, on_message=on_message)
    state.step(before - 1 if done else state.after, now=True)
    return done


def _tell(session: Session, tally: Tally, skipped: int) -> None:
    if session.json:
        session.print_json(tally.to_json() | {"skipped": skipped})
        return
    found = tally.to_json()
    if not tally.total:
        print("no recorded message matches; `recording.mail` says which mail is recorded")
        return
    columns = ("id", "from", "to", "subject", "was", "would_be", "because")
    rows = [
        {**row, "from": row["sender"], "would_be": row["now"], "because": row["why"]} for row in found["differences"]
    ]
    if rows:
        session.show(rows, columns, "")
    session.show(found["actions"], ("was", "now", "messages"), "")
    more = f", the first {len(rows)} are shown" if len(rows) < tally.differing else ""
    gone = f"; {skipped} of users who are gone were left out" if skipped else ""
    print(f"{tally.differing} of {tally.total} would be treated differently{more}{gone}")
