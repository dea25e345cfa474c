"""`message …`: what happened to mail, and why; and requests to deliver it once more."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sendswitch.admin import deliveries, messages, node
from sendswitch.admin.messages import DeliveryStory, MessageSummary
from sendswitch.cli.content import raw, show
from sendswitch.cli.ids import Id
from sendswitch.cli.output import Bytes, Session, readable
from sendswitch.cli.quarantine import tell_each
from sendswitch.cli.queue import SEARCH, TIMELINE, Reason, timeline_row
from sendswitch.cli.search_words import joined
from sendswitch.config.units import duration
from sendswitch.errors import NotFound, SendSwitchError
from sendswitch.spool import admin

if TYPE_CHECKING:
    from sendswitch.admin.base import Installation
    from sendswitch.pipeline.recording import Case
    from sendswitch.pipeline.smallest_change import SmallestChange


# Seconds between two looks at a trace, and how much longer the node writes down than it is asked to.
LOOK, GRACE = 0.3, 5.0

# What is meant as an id, right or wrong, and no word to search for.
ID = re.compile(r"[0-7][0-9A-Za-z]{12}(\..*)?")

app = typer.Typer(help="Messages: what happened to them, and why.", no_args_is_help=True)

Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Row limit.")]


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
    follow_: Annotated[bool, typer.Option("--follow", help="Keep showing deliveries as they change.")] = False,
) -> None:
    """List mail, the newest first. With --follow, appends new lines until Ctrl-C."""
    session: Session = context.obj
    if follow_:
        from sendswitch.cli.follow import follow

        follow(session, joined(words or ()), _listed)
        return
    rows = [_listed(row) for row in session.pages(messages.search, limit, search=joined(words or ()))]
    columns = ("id", "received", "from", "to", "subject", "state", "verdict", "tags", "why")
    spare = ("tags", "verdict", "subject", "received", "from", "why")
    session.show(rows, columns, "no message matches" if words else "the journal has no mail yet", spare)


def _listed(row: MessageSummary) -> dict[str, object]:
    return {
        "id": row.id,
        "received": row.received,
        "from": row.sender or "<>",
        "to": row.recipient,
        "subject": row.subject,
        "size": Bytes(row.size),
        "via": row.via,
        "client": row.client,
        "queue_id": row.queue_id,
        "message_id": row.message_id,
        "state": row.state,
        "since": row.since,
        "verdict": row.action,
        "tags": row.tags,
        "processor": row.processor,
        "reason": row.reason,
        "attempts": row.attempts,
        "last_answer": row.reply,
        "why": row.reply or row.reason,
    }


@app.command("timeline")
def timeline(context: typer.Context, id_: Id) -> None:
    """Show every event of a message in order."""
    session: Session = context.obj
    lines = session.client.call(messages.history, id=id_).timeline
    session.show([timeline_row(line) for line in lines], TIMELINE, "its history is empty", spare=("recipient",))


@app.command("explain", context_settings=SEARCH)
def explain(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="ID|SEARCH...", help="An id as listed, or words that find the mail.")
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Maximum deliveries to explain.")] = 3,
) -> None:
    """Explain the fate of a message for each recipient. A search explains the newest matching deliveries."""
    session: Session = context.obj
    stories = [story for id_ in _wanted(session, words, limit) for story in _stories(session, id_)]
    told = [(story, _smallest_change(session, story.id) if story.steps else None) for story in stories]
    if session.json:
        session.print_json([asdict(story) | {"change": change and asdict(change)} for story, change in told])
        return
    for story, change in told:
        print(f"{story.id} for {readable(story.recipient)}: {story.state}")
        for sentence in (*story.sentences, *([change.sentence] if change else ())):
            print(f"  {readable(sentence)}")


def _wanted(session: Session, words: list[str], limit: int) -> list[str]:
    """Return the ids that are meant. Raises NotFound, InvalidSearch."""
    if len(words) == 1 and ID.fullmatch(words[0]):
        return words
    found = list(session.pages(messages.search, limit, search=joined(words)))
    if not found:
        raise NotFound("no message matches; `sendswitch message list` shows all, a second after it came")
    return [row.id for row in found]


def _stories(session: Session, id_: str) -> tuple[DeliveryStory, ...]:
    return session.client.call(messages.history, id=id_).deliveries


@app.command("trace")
def trace(
    context: typer.Context,
    listener: Annotated[str, typer.Option("--listener", help="Only the listener with this bind address.")] = "",
    sender: Annotated[str, typer.Option("--from", help="Only senders that contain this.")] = "",
    time_: Annotated[str, typer.Option("--for", help="How long.")] = "1m",
) -> None:
    """Show live SMTP sessions, without message content. Ctrl-C ends it."""
    session: Session = context.obj
    end = time.monotonic() + duration(time_)
    client, seconds = session.client, duration(time_) + GRACE
    client.call(node.start_trace, listener=listener, sender=sender, seconds=seconds)
    seen, found = 0, []
    try:
        while time.monotonic() < end:
            for line in client.call(node.trace, after=seen):
                seen = line.number
                found.append(line)
                if not session.json:
                    print(readable(f"{readable(line.at)} {line.session} {line.who}: {line.text}"), flush=True)
            time.sleep(LOOK)
    except KeyboardInterrupt:
        pass
    finally:
        client.call(node.stop_trace)
    if session.json:
        session.print_json([asdict(line) for line in found])


Deliveries = Annotated[list[str], typer.Argument(metavar="ID...", help="Deliveries' ids as listed.")]


@app.command("requeue")
def requeue(
    context: typer.Context,
    ids: Deliveries,
    reason: Reason = "",
    unfiltered: Annotated[bool, typer.Option("--unfiltered", help="Deliver without asking the pipeline.")] = False,
    once_more: Annotated[bool, typer.Option("--again", help="Also requeued mail that was delivered.")] = False,
) -> None:
    """Deliver once more to the same recipient.

    The spool must still have the content. Mail that was dropped or deleted can be requeued too.
    """
    session: Session = context.obj
    results = session.client.call(
        deliveries.requeue, ids=tuple(ids), reason=reason, unfiltered=unfiltered, again=once_more
    )
    tell_each(session, "requeued", [results])


@app.command("forward")
def forward(
    context: typer.Context,
    ids: Deliveries,
    to: Annotated[list[str], typer.Option("--to", help="New recipient; may be repeated.")],
    reason: Reason = "",
) -> None:
    """Forward a message to other addresses too. Each address's own pipeline runs."""
    session: Session = context.obj
    results = session.client.call(deliveries.forward, ids=tuple(ids), to=tuple(to), reason=reason)
    tell_each(session, "sent on", [results])


def _case(node: Installation, message: int, n: int) -> Case | None:
    """Return the last time that a delivery got a verdict in a node, None when it never did there."""
    from sendswitch.pipeline.recording import case

    with node.spool() as connection:
        return case(connection, node.config.node.data, message, n)


def _smallest_change(session: Session, id_: str) -> SmallestChange | None:
    """Return the smallest change that would have led to another verdict.

    Return None when no change can be tried, because the mail or the pipeline is not here. The pipeline runs in this
    process, whether a node runs or not: the process that has the mail runs no pipeline on request.
    """
    import uvloop
    from sqlalchemy.exc import SQLAlchemyError

    from sendswitch.accounts.users import get_pipeline
    from sendswitch.bootstrap.parts import make_trial
    from sendswitch.pipeline.smallest_change import smallest_change

    installation = session.installation
    try:
        cases = (_case(node, *admin.parse_id(id_)) for node in installation.nodes())
        case = next((case for case in cases if case is not None), None)
        if case is None or case.verdict is None or not case.verdict.pipeline or case.verdict.file:
            return None  # of a pipeline that only a user's own worker has, nothing can be said here
        stored = get_pipeline(installation.database(), case.verdict.pipeline, case.verdict.version)
        trial = make_trial(installation.config, stored.owner, stored.version, stored.text)
    except (SendSwitchError, SQLAlchemyError):
        return None

    async def find() -> SmallestChange:
        try:
            return await smallest_change(case, trial)
        finally:
            await trial.close()

    return uvloop.run(find())
