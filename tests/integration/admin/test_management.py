"""Use cases, called in this process and over the socket of a running node: both ways are held to the same contract."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from sqlalchemy import Engine

from sendswitch import unix_socket
from sendswitch.admin import (
    access_keys,
    configuration,
    deliveries,
    hold,
    http_app,
    lists,
    messages,
    node,
    pipelines,
    quarantine,
    queue,
    routes,
    rules,
    users,
)
from sendswitch.admin.base import Actor, Installation, Page
from sendswitch.admin.hold import HeldAnswer
from sendswitch.admin.node import DialogLine, Status, WorkerSummary
from sendswitch.admin.serialization import NAME
from sendswitch.client import Client, InProcess, OverSocket, connect
from sendswitch.config.model import Config
from sendswitch.db.connect import open_database
from sendswitch.errors import InvalidConfiguration, InvalidSearch, NotFound, Refused, Temporary
from sendswitch.mail.content import read_all
from sendswitch.spool.rules import Kind
from sendswitch.spool.schema import content_file
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock
from sendswitch.web.server import WebServer
from tests.integration.admin.spools import MAIL, keep

Run = Callable[[Any], Any]
ME = Actor("me")
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


class FakeNode:
    """A running node that records the requests it gets."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def refresh(self) -> None:
        self.asked.append("refresh")

    def reload(self) -> Sequence[str]:
        raise InvalidConfiguration(["x.toml:3: wrong", "x.toml:4: wrong too"])

    def workers(self) -> Sequence[WorkerSummary]:
        return [WorkerSummary("w", 7, datetime(2026, 1, 1, tzinfo=UTC), ("q",), 10, 2, 40)]

    def drain(self, on: bool) -> None:
        self.asked.append(("drain", on))

    def status(self) -> Status:
        return Status(False, {"web": "http://x"}, 1, 2, 3, 4, NOON, 5, "", "")

    def set_level(self, level: str, seconds: float | None) -> str:
        self.asked.append((level, seconds))
        return "info"

    def start_trace(self, listener: str, sender: str, seconds: float) -> None:
        self.asked.append((listener, sender, seconds))

    def trace(self, after: int) -> Sequence[DialogLine]:
        return [DialogLine(after + 1, NOON, "s1", "C", "EHLO x")]

    def stop_trace(self) -> None:
        raise ZeroDivisionError("a fault of ours")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"node": {"data": tmp_path}})


@pytest.fixture
def engine(config: Config) -> Iterator[Engine]:
    engine = open_database(config.database_url)
    yield engine
    engine.dispose()


class Served:
    """The application over an installation, on the socket of its data folder, in a thread with an event loop."""

    def __init__(self, installation: Installation) -> None:
        self._installation, self._ready = installation, threading.Event()
        self._thread = threading.Thread(target=uvloop.run, args=(self._serve(),))

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with unix_socket.address_of(self._installation.config.node.data / NAME) as address:
            line.bind(address)
        line.listen(10)
        server = WebServer(http_app.make_app(self._installation))
        await server.serve(line)
        self._ready.set()
        await self._stop.wait()
        await server.stop()

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@pytest.fixture(params=["in this process", "over the socket"])
def client(request: pytest.FixtureRequest, config: Config, engine: Engine) -> Iterator[Client]:
    """A way to call use cases; behind the socket a node runs."""
    if request.param == "in this process":
        yield InProcess(Installation(lambda: config, engine=engine, node=FakeNode()), ME)
        return
    with Served(Installation(lambda: config, engine=engine, node=FakeNode())):
        yield OverSocket(config.node.data, ME)


@pytest.fixture
def kept(run: Run, config: Config, clock: FakeClock) -> Callable[..., list[str]]:
    """Put one message a recipient into the spool; in quarantine, held, or on its way. Return the deliveries' ids."""

    def put(state: State, *to: str, data: bytes = MAIL) -> list[str]:
        found: list[str] = run(keep(config.node.data, clock, state, *to, mail=data))
        return found

    return put


def test_users_and_pipelines(client: Client) -> None:
    call = client.call
    call(users.add, address="ann@example.test")
    call(users.add, address="a/b@example.test")  # a slash is legal in a local part
    with pytest.raises(Refused, match="exists already"):
        call(users.add, address="ann@example.test")
    with pytest.raises(ValueError, match="no mail address"):
        call(users.add, address="nothing")
    assert call(pipelines.set_live, address="a/b@example.test", text="[[step]]\nuse = 'pass'\n").steps == ("pass",)
    assert [(one.address, one.pipeline) for one in call(users.list_users)] == [
        ("a/b@example.test", 1),
        ("ann@example.test", None),
    ]
    with pytest.raises(InvalidConfiguration) as caught:
        call(pipelines.set_live, address="ann@example.test", text="[[step]]\nuse = 'lists'\nalow = 1\ndney = 2\n")
    assert len(caught.value.problems) == 2
    secret = "[[step]]\nuse = 'notify'\nurl = 'https://x.example/'\nsecret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'\n"
    call(pipelines.set_live, address="ann@example.test", text=secret)
    assert "MfKQ9" not in call(pipelines.show, address="ann@example.test").text
    assert "MfKQ9" in call(pipelines.show, address="ann@example.test", secrets=True).text
    password = call(users.set_password, address="ann@example.test")
    assert len(password) > 20
    call(users.remove, address="a/b@example.test")
    (removed,) = call(users.list_removed)
    assert (removed.address, removed.author) == ("a/b@example.test", "me")
    assert call(users.restore, address="a/b@example.test") == 1
    assert "a/b@example.test" in call(configuration.export)
    (change,) = call(configuration.plan, text='[[user]]\naddress = "new@example.test"\n')
    assert (change.of, change.what) == ("new@example.test", "add")


def test_candidates_and_versions(client: Client) -> None:
    call, ann = client.call, "ann@example.test"
    call(users.add, address=ann)
    with pytest.raises(NotFound, match="has no pipeline"):
        call(pipelines.set_candidate, address=ann, text="")
    call(pipelines.set_live, address=ann, text="[[step]]\nuse = 'pass'\n")
    call(pipelines.set_candidate, address=ann, text="[[step]]\nuse = 'deny'\n")
    assert call(pipelines.compare, address=ann).total == 0
    assert call(pipelines.promote, address=ann).version == 3
    assert [one.role for one in call(pipelines.history, address=ann)] == ["live", "retired", "earlier"]
    assert call(pipelines.roll_back, address=ann).was == 1
    with pytest.raises(NotFound, match="has no candidate"):
        call(pipelines.withdraw, address=ann)


def test_lists(client: Client) -> None:
    call = client.call
    until = datetime(2040, 1, 1, tzinfo=UTC)
    added = call(lists.add, list="deny", entries=("spam.example",), reason="loud", expires=until)
    assert (added.scope, added.new) == ("", 1)
    (entry,) = call(lists.list_entries)
    assert (entry.author, entry.expires) == ("me", until)
    assert call(lists.find, sender="x@spam.example", to="ann@example.test").but.startswith("ann@example.test has no")
    with pytest.raises(NotFound):
        call(lists.find, sender="x@ham.example", to="ann@example.test")
    assert call(lists.remove, ids=(entry.id,)) == 1
    with pytest.raises(ValueError, match="entries"):
        call(lists.add, list="deny", entries=())


def test_a_list_comes_page_by_page(client: Client, kept: Callable[..., list[str]]) -> None:
    ids = kept(State.ACCEPTED, *(f"u{n}@example.test" for n in range(5)))
    seen: list[str] = []
    page: Page[Any] = client.call(queue.list_queue, limit=2)
    while True:
        seen += [row.id for row in page.items]
        if not page.next:
            break
        page = client.call(queue.list_queue, limit=2, after=page.next)
    assert seen == ids
    assert [g.deliveries for g in client.call(queue.top)] == [5]
    assert client.call(queue.flush, search="to:u1@") == 0  # it is due
    with pytest.raises(InvalidSearch, match="quarantene"):
        client.call(queue.list_queue, search="state:quarantene")
    with pytest.raises(ValueError, match="limit 0"):
        client.call(queue.list_queue, limit=0)


def test_bulk_requests_take_ids_or_a_search(
    client: Client, kept: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "PAGE", 2)
    one, two, three = kept(State.QUARANTINED, "a@example.test", "b@example.test", "c@example.test")
    first = client.call(quarantine.release, search="from:s@x.example")
    assert ([result.id for result in first.results], first.next) == ([one, two], two)
    second = client.call(quarantine.release, search="from:s@x.example", after=first.next)
    assert ([result.id for result in second.results], second.next) == ([three], "")
    (again,) = client.call(quarantine.release, ids=(one,)).results
    assert (again.kind, again.text) == ("refused", f"{one} is decided, not quarantined")
    (unknown,) = client.call(quarantine.delete, ids=("0000000000000.7",)).results
    assert unknown.kind == "not_found"
    with pytest.raises(NotFound, match="no quarantined delivery matches"):
        client.call(quarantine.delete, search="from:nobody@")
    with pytest.raises(ValueError, match="give ids, or a search"):
        client.call(quarantine.delete)
    (held,) = kept(State.HELD, "d@example.test")
    (answered,) = client.call(hold.answer, answer=HeldAnswer.PASS, ids=(held,), reason="fine").results
    assert answered.kind == ""
    told = client.call(deliveries.show, id=held)
    assert (told.delivery.state, told.timeline[-1].about["by"]) == ("decided", "me")
    with pytest.raises(ValueError, match="is not a mail address"):
        client.call(deliveries.forward, ids=(one,), to=("nowhere",))


def test_rules(client: Client, kept: Callable[..., list[str]]) -> None:
    kept(State.ACCEPTED, "a@example.test")
    added = client.call(rules.add, kind=Kind.DROP, search="to:a@", reason="loop", seconds=60.0)
    assert (added.rule.kind, added.rule.author, added.deliveries) == (Kind.DROP, "me", 1)
    assert client.call(rules.list_rules) == (added.rule,)
    assert client.call(rules.cancel, id=added.rule.id).rules == (added.rule,)
    with pytest.raises(NotFound, match="no rule 1"):
        client.call(rules.cancel, id=1)
    with pytest.raises(Refused, match="needs a search"):
        client.call(rules.add, kind=Kind.BOUNCE, seconds=60.0)
    client.call(rules.add, kind=Kind.SUSPEND, seconds=60.0)
    assert len(client.call(rules.resume).rules) == 1


@pytest.mark.parametrize("size", [10, 400_000])
def test_content_comes_byte_for_byte(client: Client, kept: Callable[..., list[str]], config: Config, size: int) -> None:
    raw = b"Subject: \xff\r\n\r\n" + b"x" * size
    (id_,) = kept(State.ACCEPTED, "a@example.test", data=raw)
    assert read_all(client.call(messages.content, id=id_)) == raw
    story = client.call(messages.history, id=id_)
    assert [one.state for one in story.deliveries] == ["accepted"]
    assert story.timeline[0].event == "accepted"
    with pytest.raises(NotFound, match="has no delivery 7"):
        client.call(messages.history, id=f"{id_.partition('.')[0]}.7")
    with pytest.raises(NotFound, match="nothing is known"):
        client.call(messages.history, id="0000000000000")
    assert client.call(messages.search).items == ()  # nothing has brought it to the journal
    if size > 300_000:
        path = content_file(config.node.data / "spool" / "content", client_number(id_))
        path.write_bytes(b"y" * len(raw))
        with pytest.raises(Temporary, match="is damaged"):
            client.call(messages.content, id=id_)


def client_number(id_: str) -> int:
    return messages.parse_message(id_)[0]


def test_requests_about_the_node(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    call = client.call
    assert call(node.status).oldest == NOON
    call(node.drain, on=False)
    assert call(node.set_level, level="debug", seconds=3.0) == "info"
    call(node.start_trace, seconds=3.0)
    assert call(node.trace, after=3)[0].number == 4
    with pytest.raises(InvalidConfiguration) as caught:
        call(node.reload)
    assert caught.value.problems == ["x.toml:3: wrong", "x.toml:4: wrong too"]
    with pytest.raises(Exception, match="a fault of ours"):
        call(node.stop_trace)


def test_where_no_node_runs(config: Config) -> None:
    (config.node.data / NAME).touch()  # a node that crashed leaves its socket
    client = connect(Installation(lambda: config), ME)
    assert not client.running
    with pytest.raises(Temporary, match="no node runs in"):
        client.call(node.status)
    with pytest.raises(NotFound, match="there is no spool"):
        client.call(queue.list_queue)
    with pytest.raises(Temporary, match="is not there yet"):
        client.call(users.list_users)
    client.call(users.add, address="ann@example.test")
    assert len(client.call(users.list_users)) == 1


def test_what_a_server_does_not_know(config: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    installation = Installation(lambda: config, engine=engine, node=FakeNode())
    monkeypatch.setattr(http_app, "USE_CASES", (node.status, lists.add))
    monkeypatch.setattr(http_app, "MAX_BODY", 1000)
    with Served(installation):
        client = connect(installation, ME)
        assert client.running
        assert client.call(node.status).held == 3
        with pytest.raises(Temporary, match="another version"):
            client.call(users.list_users)
        with pytest.raises(ValueError, match="more than 1000 bytes"):
            client.call(lists.add, list="deny", entries=("x" * 2000,))
        request: Any = client.call
        with pytest.raises(ValueError, match="colour"):
            request(node.status, colour="red")
    with pytest.raises(Temporary, match="does not answer"):
        client.call(node.status)


def test_routes_and_keys(client: Client) -> None:
    call = client.call
    for name in ("ann", "bob"):
        call(users.add, address=f"{name}@example.test")
    assert call(routes.set_route, address="ann@example.test", run_by="own").when_offline == "pass"
    with pytest.raises(ValueError, match="no pipeline to run"):
        call(routes.set_route, address="ann@example.test", run_by="own", when_offline="pool")
    with pytest.raises(NotFound):
        call(routes.set_route, address="carol@example.test", run_by="own")
    call(pipelines.set_live, address="bob@example.test", text="[[step]]\nuse = 'reply'\ntext = 'away'\n")
    with pytest.raises(InvalidConfiguration, match="step 1, reply, cannot run on a worker of a user's own"):
        call(routes.set_route, address="bob@example.test", run_by="own")
    call(routes.set_route, address="bob@example.test", run_by="site", when_offline="hold")
    assert [(one.address, one.run_by, one.when_offline, one.pipeline) for one in call(routes.list_routes)] == [
        ("ann@example.test", "own", "pass", None),
        ("bob@example.test", "site", "hold", 1),
    ]
    made = call(access_keys.add, address="ann@example.test", name="laptop")
    (listed,) = call(access_keys.list_keys)
    assert (listed.id, listed.address, listed.name, listed.used) == (made.id, "ann@example.test", "laptop", None)
    call(access_keys.remove, number=made.id)
    assert call(access_keys.list_keys) == ()
