"""What every command shares: where the configuration is, how to print, how to end.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 75 try again later (sysexits EX_TEMPFAIL).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sendswitch.config.load import load
from sendswitch.config.model import Config
from sendswitch.errors import (
    InvalidConfiguration,
    InvalidSearch,
    NotFound,
    Permanent,
    Refused,
    SendSwitchError,
    Temporary,
)

DEFAULT_CONFIG = Path("/etc/sendswitch/sendswitch.toml")


@dataclass
class Session:
    """One run of a command: its global options, and the ways to answer."""

    config_path: Path | None = None
    json: bool = False

    @property
    def config_file(self) -> Path | None:
        """--config, else /etc/sendswitch/sendswitch.toml if it is there, else none: the defaults."""
        return self.config_path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)

    def config(self) -> Config:
        """The configuration. Raises InvalidConfiguration."""
        return load(self.config_file)

    def show(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
        """A list: a table for people, one JSON array for programs."""
        if self.json:
            self.print_json(list(rows))
            return
        if not rows:
            print(empty)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(Text(readable(row.get(column))) for column in columns))
        Console(width=None if sys.stdout.isatty() else 160).print(table)

    def done(self, sentence: str, **facts: Any) -> None:
        """The result of an action: a sentence for people, an object for programs."""
        if self.json:
            self.print_json(facts)
        else:
            print(sentence)

    def print_json(self, data: Any) -> None:
        """One JSON document on standard output."""
        sys.stdout.write(orjson.dumps(data, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")
        sys.stdout.flush()


def readable(value: Any) -> str:
    """A value in a table cell, without anything a terminal would act on."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(readable(item) for item in value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def moment(seconds: float | None) -> str:
    """A time as people read it, local."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def exit_code(error: SendSwitchError) -> int:
    """The exit code for an error."""
    match error:
        case InvalidConfiguration() | InvalidSearch():
            return 2
        case NotFound():
            return 3
        case Refused():
            return 4
        case Temporary():
            return 75
        case Permanent():
            return 1
    return 1


def complain(error: Exception, *, json: bool) -> None:
    """An error on standard error, or with --json as an object on standard output."""
    problems = error.problems if isinstance(error, InvalidConfiguration) else [str(error)]
    if json:
        sys.stdout.write(orjson.dumps({"errors": problems}, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        for problem in problems:
            sys.stderr.write(f"sendswitch: {readable(problem)}\n")
