"""`queue …`: what is on its way, and orders about it.

Orders (`suspend`, `bounce`, `drop`) hold for mail that is here and mail that comes, until their time is over or
somebody cancels them; the node carries them out.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sendswitch.cli.output import Bytes, Session, local, moment
from sendswitch.cli.words import joined, read_terms
from sendswitch.config.units import duration
from sendswitch.control import ring
from sendswitch.journal import story
from sendswitch.journal.search import OF_MOVING, OF_SPOOLED
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import MAX_REASON
from sendswitch.spool import admin, orders
from sendswitch.spool.orders import Kind, Order
from sendswitch.spool.states import State

app = typer.Typer(help="The queue: mail on its way or held.", no_args_is_help=True)

Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Most rows.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[SEARCH]...", help="Words like from:alice larger:1MB.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is told in each message's story.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what it is about.")]
# Words of a search may begin with "-". Letters behind it are no options: the h of -from:hal does not ask for help.
SEARCH: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": ["--help"]}

# The columns of a timeline, as `timeline_row` gives them.
TIMELINE = ("at", "recipient", "text")

# Deliveries that are going somewhere, and those with what waits for a person.
MOVING = (State.ACCEPTED, State.DECIDED)
WAITING = (*MOVING, State.HELD)
ALL = 1_000_000


@app.command("list", context_settings=SEARCH)
def list_(context: typer.Context, words: Words = None, limit: Limit = 1000) -> None:
    """List deliveries that are not final, the oldest first."""
    session: Session = context.obj
    connection = admin.open_files(session.config().node.data)
    found = admin.rows(connection, WAITING, terms=read_terms(words or (), OF_SPOOLED), limit=limit)
    _show(session, found, "the queue is empty" if not words else "no delivery in the queue matches")


def _show(session: Session, found: list[admin.Row], empty: str) -> None:
    rows = [delivery_facts(row) if session.json else _listed(row) for row in found]
    columns = ("id", "since", "from", "to", "size", "state", "next_try", "attempts", "last_answer")
    session.show(rows, columns, empty, spare=("attempts", "size", "from", "since", "state"))


def delivery_facts(row: admin.Row) -> dict[str, object]:
    """Return a delivery as JSON has it."""
    times = {"received": moment(row.received), "since": moment(row.since), "due": moment(row.due)}
    return asdict(row) | times


_BY: dict[str, Callable[[admin.Row], str]] = {
    "domain": lambda row: row.recipient.rpartition("@")[2],
    "recipient": lambda row: row.recipient,
    "sender": lambda row: row.sender or "<>",
    "client": lambda row: row.client,
    "answer": lambda row: row.reply,
    "state": lambda row: row.state,
}


@app.command("top", context_settings=SEARCH)
def top(
    context: typer.Context,
    words: Words = None,
    by: Annotated[str, typer.Option("--by", help=f"One of {', '.join(_BY)}.")] = "domain",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most rows.")] = 20,
) -> None:
    """Show what there is most of in the queue."""
    session: Session = context.obj
    if by not in _BY:
        raise typer.BadParameter(f"--by {by} is none of {', '.join(_BY)}")
    connection = admin.open_files(session.config().node.data)
    groups: dict[str, list[admin.Row]] = {}
    for row in admin.rows(connection, WAITING, terms=read_terms(words or (), OF_SPOOLED), limit=ALL):
        groups.setdefault(_BY[by](row), []).append(row)
    rows = [
        {
            by: name,
            "deliveries": len(group),
            "bytes": Bytes(sum(row.size for row in group)),
            "oldest": moment(min(row.received for row in group)),
        }
        for name, group in sorted(groups.items(), key=lambda pair: -len(pair[1]))[:limit]
    ]
    session.show(rows, (by, "deliveries", "bytes", "oldest"), "the queue is empty")


@app.command("show")
def show(context: typer.Context, id_: Annotated[str, typer.Argument(metavar="ID", help="As listed.")]) -> None:
    """Show all that is known of one delivery. What happened so far is told too."""
    session: Session = context.obj
    connection = admin.open_files(session.config().node.data)
    row = admin.row(connection, id_)
    message, _ = admin.parse_id(id_)
    lines = story.timeline(admin.events(connection, message))
    if session.json:
        session.print_json(delivery_facts(row) | {"timeline": [timeline_row(line) for line in lines]})
        return
    about = delivery_facts(row) | {"size": Bytes(row.size)}
    session.show([{"what": key, "is": value} for key, value in about.items() if value], ("what", "is"), "")
    session.show([timeline_row(line) for line in lines], TIMELINE, "nothing is told of it", spare=("recipient",))


def timeline_row(line: story.Line) -> dict[str, object]:
    """Return a line of a timeline."""
    return asdict(line) | {"at": moment(line.at)}


@app.command("flush", context_settings=SEARCH)
def flush(context: typer.Context, words: Words = None) -> None:
    """Try now what waits for another attempt. It is all, or what a search finds."""
    session: Session = context.obj
    data = session.config().node.data
    connection = admin.open_files(data)
    terms = read_terms(words or (), OF_SPOOLED)
    ids = [row.id for row in admin.rows(connection, MOVING, terms=terms, limit=ALL)] if terms else None
    count = admin.flush(connection, ids, time.time())
    running = ring(data)
    session.done(f"{count} deliveries are due now{_hint(running)}", flushed=count, node_told=running)


@app.command("suspend", context_settings=SEARCH)
def suspend(
    context: typer.Context,
    words: Words = None,
    reason: Reason = "",
    ttl: Annotated[str, typer.Option("--ttl", help="How long.")] = "1h",
    dry_run: DryRun = False,
) -> None:
    """Deliver nothing that a search finds, or nothing at all. Prints the id that cancels it."""
    _order(context.obj, Kind.SUSPEND, words or [], reason, ttl, dry_run)


@app.command("bounce", context_settings=SEARCH)
def bounce(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="SEARCH...", help="What to bounce.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; senders read it in the report.")],
    ttl: Annotated[str, typer.Option("--ttl", help="How long it holds for mail that comes.")] = "5m",
    dry_run: DryRun = False,
) -> None:
    """End deliveries with a report to their senders. Prints the id that cancels it for what comes."""
    _order(context.obj, Kind.BOUNCE, words, reason, ttl, dry_run)


@app.command("quarantine", context_settings=SEARCH)
def quarantine(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="SEARCH...", help="What to put aside.")],
    reason: Reason,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it holds for mail that comes.")] = "5m",
    dry_run: DryRun = False,
) -> None:
    """Put mail on its way into the quarantine. It may have been released or answered and not delivered yet."""
    _order(context.obj, Kind.QUARANTINE, words, reason, ttl, dry_run)


@app.command("drop", context_settings=SEARCH)
def drop(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="SEARCH...", help="What to drop.")],
    reason: Reason,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it holds for mail that comes.")] = "5m",
    dry_run: DryRun = False,
) -> None:
    """End deliveries and tell nobody. `message requeue` brings one back as long as its record is kept."""
    _order(context.obj, Kind.DROP, words, reason, ttl, dry_run)


def _order(session: Session, kind: Kind, words: list[str], reason: str, ttl: str, dry_run: bool) -> None:
    data = session.config().node.data
    connection = admin.open_files(data)
    terms = read_terms(words, OF_MOVING)
    found = admin.rows(connection, MOVING, terms=terms, limit=ALL)
    if dry_run:
        _show(session, found, "no delivery in the queue matches now")
        return
    order = orders.give(
        connection,
        kind,
        joined(words),
        reason=storable(reason, MAX_REASON),
        author=getpass.getuser(),
        now=time.time(),
        time=duration(ttl),
        here=[row.id for row in found],
    )
    running = ring(data)
    if kind is not Kind.SUSPEND:
        # What waits for its next attempt would hear of the order only then.
        admin.flush(connection, [row.id for row in found], time.time())
        ring(data)
    session.done(
        f"order {order.id}: {kind} {order.words or 'everything'} until {local(order.expires)},"
        f" {len(found)} deliveries now; `sendswitch queue cancel {order.id}` ends it{_hint(running)}",
        order=order.id,
        kind=kind.value,
        until=moment(order.expires),
        deliveries=len(found),
        node_told=running,
    )


@app.command("orders")
def orders_(context: typer.Context) -> None:
    """List the orders that hold now."""
    session: Session = context.obj
    found = orders.active(admin.open_files(session.config().node.data), time.time())
    columns = ("order", "kind", "words", "reason", "by", "given", "until")
    session.show([_order_facts(order) for order in found], columns, "no order holds", spare=("given", "by"))


@app.command("cancel")
def cancel(context: typer.Context, order: Annotated[int, typer.Argument(help="An order's id.")]) -> None:
    """End an order; what it suspended goes on."""
    _cancel(context.obj, [order])


@app.command("resume")
def resume(context: typer.Context) -> None:
    """End every suspension."""
    session: Session = context.obj
    found = orders.active(admin.open_files(session.config().node.data), time.time())
    _cancel(session, [order.id for order in found if order.kind is Kind.SUSPEND])


def _cancel(session: Session, ids: list[int]) -> None:
    data: Path = session.config().node.data
    connection = admin.open_files(data)
    ended = [orders.cancel(connection, id_, time.time()) for id_ in ids]
    running = ring(data)
    resumed = sum(count for _, count in ended)
    session.done(
        f"{len(ended)} orders ended, {resumed} deliveries go on{_hint(running)}",
        ended=[order.id for order, _ in ended],
        resumed=resumed,
        node_told=running,
    )


def _order_facts(order: Order) -> dict[str, object]:
    return {
        "order": order.id,
        "kind": order.kind.value,
        "words": order.words,
        "reason": order.reason,
        "by": order.author,
        "given": moment(order.created),
        "until": moment(order.expires),
    }


def _hint(running: bool) -> str:
    return "" if running else "; no node is running here, it happens at the next start"


def _listed(row: admin.Row) -> dict[str, object]:
    return {
        "id": row.id,
        "since": moment(row.received),
        "from": row.sender or "<>",
        "to": row.recipient,
        "size": Bytes(row.size),
        "state": row.state,
        "next_try": moment(row.due) if row.attempts or row.state == State.HELD or row.reply else "now",
        "attempts": row.attempts,
        "last_answer": row.reply or row.reason,
    }
