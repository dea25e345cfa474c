"""`sendswitch`: the entry point. Global options may stand anywhere on the line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main
from typer.completion import completion_init  # type: ignore[attr-defined] # not in its __all__
from typer.core import CompletionItem  # type: ignore[attr-defined] # not in its __all__

from sendswitch.cli.exit_codes import EX_TEMPFAIL, EX_UNAVAILABLE

# Each command with the function or the group that it is, and the first sentence of its help: only the module of the
# command that was asked for is imported, because importing all of them takes longer than most commands run. A test
# holds the sentences to the commands' own.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve.serve", "Accept and deliver mail as workers decide."),
    "run": ("serve.run", "Accept mail and run pipelines, in worker processes."),
    "work": ("work.work", "Run pipelines for a node, on its machine or on another one."),
    "demo": ("demo.demo", "Run a switch with sample pipelines and six messages."),
    "check": ("check.check", "Check the configuration."),
    "pipe": ("pipe.pipe", "Take a message on standard input, for Postfix's pipe(8)."),
    "audit": ("audit.audit", "Prove that no accepted mail is missing."),
    "doctor": ("doctor.doctor", "Find problems in this installation and suggest fixes."),
    "try": ("try_command.try_", "Run a recipient's pipeline on a message, without effect."),
    "replay": ("replay.replay", "Run a pipeline over recorded mail, without effect."),
    "reload": ("node.reload", "Make the running node read its configuration again."),
    "bench": ("bench.bench", "Measure against other mail programs."),
    "completion": ("completion.completion", "Print the completion script of a shell."),
    "backup": ("backup.app", "Backups of spool and database."),
    "node": ("node.app", "The running node."),
    "config": ("config.app", "Configuration, and database content as a file."),
    "user": ("user.app", "Users: whose mail has a pipeline."),
    "route": ("route.app", "Routes: whose workers run a user's pipeline."),
    "key": ("key.app", "Keys of users' programs, such as their own workers."),
    "list": ("lists.app", "Allow and deny lists of users, domains and the site."),
    "message": ("message.app", "Messages: what happened to them, and why."),
    "pipeline": ("pipeline.app", "Pipelines: what happens to a user's mail."),
    "processor": ("processor.app", "Processors: what pipelines are made of."),
    "worker": ("worker.app", "Workers, which run pipelines for the node."),
    "broker": ("broker.app", "RabbitMQ, for workers on other machines."),
    "postfix": ("postfix.app", "The lines for a Postfix before and behind the node."),
    "queue": ("queue.app", "The queue: mail on its way or held."),
    "quarantine": ("quarantine.app", "The quarantine."),
    "hold": ("hold.app", "Held mail, which waits for a person's decision."),
    "webhook": ("webhook.app", "Webhooks of `notify`: endpoints, events and attempts."),
}


HELP = {"help_option_names": ["-h", "--help"]}
SETTINGS: Any = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": HELP,
}


class _Commands(MutableMapping[str, Any]):
    """The commands by name. A command is imported when it is looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module, _, attribute = COMMANDS[name][0].partition(".")
            found = getattr(import_module(f"sendswitch.cli.{module}"), attribute)
            parent = typer.Typer(**SETTINGS)
            if isinstance(found, typer.Typer):
                parent.add_typer(found, name=name)
            else:
                parent.command(name)(found)
            self._loaded[name] = typer.main.get_group(parent).commands[name]
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(typer.core.TyperGroup):
    """The commands, listed without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        words = [
            CompletionItem(name, help=sentence)
            for name, (_, sentence) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return words or super(typer.core.TyperGroup, self).shell_complete(ctx, incomplete)


app = typer.Typer(cls=_Group, help="A programmable mail switch for Postfix.", no_args_is_help=True, **SETTINGS)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

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
    from sendswitch.cli.output import Session

    context.obj = Session(config, json)


def hoist(arguments: list[str]) -> list[str]:
    """Move --json and --config to the front, so that they may stand after the command, where people write them.

    A lone -h is --help, for the commands whose words may begin with "-" too; in `pipe` a word may be an address.
    """
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
            rest.append("--help" if word == "-h" and rest[:1] != ["pipe"] else word)
    return front + rest


def main() -> None:
    """Run the command line and exit."""
    if "_SENDSWITCH_COMPLETE" in os.environ:
        completion_init()
    arguments = hoist(sys.argv[1:])
    try:
        _run(arguments)
    except SystemExit as ended:
        # To pipe(8) a code that sysexits.h does not have, such as 2 for usage, means to return the mail to its sender.
        if _command(arguments) == "pipe" and ended.code not in (0, EX_UNAVAILABLE):
            sys.exit(EX_TEMPFAIL)
        raise


def _command(arguments: list[str]) -> str:
    """Return the first word behind the options that `hoist` put in front."""
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
    except Exception as error:
        from sendswitch.admin.serialization import as_ours
        from sendswitch.cli.output import complain, exit_code

        ours = as_ours(error)
        code = exit_code(ours)
        if code is None:
            raise
        complain(ours, json="--json" in arguments)
        sys.exit(code)


if __name__ == "__main__":
    main()
