"""Sessions, tables and exit codes: the part that all commands share.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again later (sysexits EX_TEMPFAIL).
"""

from __future__ import annotations

import getpass
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import orjson

from sendswitch.cli.exit_codes import EX_TEMPFAIL
from sendswitch.config.load import load
from sendswitch.config.model import Config
from sendswitch.errors import (
    InvalidConfiguration,
    InvalidSearch,
    NotFound,
    Refused,
    SendSwitchError,
    Temporary,
)

if TYPE_CHECKING:
    from sendswitch.admin.base import Actor, Installation, Page
    from sendswitch.client import Client

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_CONFIG = Path("/etc/sendswitch/sendswitch.toml")

# Characters. A cell that is no longer than SHORT never breaks (an id has 15 to 18, a time 19); a longer one may break
# into lines of at least NARROW.
SHORT, NARROW = 20, 14
# Between two columns.
GAP = 2


class Bytes(int):
    """A size. Tables show `83 GB`, JSON and pipes the number of bytes."""


@dataclass
class Session:
    """One run of a command: its global options, and the ways to answer."""

    config_path: Path | None = None
    json: bool = False

    @property
    def config_file(self) -> Path | None:
        """Return --config, else /etc/sendswitch/sendswitch.toml if it is there, else None: the defaults."""
        return self.config_path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)

    def config(self) -> Config:
        """Return the configuration. Raises InvalidConfiguration."""
        return load(self.config_file)

    @cached_property
    def client(self) -> Client:
        """Return the way to the running node, or to its files while none runs. Raises Temporary."""
        from sendswitch.client import connect

        return connect(self.installation, self.actor)

    @property
    def here(self) -> Client:
        """Return the way to the files, whether a node runs or not: for what is too much work for the node."""
        from sendswitch.client import in_process

        return in_process(self.installation, self.actor)

    @cached_property
    def installation(self) -> Installation:
        """Return the configured installation. Raises InvalidConfiguration."""
        from sendswitch.admin.base import Installation

        config = self.config()
        return Installation(lambda: config)

    @property
    def actor(self) -> Actor:
        """Return the person who runs the command."""
        from sendswitch.admin.base import Actor

        return Actor(getpass.getuser())

    def pages(
        self,
        use_case: Callable[Concatenate[Installation, Actor, P], Page[R]],
        limit: int,
        *none: P.args,
        **arguments: P.kwargs,
    ) -> Iterator[R]:
        """Yield at most `limit` rows of a list, one page after the other."""
        from sendswitch.admin.base import PAGE

        cursor = ""
        request: Any = partial(self.client.call, use_case, **arguments)
        while limit > 0:
            page: Page[R] = request(limit=min(limit, PAGE), after=cursor)
            yield from page.items
            limit, cursor = limit - len(page.items), page.next
            if not cursor:
                return

    def show(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str, spare: Sequence[str] = ()
    ) -> None:
        """Print a list: a table on a terminal, tab-separated lines into a pipe, one JSON array with --json.

        Columns of `spare` are left out, one after the other, as long as the terminal is too narrow. JSON has all that
        the rows have.
        """
        if self.json:
            self.print_json(list(rows))
        elif not rows:
            print(empty)
        elif sys.stdout.isatty():
            _print_table(rows, columns, spare, shutil.get_terminal_size().columns)
        else:
            print("\t".join(columns))
            for row in rows:
                print("\t".join(readable(_plain(row.get(column))) for column in columns))

    def done(self, sentence: str, **facts: Any) -> None:
        """Print the result of an action: a sentence for people, an object for programs."""
        if self.json:
            self.print_json(facts)
        else:
            print(sentence)

    def print_json(self, data: Any) -> None:
        """Print one JSON document on standard output. Times are RFC 3339 in UTC."""
        option = orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z
        sys.stdout.write(orjson.dumps(data, option=option, default=str).decode() + "\n")
        sys.stdout.flush()


def _plain(value: object) -> object:
    return int(value) if isinstance(value, Bytes) else value


def _print_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], spare: Sequence[str], terminal: int
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = {column: [readable(row.get(column)) for row in rows] for column in columns}
    shown = fitting({column: [column, *cells[column]] for column in columns}, spare, terminal)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in shown:
        longest = max(map(len, cells[column]))
        number = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(
            column.replace("_", " "),
            overflow="fold",
            no_wrap=longest <= SHORT,
            min_width=min(longest, NARROW),
            justify="right" if number else "left",
        )
    for n in range(len(rows)):
        table.add_row(*(Text(cells[column][n]) for column in shown))
    Console(width=terminal, height=25).print(table)  # a dumb terminal has 80 columns unless both are given


def fitting(cells: Mapping[str, Sequence[str]], spare: Sequence[str], width: int) -> list[str]:
    """Return the columns to show: all, or without as many of `spare`, in that order, as make the rest fit.

    `cells` has each column's cells with its heading.
    """

    def least(column: str) -> int:
        longest = max(map(len, cells[column]))
        return longest if longest <= SHORT else NARROW

    shown = list(cells)
    for column in spare:
        if sum(map(least, shown)) + GAP * (len(shown) - 1) <= width:
            break
        shown = [other for other in shown if other != column]
    return shown


def readable(value: Any) -> str:
    """Return a value as a table cell, without any character that a terminal would act on. Times are local."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case Bytes():
            return sized(value)
        case datetime():
            return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
        case list() | tuple():
            return ", ".join(readable(item) for item in value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def sized(size: int) -> str:
    """Return a size in bytes with the unit in which it has at most three digits: `512 B`, `4.2 kB`, `83 GB`."""
    number, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.1f} {units[0]}" if number < 9.95 and units[0] != "B" else f"{number:.0f} {units[0]}"


def local(seconds: float | None) -> str:
    """Return seconds since the epoch as local time, `2026-11-26 15:10:52`; '' for None."""
    return "" if seconds is None else readable(datetime.fromtimestamp(seconds, UTC))


def exit_code(error: Exception) -> int | None:
    """Return the exit code for an error, None for an unexpected one, which keeps its traceback."""
    match error:
        case InvalidConfiguration() | InvalidSearch():
            return 2
        case NotFound():
            return 3
        case Refused():
            return 4
        case Temporary():
            return EX_TEMPFAIL
        case SendSwitchError():
            return 1
        case ValueError():
            return 2
    return None


def sentences(error: Exception) -> list[str]:
    """Return an error as sentences for people."""
    return error.problems if isinstance(error, InvalidConfiguration) else [str(error)]


def complain(error: Exception, *, json: bool) -> None:
    """Print an error on standard error, or with --json as an object on standard output.

    Further lines of it are indented, so that what a stranger wrote in one never looks like a message of ours.
    """
    problems = sentences(error)
    if json:
        sys.stdout.write(orjson.dumps({"errors": problems}, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        for problem in problems:
            lines = "\n  ".join(map(readable, problem.split("\n")))
            sys.stderr.write(f"sendswitch: {lines}\n")
