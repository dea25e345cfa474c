"""`sendswitch`: the entry point. Global options may stand anywhere on the line."""

from __future__ import annotations

import sqlite3
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from sendswitch.cli import (
    audit,
    backup,
    bench,
    check,
    demo,
    doctor,
    hold,
    lists,
    message,
    node,
    pipe,
    pipeline,
    postfix,
    processor,
    quarantine,
    queue,
    replay,
    serve,
    trying,
    user,
    webhook,
)
from sendswitch.cli import (
    config as configuration,
)
from sendswitch.cli.output import Session, complain, exit_code
from sendswitch.cli.pipe import EX_TEMPFAIL, EX_UNAVAILABLE
from sendswitch.errors import SendSwitchError, SpoolUnavailable, Temporary

app = typer.Typer(
    help="A programmable mail switch for Postfix.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("run")(serve.run)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("pipe")(pipe.pipe)
app.command("audit")(audit.audit)
app.command("doctor")(doctor.doctor)
app.command("try")(trying.try_)
app.command("replay")(replay.replay)
app.command("reload")(node.reload)
app.command("bench")(bench.bench)
app.add_typer(backup.app, name="backup")
app.add_typer(node.app, name="node")
app.add_typer(configuration.app, name="config")
app.add_typer(user.app, name="user")
app.add_typer(lists.app, name="list")
app.add_typer(message.app, name="message")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(processor.app, name="processor")
app.add_typer(postfix.app, name="postfix")
app.add_typer(queue.app, name="queue")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(hold.app, name="hold")
app.add_typer(webhook.app, name="webhook")


def _version(asked: bool) -> None:
    if asked:
        print(f"sendswitch {version('sendswitch')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="The configuration file.", envvar="SENDSWITCH_CONFIG")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; tables are not for parsing.")] = False,
    _: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """A programmable mail switch for Postfix."""
    context.obj = Session(config, json)


def hoist(arguments: list[str]) -> list[str]:
    """Move --json and --config to the front, so that they may stand after the command, where people write them."""
    front: list[str] = []
    rest: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*front, *rest, word, *left]
        if word == "--json" or word.startswith("--config="):
            front.append(word)
        elif word == "--config" and left:
            front += [word, left.pop(0)]
        else:
            rest.append(word)
    return front + rest


def main() -> None:
    """Run the command line and exit."""
    arguments = hoist(sys.argv[1:])
    try:
        _run(arguments)
    except SystemExit as ended:
        # To pipe(8) a code that sysexits.h does not have, such as 2 for usage, means to return the mail to its sender.
        if _command(arguments) == "pipe" and ended.code not in (0, EX_UNAVAILABLE):
            sys.exit(EX_TEMPFAIL)
        raise


def _command(arguments: list[str]) -> str:
    """The first word behind the options that `hoist` put in front."""
    words = iter(arguments)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def _run(arguments: list[str]) -> None:
    try:
        app(arguments, prog_name="sendswitch")
    except SendSwitchError as error:
        complain(error, json="--json" in arguments)
        sys.exit(exit_code(error))
    except sqlite3.Error as error:
        complain(SpoolUnavailable(f"the spool cannot be used now: {error}"), json="--json" in arguments)
        sys.exit(75)
    except SQLAlchemyError as error:
        complain(Temporary(f"the database cannot be used now: {error}"), json="--json" in arguments)
        sys.exit(75)
    except OSError as error:
        complain(error, json="--json" in arguments)
        sys.exit(1)
    except ValueError as error:
        complain(error, json="--json" in arguments)
        sys.exit(2)


if __name__ == "__main__":
    main()
