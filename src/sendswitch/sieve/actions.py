"""Actions of a script (RFC 5228 4, and extensions)."""

from __future__ import annotations

from collections.abc import Callable

from sendswitch.mail.address import key
from sendswitch.sieve.arguments import EXTENSIONS, Given, Known
from sendswitch.sieve.grammar import Command
from sendswitch.sieve.run import Do, Run, Stop, Vacation
from sendswitch.sieve.strings import MODIFIERS, NAME

# Characters of a folder's name.
LONGEST_FOLDER = 500
# Days between two answers to the same sender.
DAYS = (1, 90)

# Folders and addresses that are remembered: one more than any mail goes to, so that too many are told.
MOST_TARGETS = 50


def _keep(given: Given) -> Do:
    given.end(0)

    def do(run: Run) -> None:
        run.out.kept = True
        run.did(given.told("keep"))

    return do


def _discard(given: Given) -> Do:
    given.end(0)

    def do(run: Run) -> None:
        run.out.implicit = False
        run.did(given.told("discard"))

    return do


def _stop(given: Given) -> Do:
    given.end(0)

    def do(run: Run) -> None:
        raise Stop

    return do


def _fileinto(given: Given) -> Do:
    copy, folder = given.flag("copy"), given.string(0)
    given.end(1)

    def do(run: Run) -> None:
        name = folder.value(run.variables)[:LONGEST_FOLDER]
        if not name:
            raise given.wrong("fileinto names no folder")
        if not copy:
            run.out.implicit = False
        if name not in run.out.folders and len(run.out.folders) <= MOST_TARGETS:
            run.out.folders.append(name)
        run.did(given.told(f"fileinto {name!r}"))

    return do


def _redirect(given: Given) -> Do:
    copy, to = given.flag("copy"), given.string(0)
    given.end(1)
    if to.fixed:
        given.address(to.text)

    def do(run: Run) -> None:
        address = given.address(to.value(run.variables))
        if not copy:
            run.out.implicit = False
        if len(run.out.redirects) <= MOST_TARGETS and key(address) not in map(key, run.out.redirects):
            run.out.redirects.append(address)
        run.did(given.told(f"redirect to {address}"))

    return do


def _reject(given: Given) -> Do:
    reason = given.string(0)
    given.end(1)

    def do(run: Run) -> None:
        if run.out.rejected is not None:
            raise given.wrong(f"{given.command.name} a second time")
        run.out.implicit = False
        run.out.rejected = reason.value(run.variables)
        run.did(given.told(given.command.name))

    return do


def _vacation(given: Given) -> Do:
    days, subject, addresses = given.number("days", 7), given.tagged("subject"), given.tagged("addresses")
    reason = given.string(0)
    given.end(1)
    for address in addresses:
        if address.fixed:
            given.address(address.text)

    def do(run: Run) -> None:
        if run.out.vacation is not None:
            raise given.wrong("vacation a second time")
        known = run.variables
        run.out.vacation = Vacation(
            reason.value(known),
            min(max(days, DAYS[0]), DAYS[1]),
            subject[0].value(known) if subject else "",
            tuple(given.address(address.value(known)) for address in addresses),
        )
        run.did(given.told("vacation"))

    return do


def _set(given: Given) -> Do:
    given.need("variables", "set")
    chosen = sorted((MODIFIERS[name] for name in MODIFIERS if given.flag(name)), key=lambda one: -one[0])
    (name,), value = given.constants(0), given.string(1)
    given.end(2)
    if not NAME.match(name):
        raise given.wrong(f"{name!r} is no name of a variable")
    if len({precedence for precedence, _ in chosen}) < len(chosen):
        raise given.wrong("these modifiers exclude each other")

    def do(run: Run) -> None:
        text = value.value(run.variables)
        for _, modify in chosen:
            text = modify(text)
        run.variables.set(name, text)

    return do


_ACTIONS: dict[str, Callable[[Given], Do]] = {
    "keep": _keep,
    "discard": _discard,
    "stop": _stop,
    "fileinto": _fileinto,
    "redirect": _redirect,
    "reject": _reject,
    "ereject": _reject,
    "vacation": _vacation,
    "set": _set,
}


_MISPLACED = {
    "require": "require stands before all other commands",
    "elsif": "elsif without if",
    "else": "else without if",
}


def action(command: Command, known: Known) -> Do:
    """Do one action. Raises SieveError."""
    given = Given(command, known)
    make = _ACTIONS.get(command.name)
    if make is None:
        raise given.wrong(_MISPLACED.get(command.name, f"there is no command {command.name}"))
    given.alone()
    if command.name in EXTENSIONS:
        given.need(command.name, command.name)
    return make(given)
