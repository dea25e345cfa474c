"""Use cases about the running node. Each raises Temporary where none runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field

from sendswitch.admin.base import Actor, At, Installation, at, moment, use_case
from sendswitch.admin.merging import first, joined
from sendswitch.smtp.transcript import number_at

if TYPE_CHECKING:
    from sendswitch.db.nodes import KnownNode

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


class NodeState(StrEnum):
    """The state of a node: it takes mail, drains, was stopped in order, or has had no heartbeat for a minute."""

    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """A node of the database, as it said itself at `seen`. `number` is in the ids of its messages."""

    number: int
    host: str
    data: str
    state: NodeState
    queued: int
    held: int
    quarantined: int
    workers: int
    started: datetime | None
    seen: datetime
    version: str
    pid: int
    web: str


class RunningNode(Protocol):
    """The running node as its administration sees it. Methods block; any thread but the event loop's may call them.

    Each raises Temporary when the node does not answer in time.
    """

    def refresh(self) -> None:
        """Read rules, users, pipelines and lists again. On return they are in force, if the database can be read."""

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


@use_case("POST", "/node:refresh", At.RUNNING, merge=first)
def refresh(installation: Installation, actor: Actor) -> None:
    """Read rules, users, pipelines and lists again. On return they are in force, if the database can be read."""
    installation.node.refresh()


@use_case("POST", "/node:reload", At.RUNNING, merge=first)
def reload(installation: Installation, actor: Actor) -> tuple[str, ...]:
    """Read the configuration again. Return the changed keys that wait for a restart."""
    return tuple(installation.node.reload())


def _summed(answers: Sequence[Status], given: Mapping[str, Any]) -> Status:
    """Add what several nodes have. They listen on the same addresses, but for their web ports."""
    oldest = [one.oldest for one in answers if one.oldest is not None]
    webs = {f"web of node {n}": one.listening["web"] for n, one in enumerate(answers, 1)}
    shared = {name: address for one in answers for name, address in one.listening.items() if name != "web"}
    return Status(
        draining=all(one.draining for one in answers),
        listening=webs | shared,
        connections=sum(one.connections for one in answers),
        on_the_way=sum(one.on_the_way for one in answers),
        held=sum(one.held for one in answers),
        quarantined=sum(one.quarantined for one in answers),
        oldest=min(oldest, default=None),
        events_waiting=sum(one.events_waiting for one in answers),
        overloaded="; ".join(sorted({one.overloaded for one in answers if one.overloaded})),
        configuration_refused="; ".join(
            sorted({one.configuration_refused for one in answers if one.configuration_refused})
        ),
    )


@use_case("GET", "/node", At.RUNNING, merge=_summed)
def status(installation: Installation, actor: Actor) -> Status:
    """Show the work of the node and its addresses."""
    return installation.node.status()


@use_case("GET", "/nodes")
def list_nodes(installation: Installation, actor: Actor) -> tuple[NodeSummary, ...]:
    """List the nodes of the database by host and data folder, as they said themselves."""
    from sendswitch.db import nodes

    return tuple(_summary(one, time.time()) for one in nodes.known(installation.database()))


def _state(node: KnownNode, now: float) -> NodeState:
    from sendswitch.db.nodes import SILENT

    if node.ended is not None:
        return NodeState.STOPPED
    if node.seen < now - SILENT:
        return NodeState.SILENT
    return NodeState.DRAINING if node.facts.draining else NodeState.RUNNING


def _summary(node: KnownNode, now: float) -> NodeSummary:
    facts = node.facts
    return NodeSummary(
        number=facts.number,
        host=facts.host,
        data=facts.data,
        state=_state(node, now),
        queued=facts.queued,
        held=facts.held,
        quarantined=facts.quarantined,
        workers=facts.workers,
        started=moment(facts.started),
        seen=at(node.seen),
        version=facts.version,
        pid=facts.pid,
        web=facts.web,
    )


@use_case("DELETE", "/nodes/{number}")
def forget(installation: Installation, actor: Actor, *, number: int) -> None:
    """Remove a node from the list that was stopped or is silent. Its number can then be another node's."""
    from sendswitch.db import nodes

    nodes.forget(installation.database(), number, time.time())


@use_case("GET", "/workers", At.RUNNING, merge=joined)
def list_workers(installation: Installation, actor: Actor) -> tuple[WorkerSummary, ...]:
    """List the worker processes that are connected to the node, the oldest first."""
    return tuple(installation.node.workers())


@use_case("POST", "/node:drain", At.RUNNING, merge=first)
def drain(installation: Installation, actor: Actor, *, on: bool = True) -> None:
    """Stop taking mail, or with `on` false take it again."""
    installation.node.drain(on)


@use_case("POST", "/node:level", At.RUNNING, merge=first)
def set_level(installation: Installation, actor: Actor, *, level: str, seconds: Seconds | None = None) -> str:
    """Change the log level, for `seconds` or until the next reload. Return the level before."""
    return installation.node.set_level(level, seconds)


@use_case("POST", "/node/trace:start", At.RUNNING, merge=first)
def start_trace(
    installation: Installation, actor: Actor, *, listener: str = "", sender: str = "", seconds: Seconds
) -> None:
    """Record SMTP dialogs for `seconds`: of one listener by its address, of senders with a text in them, or all."""
    installation.node.start_trace(listener, sender, seconds)


def _in_time(answers: Sequence[tuple[DialogLine, ...]], given: Mapping[str, Any]) -> tuple[DialogLine, ...]:
    return tuple(sorted(joined(answers, given), key=lambda line: line.number))


def _until_now(ask: Callable[..., Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask each node for lines until now: a later one of the first node must not hide an earlier one of the last."""
    return {**given, "before": number_at(time.time())}


@use_case("GET", "/node/trace", At.RUNNING, merge=_in_time, widen=_until_now)
def trace(
    installation: Installation, actor: Actor, *, after: int = 0, before: int | None = None
) -> tuple[DialogLine, ...]:
    """Return the recorded lines whose number is above `after`, and not above `before`."""
    return tuple(line for line in installation.node.trace(after) if before is None or line.number <= before)


@use_case("POST", "/node/trace:stop", At.RUNNING, merge=first)
def stop_trace(installation: Installation, actor: Actor) -> None:
    """Stop recording dialogs and forget the lines."""
    installation.node.stop_trace()
