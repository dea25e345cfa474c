"""`node …`, `reload`: requests to the running node."""

from __future__ import annotations

import time
from dataclasses import asdict
from http.client import OK, HTTPConnection, HTTPException
from pathlib import Path
from typing import Annotated

import orjson
import typer

from sendswitch.admin import node
from sendswitch.cli.output import Session
from sendswitch.config.processes import web_of
from sendswitch.config.units import duration
from sendswitch.errors import Temporary, in_words
from sendswitch.logs import LEVELS
from sendswitch.smtp.endpoint import Endpoint, parse_endpoint

app = typer.Typer(help="The running node.", no_args_is_help=True)

# Seconds between two looks at a node that is waited for, and how long one may take.
LOOK, PATIENCE = 0.5, 10.0


def reload(context: typer.Context) -> None:
    """Make the running node read its configuration again. An invalid one changes nothing."""
    session: Session = context.obj
    session.config()  # said here already when it is wrong, with file and line
    later = session.client.call(node.reload)
    hint = f"; these wait for a restart: {', '.join(later)}" if later else ""
    session.done(f"the configuration is in force{hint}", restart=list(later))


@app.command("status")
def status(context: typer.Context) -> None:
    """Show the work of the running node and its addresses."""
    session: Session = context.obj
    told = asdict(session.client.call(node.status))
    if session.json:
        session.print_json(told)
        return
    told |= {f"listening: {name}": address for name, address in told.pop("listening").items()}
    session.show([{"what": key.replace("_", " "), "is": value} for key, value in told.items()], ("what", "is"), "")


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the nodes of the database, running or not."""
    session: Session = context.obj
    rows = [asdict(one) for one in session.client.call(node.list_nodes)]
    columns = ("number", "host", "data", "state", "queued", "held", "quarantined", "workers", "started", "seen", "web")
    spare = ("web", "quarantined", "held", "started", "workers", "seen", "host")
    session.show(rows, columns, "no node has run yet", spare=spare)


@app.command("adopt")
def adopt(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The data folder of the dead node.")],
) -> None:
    """Take over the mail of a dead node of the same database. The next start of this machine's nodes delivers it."""
    from sendswitch.admin.adopt import adopt as take_over

    session: Session = context.obj
    taken = take_over(session.installation, session.actor, folder=folder)
    rows = [{"number": one.number, "data": str(one.data), "deliveries": one.deliveries} for one in taken]
    session.show(rows, ("number", "data", "deliveries"), "")
    if not session.json:
        print("restart this node: sendswitch then delivers what is in them")


@app.command("forget")
def forget(context: typer.Context, number: Annotated[int, typer.Argument(help="As listed.", min=0)]) -> None:
    """Remove a node from the list that will not come back. Adopt its mail before."""
    session: Session = context.obj
    session.client.call(node.forget, number=number)
    session.done(f"node {number} is forgotten", number=number)


@app.command("ready")
def ready(
    context: typer.Context,
    wait: Annotated[str, typer.Option("--wait", help="How long to wait until ready.")] = "0s",
) -> None:
    """Check that the node accepts mail and can deliver. If not, shows the causes (`/readyz`) and exits with 75."""
    session: Session = context.obj
    config = session.config()
    processes = config.node.processes
    webs = [parse_endpoint(web_of(config, number, processes)) for number in range(1, processes + 1)]
    end = time.monotonic() + duration(wait)
    while trouble := [why for web in webs for why in _trouble(web)]:
        if time.monotonic() >= end:
            raise Temporary(f"not ready: {'; '.join(trouble)}")
        time.sleep(LOOK)
    session.done("ready", ready=True)


def _trouble(web: Endpoint) -> list[str]:
    """Return why the node is not ready, nothing when it is."""
    connection = HTTPConnection(web.host, web.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        checks = orjson.loads(answer.read())["checks"]
        causes = [f"{check['name']}: {check['cause']}" for check in checks if check["status"] != "healthy"]
    except (OSError, HTTPException) as error:
        return [f"web.bind {web}: {in_words(error)}"]
    except (ValueError, KeyError, TypeError):
        return [f"web.bind {web}: another program answers there"]
    finally:
        connection.close()
    return causes if answer.status != OK else []


@app.command("drain")
def drain(
    context: typer.Context,
    wait: Annotated[str, typer.Option("--wait", help="How long to wait until the queue is empty.")] = "0s",
) -> None:
    """Accept no more mail; deliver the queue. Exits with 75 if the queue is not empty after --wait."""
    session: Session = context.obj
    end = time.monotonic() + duration(wait)
    session.client.call(node.drain, on=True)
    from rich.console import Console

    with Console(stderr=True).status("draining") as shown:
        while (left := session.client.call(node.status).on_the_way) and time.monotonic() < end:
            shown.update(f"draining: {left} on the way")
            time.sleep(LOOK)
    session.done(f"no mail is taken; {left or 'nothing'} is on the way", on_the_way=left)
    if left and duration(wait):
        raise typer.Exit(75)


@app.command("resume")
def resume(context: typer.Context) -> None:
    """Accept mail again."""
    session: Session = context.obj
    session.client.call(node.drain, on=False)
    session.done("mail is taken again", draining=False)


@app.command("log-level")
def log_level(
    context: typer.Context,
    level: Annotated[str, typer.Argument(help=f"One of {', '.join(LEVELS)}.")],
    for_: Annotated[str, typer.Option("--for", help="How long; without it until the next reload or restart.")] = "",
) -> None:
    """Change the log level without a restart."""
    session: Session = context.obj
    was = session.client.call(node.set_level, level=level, seconds=duration(for_) if for_ else None)
    session.done(f"the log level is {level}, it was {was}", was=was, level=level)
