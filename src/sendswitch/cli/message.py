"""`message …`: what happened to mail, and why; and what can still be done with it."""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sendswitch.cli.content import raw, show
from sendswitch.cli.ids import Id, parse_message
from sendswitch.cli.node import asked
from sendswitch.cli.output import Bytes, Session, local, moment, readable
from sendswitch.cli.quarantine import each
from sendswitch.cli.queue import SEARCH, TIMELINE, Reason, timeline_row
from sendswitch.cli.words import read_terms, search
from sendswitch.config.model import Config
from sendswitch.config.units import duration
from sendswitch.errors import NotFound, SendSwitchError, Temporary, in_words
from sendswitch.journal import story
from sendswitch.journal.events import Event, fold
from sendswitch.mail.address import valid
from sendswitch.mail.ids import to_text
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import MAX_REASON
from sendswitch.spool import admin
from sendswitch.spool import requeue as spool

if TYPE_CHECKING:
    from sendswitch.db.journal import Found
    from sendswitch.pipeline.smallest import SmallestChange

# Seconds between two looks at a trace, and how much longer the node writes down than it is asked to.
LOOK, GRACE = 0.3, 5.0

# What is meant as an id, right or wrong, and no word to search for.
ID = re.compile(r"[0-7][0-9A-Za-z]{12}(\..*)?")

app = typer.Typer(help="Messages: what happened to them, and why.", no_args_is_help=True)

Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Most rows.")]


app.command("raw")(raw)
app.command("show")(show)


@app.command("list", context_settings=SEARCH)
def list_(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SEARCH]...", help="Words like from:alice subject:invoice -state:delivered after:2d."),
    ] = None,
    limit: Limit = 100,
    follow_: Annotated[bool, typer.Option("--follow", help="Go on: show each delivery when it changes.")] = False,
) -> None:
    """List mail, the newest first. With --follow new lines come at the end, until Ctrl-C."""
    session: Session = context.obj
    if follow_:
        from sendswitch.cli.follow import follow

        follow(session, words or (), _listed)
        return
    terms = read_terms(words or ())
    rows = [_listed(row) for row in search(session.config(), terms, limit)]
    columns = ("id", "received", "from", "to", "subject", "state", "verdict", "tags", "why")
    spare = ("tags", "verdict", "subject", "from", "received", "why")
    session.show(rows, columns, "no message matches" if terms else "the journal has no mail yet", spare)


def _listed(found: Found) -> dict[str, object]:
    message, delivery = found.message, found.delivery
    return {
        "id": f"{to_text(message['id'])}.{delivery['n']}",
        "received": moment(message["received"]),
        "from": message["sender"] or "<>",
        "to": delivery["recipient"],
        "subject": message["subject"],
        "size": Bytes(message["size"]),
        "via": message["via"],
        "client": message["client_address"],
        "queue_id": message["queue_id"],
        "message_id": message["message_id"],
        "state": delivery["state"],
        "since": moment(delivery["since"]),
        "verdict": delivery["action"],
        "tags": delivery["tags"].split(),
        "processor": delivery["processor"],
        "reason": delivery["reason"],
        "attempts": delivery["attempts"],
        "last_answer": delivery["reply"],
        "why": delivery["reply"] or delivery["reason"],
    }


@app.command("timeline")
def timeline(context: typer.Context, id_: Id) -> None:
    """Tell everything that happened to a message, in order."""
    session: Session = context.obj
    message, n = parse_message(id_)
    events, _ = _history(session, message)
    to = story.recipients(events)
    lines = [line for line in story.timeline(events) if n is None or line.recipient in ("", to.get(n))]
    session.show([timeline_row(line) for line in lines], TIMELINE, "nothing", spare=("recipient",))


@app.command("explain", context_settings=SEARCH)
def explain(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="ID|SEARCH...", help="An id as listed, or words that find the mail.")
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Most deliveries that a search tells of.")] = 3,
) -> None:
    """Tell why a message ended as it did, for each recipient. With a search it tells of the newest that are found."""
    session: Session = context.obj
    wanted = _wanted(session.config(), words, limit)
    told = [one for message, n in wanted for one in _explained(session, message, n)]
    if session.json:
        session.print_json([one | {"change": change and asdict(change)} for one, change in told])
        return
    for one, change in told:
        print(f"{one['id']} for {readable(one['recipient'])}: {one['state']}")
        for sentence in (*one["sentences"], *([change.sentence] if change else ())):
            print(f"  {readable(sentence)}")


def _wanted(config: Config, words: list[str], limit: int) -> list[tuple[int, int | None]]:
    """Return the deliveries that are meant. Raises NotFound, InvalidSearch."""
    if len(words) == 1 and ID.fullmatch(words[0]):
        return [parse_message(words[0])]
    found = search(config, read_terms(words), limit)
    if not found:
        raise NotFound("no message matches; `sendswitch message list` shows all, a second after it came")
    return [(row.message["id"], row.delivery["n"]) for row in found]


def _explained(session: Session, message: int, n: int | None) -> list[tuple[dict[str, Any], SmallestChange | None]]:
    events, states = _history(session, message)
    if n is not None and n not in states:
        raise NotFound(f"{to_text(message)} has no delivery {n}; it has {', '.join(map(str, sorted(states)))}")
    told = {k: story.explain(events, k, states[k]) for k in sorted(states) if n in (None, k)}
    config = session.config()
    return [
        (
            {"id": f"{to_text(message)}.{k}", **asdict(one)},
            _smallest_change(config, message, k) if one.steps else None,
        )
        for k, one in told.items()
    ]


@app.command("trace")
def trace(
    context: typer.Context,
    listener: Annotated[str, typer.Option("--listener", help="Only of this listener, by its bind address.")] = "",
    sender: Annotated[str, typer.Option("--from", help="Only of senders with this in them.")] = "",
    time_: Annotated[str, typer.Option("--for", help="How long.")] = "1m",
) -> None:
    """Show SMTP dialogs as they happen, without content. Ctrl-C ends it."""
    session: Session = context.obj
    end = time.monotonic() + duration(time_)
    asked(session, "trace", listener=listener, sender=sender, seconds=duration(time_) + GRACE)
    seen, found = 0, []
    try:
        while time.monotonic() < end:
            for line in asked(session, "trace", after=seen)["lines"]:
                seen = line["number"]
                found.append(line)
                if not session.json:
                    text = f"{local(line['at'])} {line['session']} {line['who']}: {line['text']}"
                    print(readable(text), flush=True)
            time.sleep(LOOK)
    except KeyboardInterrupt:
        pass
    finally:
        asked(session, "trace", end=True)
    if session.json:
        session.print_json([line | {"at": moment(line["at"])} for line in found])


Deliveries = Annotated[list[str], typer.Argument(metavar="ID...", help="Deliveries' ids as listed.")]


@app.command("requeue")
def requeue(
    context: typer.Context,
    ids: Deliveries,
    reason: Reason = "",
    unfiltered: Annotated[bool, typer.Option("--unfiltered", help="Deliver without asking the pipeline.")] = False,
    once_more: Annotated[bool, typer.Option("--again", help="Also what was requeued and got through.")] = False,
) -> None:
    """Deliver once more to the same recipient. The content must still be here; it may have been dropped or deleted."""
    session: Session = context.obj
    data = session.config().node.data
    connection, by, why = admin.open_files(data), getpass.getuser(), storable(reason, MAX_REASON)

    def act(id_: str) -> None:
        spool.requeue(connection, data, id_, time.time(), by=by, reason=why, unfiltered=unfiltered, once_more=once_more)

    each(session, ids, "requeued", act)


@app.command("forward")
def forward(
    context: typer.Context,
    ids: Deliveries,
    to: Annotated[list[str], typer.Option("--to", help="Where to; may be given more than once.")],
    reason: Reason = "",
) -> None:
    """Send a message on to other addresses too. Each goes through its own pipeline."""
    session: Session = context.obj
    for address in to:
        if not valid(address) or "@" not in address:
            raise ValueError(f"--to {address!r} is not a mail address")
    data = session.config().node.data
    connection, by, why = admin.open_files(data), getpass.getuser(), storable(reason, MAX_REASON)

    def act(id_: str) -> None:
        spool.send_on(connection, data, id_, to, time.time(), by=by, reason=why)

    each(session, ids, "sent on", act)


def _smallest_change(config: Config, message: int, n: int) -> SmallestChange | None:
    """Return what alone would have led to another verdict; None when it cannot be tried, because the mail or the
    pipeline is not here any more.
    """
    import uvloop
    from sqlalchemy.exc import SQLAlchemyError

    from sendswitch.accounts.users import get_pipeline
    from sendswitch.bootstrap.parts import make_trial
    from sendswitch.db.connect import open_database
    from sendswitch.pipeline import recording as record
    from sendswitch.pipeline.smallest import smallest_change

    try:
        case = record.case(admin.open_files(config.node.data), config.node.data, message, n)
        if case is None or case.verdict is None or not case.verdict.pipeline:
            return None
        engine = open_database(config.database_url, migrate=False)
        stored = get_pipeline(engine, case.verdict.pipeline, case.verdict.version)
        trial = make_trial(config, stored.owner, stored.version, stored.text)
    except (SendSwitchError, SQLAlchemyError):
        return None

    async def find() -> SmallestChange:
        try:
            return await smallest_change(case, trial)
        finally:
            await trial.close()

    return uvloop.run(find())


def _history(session: Session, message: int) -> tuple[list[Event], dict[int, str]]:
    """Return a message's events and its deliveries' states: the journal's, and what the local spool has besides."""
    from sqlalchemy.exc import SQLAlchemyError

    from sendswitch.db import journal
    from sendswitch.db.connect import open_database

    config = session.config()
    events: dict[int, Event] = {}
    trouble = ""
    try:
        engine = open_database(config.database_url, migrate=False)
        events = {event.seq: event for event in journal.story(engine, message).events}
    except (SQLAlchemyError, Temporary) as error:
        trouble = f"; the journal cannot be read: {in_words(error)}"
    events |= {event.seq: event for event in _spooled(config.node.data, message)}
    if not events:
        raise NotFound(f"nothing is known of message {to_text(message)}{trouble}; it may be too old, or another node's")
    ordered = [events[seq] for seq in sorted(events)]
    return ordered, _states(ordered)


def _spooled(data: Path, message: int) -> Sequence[Event]:
    try:
        return admin.events(admin.open_files(data), message)
    except NotFound:
        return ()


def _states(events: Sequence[Event]) -> dict[int, str]:
    batch = fold(events)
    return {n: str(row["state"]) for (_, n), row in batch.deliveries.items()}
