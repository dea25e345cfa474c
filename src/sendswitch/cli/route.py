"""`route list|set`: whose workers run a user's pipeline."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.accounts.workers import WhenOffline
from sendswitch.admin import routes
from sendswitch.admin.routes import Whose
from sendswitch.cli.output import Session

app = typer.Typer(help="Routes: whose workers run a user's pipeline.", no_args_is_help=True)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the routes of all users."""
    session: Session = context.obj
    rows = [asdict(one) for one in session.client.call(routes.list_routes)]
    columns = ("address", "run_by", "when_offline", "pipeline")
    session.show(rows, columns, "no users; add one: sendswitch user add user@domain")


@app.command("set")
def set_(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="The user, or @domain for all of a domain.")],
    run_by: Annotated[
        Whose, typer.Option("--run-by", help="Whose workers run the pipeline: site, or own for the user's.")
    ],
    when_offline: Annotated[
        WhenOffline | None,
        typer.Option(
            "--when-offline",
            help="What happens to mail while no worker is there; by default pass for own, defer for site.",
        ),
    ] = None,
) -> None:
    """Set whose workers run a pipeline, and what happens without any."""
    session: Session = context.obj
    told = session.client.call(routes.set_route, address=address, run_by=run_by, when_offline=when_offline)
    whose = f"workers of {address}" if run_by == "own" else "workers of the site"
    next_ = f"; make a key for them: sendswitch key add {address}" if run_by == "own" else ""
    session.done(
        f"{whose} run the pipeline; while none is there, when_offline is {told.when_offline}{next_}", **asdict(told)
    )
