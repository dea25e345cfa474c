"""`replay`: run a pipeline over recorded mail and show each difference from the verdict that counted."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import orjson
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine

from sendswitch import durable
from sendswitch.accounts.users import all_pipelines
from sendswitch.admin import messages
from sendswitch.bootstrap.parts import make_trial
from sendswitch.cli.output import Session
from sendswitch.cli.pipeline import read_file
from sendswitch.cli.words import joined
from sendswitch.config.model import Config
from sendswitch.db.connect import open_database
from sendswitch.errors import Refused
from sendswitch.journal.compare import Difference, Tally, action, differing, tally_from_json, told
from sendswitch.journal.search import moment
from sendswitch.mail.ids import first_at, from_text, to_text
from sendswitch.mail.verdict import PipelineResult
from sendswitch.pipeline import recording as record
from sendswitch.pipeline.recording import Case
from sendswitch.pipeline.trial import Trial, replay_each
from sendswitch.routing import Route, Routes
from sendswitch.spool import admin, recorded

# Seconds between two states written to the file of --state: so much is done again after an interruption.
SAVE = 1.0
# Rows that --where may find.
MOST_FOUND = 1_000_000
INTERRUPTED = 130


def replay(
    context: typer.Context,
    pipeline: Annotated[
        Path | None, typer.Option("--pipeline", help="The changed pipeline; without it each user's live one is asked.")
    ] = None,
    user: Annotated[str, typer.Option("--user", help="Only mail to this user, or to @domain.")] = "",
    since: Annotated[str, typer.Option("--since", help="From when on: 7d, 2h, yesterday, 2026-11-21.")] = "7d",
    until: Annotated[str, typer.Option("--until", help="Until when; now by default.")] = "",
    where: Annotated[list[str] | None, typer.Option("--where", help="Only mail that this search finds.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Most differences that are told.")] = 1000,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Keep the progress here; the same command goes on from it."),
    ] = None,
) -> None:
    """Run a pipeline over recorded mail, without effect.

    Each message that it would have treated differently is shown.
    """
    session: Session = context.obj
    config = session.config()
    now = time.time()
    text = read_file(pipeline) if pipeline else ""
    run = _Run(config, pipeline, text, user, _found(session, where or []))
    first, last = first_at(moment(since, now)) - 1, first_at(moment(until, now) if until else now + 1)
    asked = hashlib.sha256(orjson.dumps([text, user, since, until, where])).hexdigest()
    saved = _State(state, asked, Tally(limit))
    done = uvloop.run(_replay(run, saved, max(first, saved.after), last))
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


class _Run:
    """One replay: the cases to ask about, and the pipeline for each."""

    def __init__(
        self, config: Config, file: Path | None, text: str, user: str, found: set[tuple[int, int]] | None
    ) -> None:
        self.config, self._found = config, found
        self.read = self.skipped = 0
        self.data = config.node.data
        self.connection = admin.open_files(self.data)
        self._trial = make_trial(config, str(file), 0, text) if file else None
        self._user = _only(user, config) if user else None
        self._engine: Engine | None = None if file else open_database(config.database_url, migrate=False)
        self._stored = {stored.owner: stored for stored in all_pipelines(self._engine)} if self._engine else {}
        self._trials: dict[str, Trial] = {}

    def trial(self, case: Case) -> Trial | None:
        """Return the trial for a case; None without one."""
        if self._found is not None and (case.message, case.n) not in self._found:
            return None
        if self._user is not None and self._user.find(case.recipient.address) is None:
            return None
        if self._trial is not None:
            return self._trial if case.verdict is not None or self._user is not None else None
        owner = case.verdict.pipeline if case.verdict else ""
        if not owner:
            return None
        if owner not in self._trials:
            stored = self._stored.get(owner)
            if stored is None:
                self.skipped += 1  # the user is gone
                return None
            self._trials[owner] = make_trial(self.config, owner, stored.version, stored.text)
        return self._trials[owner]

    def pairs(self, after: int, before: int) -> Iterator[tuple[Case, Trial]]:
        """Yield each case with its trial. `read` counts the messages looked at."""
        for cases in record.cases(self.connection, self.data, after, before):
            for case in cases:
                if (trial := self.trial(case)) is not None:
                    yield case, trial
            self.read += 1

    async def close(self) -> None:
        """Close the pipelines."""
        for trial in (*self._trials.values(), *([self._trial] if self._trial else ())):
            await trial.close()


def _only(user: str, config: Config) -> Routes:
    """Return routes that find only this user's addresses."""
    route = Route(user, 0, 1.0, "pass", "bounce")
    return Routes([route], delimiters=config.routing.recipient_delimiter, origin=config.routing.origin)


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


async def _replay(run: _Run, state: _State, after: int, before: int) -> bool:
    """Ask about all cases. Return False when the user interrupted it."""
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    last = after
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("", total=recorded.count(run.connection, after, before))
            async for case, answer in replay_each(run.pairs(after, before)):
                if case.message != last:
                    state.step(last)
                    progress.update(bar, completed=run.read)
                    last = case.message
                    if interrupted.is_set():
                        break
                state.tally.add(_difference(case, answer), action(case.verdict), action(answer))
    finally:
        await run.close()
    if not interrupted.is_set():
        state.step(before - 1, now=True)
        return True
    state.step(state.after, now=True)
    return False


def _difference(case: Case, answer: PipelineResult) -> Difference | None:
    fields = differing(case.verdict, answer)
    if not fields:
        return None
    return Difference(
        id=case.id,
        to=case.recipient.address,
        sender=case.envelope.sender or "<>",
        subject=case.subject,
        was=told(case.verdict),
        now=told(answer),
        fields=fields,
        why=answer.reason,
        step=answer.trace[-1].processor if answer.trace else "",
    )


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
