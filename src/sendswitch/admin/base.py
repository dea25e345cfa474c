"""The arguments that every use case has in common: who asks, and which installation the request is about.

A use case is one blocking function, `do(installation, actor, *, name=value, …)`. It opens the spool or the database
itself, returns values that JSON can carry, and knows no terminal. `use_case` gives it its place in the HTTP API.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sendswitch.config.model import Config
from sendswitch.errors import Temporary
from sendswitch.spool.admin import open_files

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sendswitch.admin.node import RunningNode

T = TypeVar("T")
UseCase = TypeVar("UseCase", bound=Callable[..., Any])

# Rows in one answer. Who wants more asks for the next page.
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or program that asks. The name is recorded with each change."""

    name: str


class Installation:
    """Configuration, spool and database of one node, and the node itself where it runs in this process."""

    def __init__(
        self,
        config: Callable[[], Config],
        *,
        engine: Engine | None = None,
        node: RunningNode | None = None,
    ) -> None:
        """Take `config` as a function, because a running node may reload it. Without `engine` each use opens one."""
        self._config, self._engine, self._node = config, engine, node

    @property
    def config(self) -> Config:
        """Return the configuration that is in force."""
        return self._config()

    @property
    def node(self) -> RunningNode:
        """Return the running node. Raises Temporary where none runs."""
        if self._node is None:
            data = self.config.node.data
            raise Temporary(f"no node runs in {data}; is node.data right, and has `sendswitch run` been started?")
        return self._node

    @contextmanager
    def spool(self) -> Iterator[sqlite3.Connection]:
        """Open the spool for one use case. Raises NotFound when there is none, SpoolUnavailable."""
        with closing(open_files(self.config.node.data)) as connection:
            yield connection

    def database(self, *, create: bool = False) -> Engine:
        """Return the database. Only with `create` is a missing or an old one made. Raises Temporary."""
        if self._engine is None:
            from sendswitch.db.connect import open_database

            self._engine = open_database(self.config.database_url, migrate=create)
        return self._engine

    def changed(self) -> None:
        """Make a change count now: a running node reads it again. A node that starts later reads everything."""
        if self._node is not None:
            self._node.refresh()


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Rows of a list, and the cursor of the next page, '' behind the last one."""

    items: tuple[T, ...]
    next: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a use case in the HTTP API: a method, and a path below /api/v1 with parameters in braces."""

    method: str
    path: str


_PLACES: dict[Callable[..., Any], Place] = {}


def use_case(method: str, path: str) -> Callable[[UseCase], UseCase]:
    """Give a function its place in the HTTP API."""

    def mark(function: UseCase) -> UseCase:
        _PLACES[function] = Place(method, path)
        return function

    return mark


def place_of(function: Callable[..., Any]) -> Place:
    """Return the place of a use case."""
    return _PLACES[function]


def moment(seconds: float | None) -> datetime | None:
    """Return seconds since the epoch as a time in UTC, which JSON writes by RFC 3339; None stays None."""
    return None if seconds is None else at(seconds)


def at(seconds: float) -> datetime:
    """Return seconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
