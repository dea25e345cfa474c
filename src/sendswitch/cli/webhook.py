"""`webhook list|events|show|resend|enable`: what is told to whom, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

from sendswitch.cli.output import Session, moment, readable
from sendswitch.config.model import Config
from sendswitch.config.units import duration
from sendswitch.control import ring
from sendswitch.errors import NotFound
from sendswitch.webhooks.outbox import PLACE, Outbox

app = typer.Typer(help="Webhooks of `notify`: who is told, and what came of it.", no_args_is_help=True)

# Events shown, and sent again at once.
MOST_SHOWN, MOST_AGAIN = 200, 10_000

EMPTY = 'no endpoints; a step with use = "notify" in a pipeline adds one'

Endpoint = Annotated[
    int | None, typer.Option("--endpoint", help="Only of this endpoint, as `webhook list` numbers it.")
]
Since = Annotated[str, typer.Option("--since", help="Only those made since, such as 2h or 3d.")]
State = Annotated[
    Literal["", "waiting", "delivered", "failed"], typer.Option("--state", help="waiting, delivered or failed.")
]


@contextmanager
def _outbox(config: Config) -> Iterator[Outbox]:
    file = config.node.data / PLACE
    if not file.exists():
        raise NotFound(f"there is no outbox in {file.parent}: no node has run here")
    outbox = Outbox(file)
    try:
        yield outbox
    finally:
        outbox.close()


@app.command("list")
def list_(context: typer.Context) -> None:
    """List endpoints with the numbers of their events. They wait, were delivered or failed."""
    session: Session = context.obj
    with _outbox(session.config()) as outbox:
        rows = outbox.endpoints()
    for row in rows:
        row["due"], row["disabled"] = moment(row["due"]), moment(row["disabled"])
        if not session.json and row["disabled"]:
            row["disabled"] = f"{readable(row['disabled'])}: {row['why']}"
    columns = ("number", "url", "recipient", "waiting", "delivered", "failed", "due", "disabled")
    session.show(rows, columns, EMPTY, spare=("delivered", "due", "recipient"))


@app.command("events")
def events(context: typer.Context, endpoint: Endpoint = None, since: Since = "", state: State = "") -> None:
    """List events, the newest first."""
    session: Session = context.obj
    with _outbox(session.config()) as outbox:
        rows = outbox.events(endpoint=endpoint, since=_since(since), state=state, limit=MOST_SHOWN)
    for row in rows:
        row["created"], row["due"] = moment(row["created"]), moment(row["due"])
    columns = ("id", "endpoint", "message", "created", "state", "attempts", "due")
    session.show(rows, columns, "no events", spare=("endpoint", "attempts", "due"))


@app.command("show")
def show(context: typer.Context, id_: Annotated[str, typer.Argument(metavar="ID", help="An event's id.")]) -> None:
    """Show each try of an event with what the receiver said."""
    session: Session = context.obj
    with _outbox(session.config()) as outbox:
        rows = outbox.attempts(id_)
    for row in rows:
        row["at"], row["seconds"] = moment(row["at"]), round(row["seconds"], 3)
    session.show(rows, ("n", "at", "seconds", "status", "said"), "not tried yet")


@app.command("resend")
def resend(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Events; without any --since or --endpoint says which.")
    ] = None,
    endpoint: Endpoint = None,
    since: Since = "",
    state: State = "",
) -> None:
    """Send events once more, one or a range, with the ids they had."""
    session: Session = context.obj
    config = session.config()
    if not ids and endpoint is None and not since:
        raise typer.BadParameter("name events, or say which with --since or --endpoint")
    with _outbox(config) as outbox:
        wanted = list(ids or ())
        if not wanted:
            found = outbox.events(endpoint=endpoint, since=_since(since), state=state, limit=MOST_AGAIN)
            wanted = [row["id"] for row in found]
        done = sum(outbox.send_again(wanted[n : n + 500], time.time()) for n in range(0, len(wanted), 500))
    if ids and not done:
        raise NotFound("none of these can be sent again; sendswitch webhook list tells what is disabled")
    ring(config.node.data)
    session.done(f"{done} sent again", events=done)


@app.command("enable")
def enable(context: typer.Context, number: Annotated[int, typer.Argument(help="As `webhook list` tells.")]) -> None:
    """Tell a disabled endpoint again what comes from now on."""
    session: Session = context.obj
    config = session.config()
    with _outbox(config) as outbox:
        outbox.enable(number)
    ring(config.node.data)
    more = "; `sendswitch webhook resend` sends what came meanwhile"
    session.done(f"endpoint {number} is told again{more}", number=number)


def _since(since: str) -> float:
    return time.time() - duration(since) if since else 0.0
