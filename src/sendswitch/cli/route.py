"""`route list|set|install|uninstall`: whose workers run a user's pipeline."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sendswitch.accounts.workers import RunBy, WhenOffline
from sendswitch.admin import routes
from sendswitch.cli import secret_file
from sendswitch.cli.output import Session

Offline = Annotated[
    WhenOffline | None,
    typer.Option(
        "--when-offline",
        help="What happens to mail while no worker is there; by default defer for site, else pass.",
    ),
]

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
        RunBy,
        typer.Option(
            "--run-by", help="Whose workers: those of the site, or the user's own over the web port or RabbitMQ."
        ),
    ],
    when_offline: Offline = None,
) -> None:
    """Set whose workers run a pipeline, and what happens without any."""
    session: Session = context.obj
    told = session.client.call(routes.set_route, address=address, run_by=run_by, when_offline=when_offline)
    whose = "workers of the site" if run_by == "site" else f"workers of {address}"
    next_ = f"; make a key for them: sendswitch key add {address}" if run_by == "own" else ""
    session.done(
        f"{whose} run the pipeline; while none is there, when_offline is {told.when_offline}{next_}", **asdict(told)
    )


@app.command("install")
def install(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="The user, or @domain for all of a domain.")],
    account: Annotated[
        bool, typer.Option(help="Make an account in RabbitMQ; --no-account where a directory has them.")
    ] = True,
    new_password: Annotated[
        bool, typer.Option("--new-password", help="Give an account that is there already another password.")
    ] = False,
    file: secret_file.Option = None,
    when_offline: Offline = None,
) -> None:
    """Have a user's own workers run the pipeline over RabbitMQ.

    Makes their queue and their account. The password is in the URL with which `sendswitch work --broker` connects, and
    is shown once.
    """
    session: Session = context.obj
    with secret_file.secret_file(file) as write:
        made = session.client.call(
            routes.install, address=address, account=account, new_password=new_password, when_offline=when_offline
        )
        if made.url:
            write(made.url)
    head = f"workers of {address} run the pipeline; while none is there, when_offline is {made.when_offline}"
    told = {"address": address, "when_offline": made.when_offline}
    if not made.url:
        kept = "; the account is as it was, and --new-password gives it another password" if account else ""
        session.done(head + kept, **told)
    elif file is not None:
        session.done(f"{head}; start one: sendswitch work --broker - < {file}", **told, file=str(file))
    else:
        session.done(f"{head}; they connect with this URL, which is not shown again: {made.url}", **told, url=made.url)


@app.command("uninstall")
def uninstall(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="The user, or @domain for all of a domain.")],
) -> None:
    """Have the site's workers run it again; remove all in RabbitMQ."""
    session: Session = context.obj
    session.client.call(routes.uninstall, address=address)
    session.done(f"RabbitMQ has nothing more for {address}", address=address)
