"""`webhook list|events|show|resend|enable`: webhooks of `notify`, their events, and the attempts to send them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.admin import webhooks
from sendswitch.admin.webhooks import EventState
from sendswitch.cli.output import Session, readable
from sendswitch.config.units import duration

app = typer.Typer(help="Webhooks of `notify`: endpoints, events and attempts.", no_args_is_help=True)

EMPTY = 'no endpoints; a step with use = "notify" in a pipeline adds one'

Endpoint = Annotated[
    int | None, typer.Option("--endpoint", help="Only of this endpoint, as `webhook list` numbers it.")
]
Since = Annotated[str, typer.Option("--since", help="Only those made since, such as 2h or 3d.")]
State = Annotated[EventState, typer.Option("--state", help="waiting, delivered or failed.")]


@app.command("list")
def list_(context: typer.Context) -> None:
    """List endpoints with the count of their events by state."""
    session: Session = context.obj
    rows = [asdict(one) for one in session.client.call(webhooks.endpoints)]
    for row in rows:
        if not session.json and row["disabled"]:
            row["disabled"] = f"{readable(row['disabled'])}: {row['why']}"
    columns = ("number", "url", "recipient", "waiting", "delivered", "failed", "due", "disabled")
    session.show(rows, columns, EMPTY, spare=("delivered", "due", "recipient"))


@app.command("events")
def events(context: typer.Context, endpoint: Endpoint = None, since: Since = "", state: State = "") -> None:
    """List events, the newest first."""
    session: Session = context.obj
    found = session.client.call(webhooks.events, endpoint=endpoint, since=_seconds(since), state=state)
    columns = ("id", "endpoint", "message", "created", "state", "attempts", "due")
    session.show([asdict(one) for one in found], columns, "no events", spare=("endpoint", "attempts", "due"))


@app.command("show")
def show(context: typer.Context, id_: Annotated[str, typer.Argument(metavar="ID", help="An event's id.")]) -> None:
    """Show each attempt to send an event, with its response."""
    session: Session = context.obj
    rows = [asdict(one) for one in session.client.call(webhooks.attempts, id=id_)]
    session.show(rows, ("n", "at", "seconds", "status", "said"), "not tried yet")


@app.command("resend")
def resend(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Event ids; if none, select by --since or --endpoint.")
    ] = None,
    endpoint: Endpoint = None,
    since: Since = "",
    state: State = "",
) -> None:
    """Resend one event or a range, with the original ids."""
    session: Session = context.obj
    if not ids and endpoint is None and not since:
        raise typer.BadParameter("name events, or say which with --since or --endpoint")
    done = session.client.call(
        webhooks.resend, ids=tuple(ids or ()), endpoint=endpoint, since=_seconds(since), state=state
    )
    session.done(f"{done} sent again", events=done)


@app.command("enable")
def enable(context: typer.Context, number: Annotated[int, typer.Argument(help="As `webhook list` tells.")]) -> None:
    """Enable a disabled endpoint for new events."""
    session: Session = context.obj
    session.client.call(webhooks.enable, number=number)
    more = "; `sendswitch webhook resend` sends what came meanwhile"
    session.done(f"endpoint {number} is told again{more}", number=number)


def _seconds(since: str) -> float:
    return duration(since) if since else 0.0
