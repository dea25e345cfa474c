"""`broker install|check|remove`: the queues in RabbitMQ."""

from __future__ import annotations

import typer

from sendswitch.admin import rabbitmq, routes
from sendswitch.cli.output import Session
from sendswitch.errors import Temporary

app = typer.Typer(help="RabbitMQ, for workers on other machines.", no_args_is_help=True)


@app.command("install")
def install(context: typer.Context) -> None:
    """Make the exchange and the queues of the site in RabbitMQ. What is there already stays."""
    session: Session = context.obj
    rabbitmq.install(session.config())
    session.done("RabbitMQ has the exchange and the queue of the site", installed=True)


@app.command("check")
def check(context: typer.Context) -> None:
    """Check that RabbitMQ can be reached and has what is needed. If not, shows the causes and exits with 75.

    With `broker.management` it also finds accounts of users who have no route over RabbitMQ any more.
    """
    session: Session = context.obj
    config = session.config()
    rabbitmq.needed_hosts(config)
    users = [one.address for one in session.client.call(routes.list_routes) if one.run_by == "own-rabbitmq"]
    if problems := rabbitmq.missing(config, users):
        raise Temporary("; ".join(problems))
    session.done("RabbitMQ can be reached and has all that is needed", well=True)


@app.command("remove")
def remove(context: typer.Context) -> None:
    """Remove the exchange and the queue of the site from RabbitMQ. Refused while workers use them or tasks wait."""
    session: Session = context.obj
    rabbitmq.remove(session.config())
    session.done("the exchange and the queue of the site are gone", removed=True)
