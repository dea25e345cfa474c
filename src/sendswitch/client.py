"""Call a use case of the administration: in the running node when there is one, else in this process.

The node's unix socket is in its data folder. Nothing listening there is no error: a node that starts later reads what a
command has changed. Both ways check arguments and report errors alike.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import quote, urlencode

import orjson

from sendswitch import unix_socket
from sendswitch.admin.base import Actor, At, Installation, place_of
from sendswitch.admin.dispatch import perform, result_of
from sendswitch.admin.node import refresh
from sendswitch.admin.serialization import ACTOR, BASE, NAME, as_ours, to_error
from sendswitch.errors import NotFound, Temporary, in_words
from sendswitch.mail.content import InMemory
from sendswitch.mail.ids import from_text, node_of

P = ParamSpec("P")
R = TypeVar("R")

# Seconds that a node may take for an answer, and to accept a connection.
PATIENCE = 120.0
CONNECT = 5.0


class Client(Protocol):
    """A way to call use cases. `running` says whether a running node answers."""

    @property
    def running(self) -> bool: ...

    def call(
        self, use_case: Callable[Concatenate[Installation, Actor, P], R], *none: P.args, **arguments: P.kwargs
    ) -> R:
        """Call a use case with keyword arguments. Raises the use case's errors, and Temporary when no answer comes."""
        ...


class AllNodes:
    """Calls use cases in the nodes of one machine, so that they are like one: each request where `Place.at` says.

    A node that does not run is asked on its files. A request that changes something on every node and fails on one has
    changed it on those before. Made again, it changes what is left; only a rule is then added a second time there.
    """

    def __init__(self, clients: Sequence[Client], numbers: Mapping[int, Client]) -> None:
        """Take the nodes in their order, and by the number in the ids of their messages."""
        self._clients, self._numbers = clients, numbers

    @property
    def running(self) -> bool:
        """Return whether one of them runs."""
        return any(client.running for client in self._clients)

    def call(
        self, use_case: Callable[Concatenate[Installation, Actor, P], R], *none: P.args, **arguments: P.kwargs
    ) -> R:
        """Call a use case where it belongs. Raises NotFound when no node knows it, and the use case's other errors."""
        running = [client for client in self._clients if client.running] or self._clients[:1]
        match place_of(use_case).at:
            case At.ANY:
                answer = running[0].call(use_case, *none, **arguments)
                if place_of(use_case).method != "GET":
                    self._refresh(running[1:])
                return answer
            case At.OWNER:
                return _first_found(self._owner_first(str(arguments["id"])), use_case, arguments)
            case At.RUNNING:
                return self._merged(running, use_case, arguments)
            case At.EVERY:
                return self._merged(self._clients, use_case, arguments)

    def _refresh(self, others: Sequence[Client]) -> None:
        """Let nodes read again what was changed through another one, so that it is in force on return."""
        for client in others:
            with suppress(Temporary):  # it reads it a moment later
                client.call(refresh)

    def _merged(self, clients: Sequence[Client], use_case: Callable[..., R], given: Mapping[str, Any]) -> R:
        place = place_of(use_case)
        wider = place.widen(self.call, given)
        answers, missing = _answers(clients, use_case, wider)
        if not answers:
            raise missing[0]
        return cast(R, place.merge(answers, given))

    def _owner_first(self, id_: str) -> Sequence[Client]:
        """Return the nodes, first the one whose number is in the id of a message. It may be another one's by now."""
        try:
            owner = self._numbers.get(node_of(from_text(id_.partition(".")[0])))
        except ValueError:  # an event's
            return self._clients
        return sorted(self._clients, key=lambda client: client is not owner)


def _answers(
    clients: Sequence[Client], use_case: Callable[..., R], given: Mapping[str, Any]
) -> tuple[list[R], list[NotFound]]:
    """Return the answers of nodes, and the errors of those that do not know what was asked for."""
    answers, missing = [], []
    for client in clients:
        try:
            answers.append(client.call(use_case, **given))
        except NotFound as error:
            missing.append(error)
    return answers, missing


def _first_found(clients: Sequence[Client], use_case: Callable[..., R], given: Mapping[str, Any]) -> R:
    """Return the answer of the first node that knows what is asked for. Raises NotFound when none does."""
    missing: list[NotFound] = []
    for client in clients:
        try:
            return client.call(use_case, **given)
        except NotFound as error:
            missing.append(error)
    raise missing[0]


class InProcess:
    """Calls use cases in this process, on the files of an installation."""

    running = False

    def __init__(self, installation: Installation, actor: Actor) -> None:
        self._installation, self._actor = installation, actor

    def call(
        self, use_case: Callable[Concatenate[Installation, Actor, P], R], *none: P.args, **arguments: P.kwargs
    ) -> R:
        """Call a use case here. Errors of libraries become ours."""
        try:
            return cast(R, perform(use_case, self._installation, self._actor, arguments))
        except Exception as error:
            if (ours := as_ours(error)) is error:
                raise
            raise ours from error


class OverSocket:
    """Calls use cases in the node that runs in a data folder."""

    running = True

    def __init__(self, data: Path, actor: Actor) -> None:
        self._data, self._actor = data, actor

    def call(
        self, use_case: Callable[Concatenate[Installation, Actor, P], R], *none: P.args, **arguments: P.kwargs
    ) -> R:
        """Call a use case in the node. Raises Temporary when the node does not answer within PATIENCE seconds."""
        status, kind, body = self._ask(use_case, {k: v for k, v in arguments.items() if v is not None})
        if status < 300 and kind.startswith("message/"):
            return cast(R, InMemory(body))
        if status < 300:
            return cast(R, result_of(use_case).validate_json(body))
        if not kind.startswith("application/problem+json"):
            raise Temporary(f"the node in {self._data} is of another version; restart it: it answered {status}")
        raise to_error(orjson.loads(body))

    def _ask(self, use_case: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[int, str, bytes]:
        """Return status, content type and body of the answer."""
        place, left = place_of(use_case), dict(arguments)
        path = BASE + place.path
        for name in [name for name in arguments if f"{{{name}}}" in path]:
            path = path.replace(f"{{{name}}}", quote(str(left.pop(name)), safe=""))
        body = None
        if place.method == "GET":
            path += f"?{urlencode(left)}" if left else ""
        else:
            body = orjson.dumps(left)
        headers = {ACTOR: self._actor.name, "Content-Type": "application/json"}
        connection = _UnixConnection(self._data)
        try:
            connection.request(place.method, path, body, headers)
            answer: HTTPResponse = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read()
        except (OSError, HTTPException) as error:
            raise Temporary(f"the node in {self._data} does not answer: {in_words(error)}") from error
        finally:
            connection.close()


class _UnixConnection(HTTPConnection):
    """HTTP over the socket in a data folder."""

    def __init__(self, data: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._data = data

    def connect(self) -> None:
        """Connect. Raises OSError."""
        self.sock = _connected(self._data)
        self.sock.settimeout(PATIENCE)


def _connected(data: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    line.settimeout(CONNECT)
    try:
        with unix_socket.address_of(data / NAME) as address:
            line.connect(address)
    except BaseException:
        line.close()
        raise
    return line


def connect(installation: Installation, actor: Actor) -> Client:
    """Return the way to the nodes of an installation: over their sockets while they run, else in this process.

    Raises Temporary when a node runs that this user cannot reach.
    """
    return _of_all(installation, actor, _to_one)


def in_process(installation: Installation, actor: Actor) -> Client:
    """Return the way to the files of an installation, whether nodes run or not."""
    return _of_all(installation, actor, InProcess)


def _of_all(installation: Installation, actor: Actor, reach: Callable[[Installation, Actor], Client]) -> Client:
    nodes = installation.nodes()
    if len(nodes) == 1:
        return reach(installation, actor)
    clients = [reach(node, actor) for node in nodes]
    numbers = {node.number: client for node, client in zip(nodes, clients, strict=True) if node.number is not None}
    return AllNodes(clients, numbers)


def _to_one(installation: Installation, actor: Actor) -> Client:
    data = installation.config.node.data
    try:
        _connected(data).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return InProcess(installation, actor)
    except OSError as error:
        raise Temporary(f"the node in {data} cannot be asked: {in_words(error)}") from error
    return OverSocket(data, actor)
