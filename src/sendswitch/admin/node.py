"""Use cases about the running node. Each raises Temporary where none runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol

from pydantic import Field

from sendswitch.admin.base import Actor, Installation, use_case

Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400)]


@dataclass(frozen=True, slots=True)
class Status:
    """The work of a node and its addresses. `listening` has addresses by name; `oldest` is the oldest delivery's time.

    `overloaded` and `configuration_refused` say why, '' where all is well.
    """

    draining: bool
    listening: dict[str, str]
    connections: int
    on_the_way: int
    held: int
    quarantined: int
    oldest: datetime | None
    events_waiting: int
    overloaded: str
    configuration_refused: str


@dataclass(frozen=True, slots=True)
class DialogLine:
    """One line of an SMTP dialog. `who` is C for the client or S for the server."""

    number: int
    at: datetime
    session: str
    who: str
    text: str


@dataclass(frozen=True, slots=True)
class WorkerSummary:
    """A worker that is connected: its places for tasks, how many it has, and how many it has answered.

    `pid` is 0 for a worker on another machine. `user` is '' for a worker of the site.
    """

    name: str
    pid: int
    since: datetime
    queues: tuple[str, ...]
    places: int
    leased: int
    done: int
    user: str = ""


class RunningNode(Protocol):
    """The running node as its administration sees it. Methods block; any thread but the event loop's may call them.

    Each raises Temporary when the node does not answer in time.
    """

    def refresh(self) -> None:
        """Read rules, users, pipelines and lists again. On return every rule of the spool is in force."""

    def reload(self) -> Sequence[str]:
        """Read the configuration again. Return the changed keys that wait for a restart.

        Raises InvalidConfiguration, and then nothing has changed.
        """

    def drain(self, on: bool) -> None:
        """Stop taking mail, or take it again."""

    def status(self) -> Status:
        """Return the work of the node and its addresses."""

    def workers(self) -> Sequence[WorkerSummary]:
        """Return the worker processes that are connected, the oldest first."""

    def set_level(self, level: str, seconds: float | None) -> str:
        """Change the log level, for `seconds` or until the next reload. Return the level before. Raises Refused."""

    def start_trace(self, listener: str, sender: str, seconds: float) -> None:
        """Record SMTP dialogs for `seconds`. Raises NotFound for an unknown listener."""

    def trace(self, after: int) -> Sequence[DialogLine]:
        """Return the recorded lines whose number is above `after`."""

    def stop_trace(self) -> None:
        """Stop recording dialogs and forget the lines."""


@use_case("POST", "/node:refresh")
def refresh(installation: Installation, actor: Actor) -> None:
    """Read rules, users, pipelines and lists again. On return every rule of the spool is in force."""
    installation.node.refresh()


@use_case("POST", "/node:reload")
def reload(installation: Installation, actor: Actor) -> tuple[str, ...]:
    """Read the configuration again. Return the changed keys that wait for a restart."""
    return tuple(installation.node.reload())


@use_case("GET", "/node")
def status(installation: Installation, actor: Actor) -> Status:
    """Show the work of the node and its addresses."""
    return installation.node.status()


@use_case("GET", "/workers")
def list_workers(installation: Installation, actor: Actor) -> tuple[WorkerSummary, ...]:
    """List the worker processes that are connected to the node, the oldest first."""
    return tuple(installation.node.workers())


@use_case("POST", "/node:drain")
def drain(installation: Installation, actor: Actor, *, on: bool = True) -> None:
    """Stop taking mail, or with `on` false take it again."""
    installation.node.drain(on)


@use_case("POST", "/node:level")
def set_level(installation: Installation, actor: Actor, *, level: str, seconds: Seconds | None = None) -> str:
    """Change the log level, for `seconds` or until the next reload. Return the level before."""
    return installation.node.set_level(level, seconds)


@use_case("POST", "/node/trace:start")
def start_trace(
    installation: Installation, actor: Actor, *, listener: str = "", sender: str = "", seconds: Seconds
) -> None:
    """Record SMTP dialogs for `seconds`: of one listener by its address, of senders with a text in them, or all."""
    installation.node.start_trace(listener, sender, seconds)


@use_case("GET", "/node/trace")
def trace(installation: Installation, actor: Actor, *, after: int = 0) -> tuple[DialogLine, ...]:
    """Return the recorded lines whose number is above `after`."""
    return tuple(installation.node.trace(after))


@use_case("POST", "/node/trace:stop")
def stop_trace(installation: Installation, actor: Actor) -> None:
    """Stop recording dialogs and forget the lines."""
    installation.node.stop_trace()
