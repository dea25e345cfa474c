"""`queue …`: mail in the queue, and administrators' rules for it.

A rule (`suspend`, `bounce`, `quarantine`, `drop`) applies to mail in the queue and to mail that comes, until it expires
or is cancelled. The node applies it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sendswitch.admin import deliveries, queue, rules
from sendswitch.admin.deliveries import DeliverySummary, TimelineLine
from sendswitch.admin.queue import By
from sendswitch.admin.rules import CancelledRules, RuleSummary
from sendswitch.cli.output import Bytes, Session, readable
from sendswitch.cli.search_words import joined
from sendswitch.config.units import duration
from sendswitch.journal.search import OF_MOVING, parse
from sendswitch.spool.rules import Kind
from sendswitch.spool.states import State

app = typer.Typer(help="The queue: mail on its way or held.", no_args_is_help=True)

Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Row limit.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[SEARCH]...", help="Words like from:alice larger:1MB.")]
Reason = Annotated[str, typer.Option("--reason", help="The reason, for each message's history.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the mail that it would change.")]
# Words of a search may begin with "-". Letters behind it are no options: the h of -from:hal does not ask for help.
SEARCH: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": ["--help"]}

# The columns of a history, as `timeline_row` returns them.
TIMELINE = ("at", "recipient", "text")


@app.command("list", context_settings=SEARCH)
def list_(context: typer.Context, words: Words = None, limit: Limit = 1000) -> None:
    """List deliveries that are not final, the oldest first."""
    session: Session = context.obj
    found = session.pages(queue.list_queue, limit, search=joined(words or ()))
    _show(session, found, "the queue is empty" if not words else "no delivery in the queue matches")


def _show(session: Session, found: Iterable[DeliverySummary], empty: str) -> None:
    rows = [asdict(row) if session.json else _listed(row) for row in found]
    columns = ("id", "since", "from", "to", "size", "state", "next_try", "attempts", "last_answer")
    session.show(rows, columns, empty, spare=("attempts", "size", "from", "since", "state"))


@app.command("top", context_settings=SEARCH)
def top(
    context: typer.Context,
    words: Words = None,
    by: Annotated[By, typer.Option("--by", help="The property to group by.")] = By.DOMAIN,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Row limit.")] = 20,
) -> None:
    """Count queued deliveries by domain or another property."""
    session: Session = context.obj
    rows = [
        {by.value: group.name, "deliveries": group.deliveries, "bytes": Bytes(group.bytes), "oldest": group.oldest}
        for group in session.client.call(queue.top, search=joined(words or ()), by=by, limit=limit)
    ]
    session.show(rows, (by.value, "deliveries", "bytes", "oldest"), "the queue is empty")


@app.command("show")
def show(context: typer.Context, id_: Annotated[str, typer.Argument(metavar="ID", help="As listed.")]) -> None:
    """Show a delivery with the history of its message so far."""
    session: Session = context.obj
    found = session.client.call(deliveries.show, id=id_)
    facts, lines = asdict(found.delivery), [timeline_row(line) for line in found.timeline]
    if session.json:
        session.print_json(facts | {"timeline": lines})
        return
    facts["size"] = Bytes(facts["size"])
    session.show([{"what": key, "is": value} for key, value in facts.items() if value], ("what", "is"), "")
    session.show(lines, TIMELINE, "its history is empty", spare=("recipient",))


def timeline_row(line: TimelineLine) -> dict[str, object]:
    """Return a line of a history as a row."""
    return asdict(line)


@app.command("flush", context_settings=SEARCH)
def flush(context: typer.Context, words: Words = None) -> None:
    """Retry deferred mail now: all, or what a search finds."""
    session: Session = context.obj
    count = session.client.call(queue.flush, search=joined(words or ()))
    session.done(f"{count} deliveries are due now{hint(session)}", flushed=count, node_told=session.client.running)


@app.command("suspend", context_settings=SEARCH)
def suspend(
    context: typer.Context,
    words: Words = None,
    reason: Reason = "",
    ttl: Annotated[str, typer.Option("--ttl", help="How long.")] = "1h",
    dry_run: DryRun = False,
) -> None:
    """Suspend mail that a search finds, or all mail. Prints the rule's number."""
    _add(context.obj, Kind.SUSPEND, words or [], reason, ttl, dry_run)


@app.command("bounce", context_settings=SEARCH)
def bounce(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="SEARCH...", help="The mail to bounce.")],
    reason: Annotated[str, typer.Option("--reason", help="The reason; senders read it in the report.")],
    ttl: Annotated[str, typer.Option("--ttl", help="How long it applies to new mail.")] = "5m",
    dry_run: DryRun = False,
) -> None:
    """Bounce mail: send its senders a DSN. Prints the rule's number."""
    _add(context.obj, Kind.BOUNCE, words, reason, ttl, dry_run)


@app.command("quarantine", context_settings=SEARCH)
def quarantine(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="SEARCH...", help="The mail to quarantine.")],
    reason: Reason,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it applies to new mail.")] = "5m",
    dry_run: DryRun = False,
) -> None:
    """Move mail to the quarantine.

    Mail that was released or answered and not delivered yet is moved too. Prints the rule's number.
    """
    _add(context.obj, Kind.QUARANTINE, words, reason, ttl, dry_run)


@app.command("drop", context_settings=SEARCH)
def drop(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="SEARCH...", help="The mail to drop.")],
    reason: Reason,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it applies to new mail.")] = "5m",
    dry_run: DryRun = False,
) -> None:
    """Discard mail without a bounce. `message requeue` can deliver it while its record is kept."""
    _add(context.obj, Kind.DROP, words, reason, ttl, dry_run)


def _add(session: Session, kind: Kind, words: list[str], reason: str, ttl: str, dry_run: bool) -> None:
    search = joined(words)
    if dry_run:
        parse(search, time.time(), OF_MOVING)  # a word that the rule itself would refuse
        found = session.pages(queue.list_queue, 1_000_000, search=search)
        moving = [row for row in found if row.state in (State.ACCEPTED, State.DECIDED)]
        _show(session, moving, "no delivery in the queue matches now")
        return
    added = session.client.call(rules.add, kind=kind, search=search, reason=reason, seconds=duration(ttl))
    rule = added.rule
    session.done(
        f"rule {rule.id}: {kind} {rule.search or 'everything'} until {readable(rule.expires)},"
        f" {added.deliveries} deliveries now; `sendswitch queue cancel {rule.id}` ends it{hint(session)}",
        rule=rule.id,
        kind=kind.value,
        until=rule.expires,
        deliveries=added.deliveries,
        node_told=session.client.running,
    )


@app.command("rules")
def rules_(context: typer.Context) -> None:
    """List the rules that apply now."""
    session: Session = context.obj
    columns = ("rule", "kind", "search", "reason", "author", "created", "expires")
    found = session.client.call(rules.list_rules)
    session.show([_row(rule) for rule in found], columns, "no rule applies", spare=("created", "author"))


@app.command("orders", hidden=True)
def orders(context: typer.Context) -> None:
    """List the active rules (old name of `queue rules`)."""
    rules_(context)


@app.command("cancel")
def cancel(context: typer.Context, rule: Annotated[int, typer.Argument(help="A rule's number.")]) -> None:
    """Cancel a rule. Resumes mail that it suspended."""
    session: Session = context.obj
    _tell_cancelled(session, session.client.call(rules.cancel, id=rule))


@app.command("resume")
def resume(context: typer.Context) -> None:
    """Cancel every suspension."""
    session: Session = context.obj
    _tell_cancelled(session, session.client.call(rules.resume))


def _tell_cancelled(session: Session, done: CancelledRules) -> None:
    session.done(
        f"{len(done.rules)} rules cancelled, {done.resumed} deliveries go on{hint(session)}",
        cancelled=[rule.id for rule in done.rules],
        resumed=done.resumed,
        node_told=session.client.running,
    )


def _row(rule: RuleSummary) -> dict[str, object]:
    row = asdict(rule)
    return {"rule": row.pop("id")} | row


def hint(session: Session) -> str:
    """Return the end of a sentence about a change that only a running node carries out."""
    return "" if session.client.running else "; no node is running here, it happens at the next start"


def _listed(row: DeliverySummary) -> dict[str, object]:
    return {
        "id": row.id,
        "since": row.received,
        "from": row.sender or "<>",
        "to": row.recipient,
        "size": Bytes(row.size),
        "state": row.state,
        "next_try": row.due if row.attempts or row.state == State.HELD or row.reply else "now",
        "attempts": row.attempts,
        "last_answer": row.reply or row.reason,
    }
