"""A script, read once and run for each message.

Errors are found when it is read, but for those of values that its variables get with a message. Its actions depend on
the message and its envelope alone: nothing here waits, and a budget limits its comparisons (`WORK`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from sendswitch.mail.message import Mail
from sendswitch.sieve.actions import action
from sendswitch.sieve.arguments import EXTENSIONS, Given, Known
from sendswitch.sieve.grammar import Command, Spent, TooMuch, parse
from sendswitch.sieve.run import Ask, Do, Run, ScriptOutcome, Stop
from sendswitch.sieve.tests import test

# What the comparisons of one message may cost (about nanoseconds), and as much more for each byte of a body.
WORK, WORK_A_BYTE = 1_000_000_000, 200


class Script:
    """One script."""

    def __init__(self, text: str, *, delimiter: str = "+") -> None:
        """Read a script; `delimiter` begins the detail of an address. Raises SieveError for the first error."""
        known = Known(delimiter)
        commands = parse(text)
        rest = _require(commands, known)
        self._do = _block(commands[rest:], known)
        self._last_line = commands[-1].line if commands else 0
        self._reads_body = known.reads_body

    def run(self, mail: Mail, sender: str, recipient: str) -> ScriptOutcome:
        """Return the actions for a message. Call it in a thread, because it may take a second.

        Raises TooMuch for more work than a script may do for one message, SieveError for an error that only the message
        could show.
        """
        run = Run(mail, sender, recipient, WORK + (WORK_A_BYTE * mail.size if self._reads_body else 0))
        try:
            with suppress(Stop):
                self._do(run)
        except Spent:
            raise TooMuch(self._last_line, "this is more to compare than a script may in one message") from None
        return run.out


def _require(commands: Sequence[Command], known: Known) -> int:
    """Record the extensions that the script requires. Return the number of its require commands."""
    for n, command in enumerate(commands):
        if command.name != "require":
            return n
        given = Given(command, known)
        given.alone()
        wanted = given.constants(0)
        given.end(1)
        for name in wanted:
            if name not in EXTENSIONS:
                raise given.wrong(f"{name!r} is not supported; what is: {', '.join(EXTENSIONS)}")
        known.required.update(wanted)
    return len(commands)


def _block(commands: Sequence[Command], known: Known) -> Do:
    """Run all of a block, in order."""
    made = [
        _if(together, known) if together[0].name == "if" else action(together[0], known)
        for together in _split(commands)
    ]

    def do(run: Run) -> None:
        for one in made:
            one(run)

    return do


def _split(commands: Sequence[Command]) -> Iterator[list[Command]]:
    """Return each command by itself, and an `if` with all that belongs to it."""
    waiting: list[Command] = []
    for command in commands:
        if waiting and not (waiting[0].name == "if" and command.name in ("elsif", "else")):
            yield waiting
            waiting = []
        waiting.append(command)
    if waiting:
        yield waiting


def _if(commands: Sequence[Command], known: Known) -> Do:
    branches: list[tuple[Ask, Do]] = []
    for n, command in enumerate(commands):
        given = Given(command, known)
        if n and commands[n - 1].name == "else":
            raise given.wrong(f"{command.name} stands behind an else")
        if command.block is None:
            raise given.wrong(f"the block of {command.name} is missing")
        if command.arguments or len(command.tests) != (command.name != "else"):
            raise given.wrong("if and elsif have one test, else has none")
        ask = test(command.tests[0], known) if command.tests else lambda run: True
        branches.append((ask, _block(command.block, known)))

    def do(run: Run) -> None:
        for ask, inside in branches:
            if ask(run):
                inside(run)
                return

    return do
