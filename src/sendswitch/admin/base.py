"""The arguments that every use case has in common: who asks, and which installation the request is about.

A use case is one blocking function, `do(installation, actor, *, name=value, …)`. It opens the spool or the database
itself, returns values that JSON can carry, and knows no terminal. `use_case` gives it its place in the HTTP API.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sendswitch.config.model import Config
from sendswitch.config.processes import numbers_in, of_process
from sendswitch.errors import NotFound, Temporary
from sendswitch.spool.admin import node_number, open_files

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

    def nodes(self) -> list[Installation]:
        """Return the installations of the nodes of this machine that have a spool, this one alone where there is one
        only.

        They share the database.
        """
        config = self.config
        if self._node is not None or (numbers := numbers_in(config.node.data)) == [1]:
            return [self]
        return [self._one_of(config, number) for number in numbers]

    def _one_of(self, config: Config, number: int) -> Installation:
        own = of_process(config, number, config.node.processes)
        return Installation(lambda: own, engine=self._engine)

    @property
    def number(self) -> int | None:
        """Return the number in the ids of this node's messages, None where there is no spool yet."""
        with suppress(NotFound), self.spool() as connection:
            return node_number(connection)
        return None

    def changed(self) -> None:
        """Make a change count now: a running node reads it again. A node that starts later reads everything."""
        if self._node is not None:
            self._node.refresh()


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Rows of a list, and the cursor of the next page, '' behind the last one."""

    items: tuple[T, ...]
    next: str = ""


class At(Enum):
    """The nodes that a request reaches where there are several on one machine.

    ANY: one of them, because the answer is in the database. OWNER: the one that has the message or event `id`. EVERY:
    all, running or not; RUNNING: all that run.
    """

    ANY = auto()
    OWNER = auto()
    EVERY = auto()
    RUNNING = auto()


Merge = Callable[[Sequence[Any], Mapping[str, Any]], Any]
"""Makes one answer of those of several nodes, given the arguments of the request."""

Widen = Callable[[Callable[..., Any], Mapping[str, Any]], Mapping[str, Any]]
"""Returns what is asked of each node beside or instead of the arguments of a request to all. It may ask all before."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a use case in the HTTP API: a method, and a path below /api/v1 with parameters in braces.

    `at`, `merge` and `widen` say what is done where there are several nodes.
    """

    method: str
    path: str
    at: At = At.ANY
    merge: Merge = lambda answers, given: answers[0]
    widen: Widen = lambda ask, given: given


_PLACES: dict[Callable[..., Any], Place] = {}


def use_case(method: str, path: str, at: At = At.ANY, **several: Any) -> Callable[[UseCase], UseCase]:
    """Give a function its place in the HTTP API. `several` are `merge` and `widen` of its `Place`."""

    def mark(function: UseCase) -> UseCase:
        _PLACES[function] = Place(method, path, at, **several)
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
