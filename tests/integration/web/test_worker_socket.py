"""Workers of users' own over a real WebSocket: what they get, what they may say, and those that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sendswitch import unix_socket
from sendswitch.broker import frames, remote, web_client, worker_server
from sendswitch.broker.embedded import EmbeddedBroker
from sendswitch.broker.remote import RemoteConsumer
from sendswitch.broker.several import SeveralNodes
from sendswitch.broker.streams import NODE, Login, QueuedStream
from sendswitch.broker.worker_server import WorkerServer
from sendswitch.errors import Refused, Temporary
from sendswitch.mail.content import read_all
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import LOST, Deferral, Verdict
from sendswitch.routing import own_queue
from sendswitch.testing import envelope
from sendswitch.web import worker_socket
from sendswitch.web.server import WebServer
from tests.integration.broker.contents import LARGE, SMALL, reading

ANN, BOB = "ann@example.test", "bob@example.test"
KEYS = {"ssk_ann": (1, ANN), "ssk_bob": (2, BOB)}


def task(number: int, owner: str = ANN, size: int = len(SMALL)) -> Task:
    mail = envelope()
    return Task(
        number, 0, f"token {number}", mail.recipients[0], mail.sender, mail.client, Reference(number, size, b""),
        owner, 1, own_queue(owner), 5.0,
    )  # fmt: skip


@dataclass
class Site:
    """A node's web port with its workers, and what the node heard."""

    server: WorkerServer
    web: WebServer
    broker: EmbeddedBroker
    heard: list[Answer] = field(default_factory=list)
    told: list[Mapping[str, Any]] = field(default_factory=list)
    workers: list[RemoteConsumer] = field(default_factory=list)
    large: list[str] = field(default_factory=list)  # more settings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.web.port}"

    async def worker(self, key: str = "ssk_ann", places: int = 3, number: int = 1) -> RemoteConsumer:
        async def on_settings(node: str, settings: Mapping[str, Any] | None) -> None:
            assert settings is not None
            self.told.append(settings)

        made = RemoteConsumer(
            web_client.connector(web_client.place_of(self.url), key, number),
            name="w",
            places=places,
            queues=("tasks.pool", own_queue(BOB)),  # the node asks nobody which ones he would like
            on_settings=on_settings,
        )
        self.workers.append(made)
        await made.open()
        return made

    @asynccontextmanager
    async def stranger(self, number: int = 1, **hello: Any) -> AsyncIterator[ClientConnection]:
        """A worker of Ann's that then does as the test says."""
        told = {"format": 1, "name": "x", "places": 3, "queues": []} | hello
        headers = {"Authorization": "Bearer ssk_ann", NODE: str(number)}
        place = web_client.place_of(self.url)
        async with connect(place, additional_headers=headers, compression=None, max_size=None) as line:
            await line.send(frames.encode("hello", **told))
            await line.send(frames.encode("ready"))
            yield line

    async def offer(self, one: Task) -> None:
        self.broker.put(one, self.heard.append)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not true():
                await asyncio.sleep(0.005)


async def ended(line: ClientConnection) -> None:
    """Wait until the node has disconnected a worker."""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await line.recv()


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def made(
        check: worker_socket.Check | None = None, others: Mapping[int, Path] | None = worker_socket.NO_OTHERS
    ) -> AsyncIterator[Site]:
        async def known(key: str) -> tuple[int, str] | None:
            return KEYS.get(key)

        async def whose(told: Mapping[str, Any]) -> str:
            return "the site"

        async def forever(told: Mapping[str, Any]) -> None:
            await asyncio.Event().wait()

        calls: dict[str, Any] = {"whose": whose, "forever": forever}
        broker, large = EmbeddedBroker(), list[str]()
        server = WorkerServer(
            broker,
            reading(tmp_path / "large"),
            lambda owner: {} if owner == BOB else calls,
            lambda owner: (
                {"owner": owner} | ({"large": large[0]} if large else {}) | ({"others": [*others]} if others else {})
            ),
            lambda pid: None,
        )
        app = Starlette(routes=[worker_socket.WorkerSocket(server, check or known, others).route()])
        web = WebServer(app, message=worker_socket.MOST)
        await web.start("127.0.0.1", 0)
        found = Site(server, web, broker, large=large)
        try:
            yield found
        finally:
            for one in found.workers:
                await one.close()
            await found.server.stop()
            await web.stop()

    return made


async def test_a_worker_gets_the_tasks_of_its_user_and_no_others(site: Any) -> None:
    async with site() as both:
        worker = await both.worker()
        await both.offer(task(2, BOB))
        await both.offer(task(1))
        lease = await worker.lease(())
        assert (lease.task.message, read_all(await lease.content())) == (1, SMALL)
        await lease.answer(Verdict.passed("yes"))
        await both.until(lambda: both.heard)
        # Who gave the answer, the node knows.
        assert both.heard == [Answer(1, 0, "token 1", replace(Verdict.passed("yes"), worker="w"))]
        (one,) = both.server.workers()
        assert (one.user, one.pid, one.queues, one.done) == (ANN, 0, (own_queue(ANN),), 1)
        assert both.told == [{"owner": ANN}]
        assert both.broker.has(task(2, BOB))


async def test_large_content_comes_in_pieces(site: Any) -> None:
    async with site() as both:
        worker = await both.worker()
        await both.offer(task(1, size=len(LARGE)))
        assert read_all(await (await worker.lease(())).content()) == LARGE


async def test_a_worker_calls_what_it_may(site: Any) -> None:
    async with site() as both:
        ann, bob = await both.worker(), await both.worker("ssk_bob")
        await both.until(lambda: len(both.told) == 2)
        assert await ann.call("", "whose", {}) == "the site"
        with pytest.raises(Refused, match="not for this worker"):
            await bob.call("", "whose", {})


@pytest.mark.parametrize("key", ["ssk_nobody", "", "another", "ssk_" + "x" * 1000])
async def test_who_has_no_key_does_not_come_in(site: Any, key: str) -> None:
    asked: list[str] = []

    async def check(key: str) -> tuple[int, str] | None:
        asked.append(key)
        return KEYS.get(key)

    async with site(check) as both:
        worker = await both.worker(key)
        await both.until(worker.gone.is_set)
        assert "key" in worker.refused
        assert both.server.workers() == []
        assert asked == ["ssk_nobody"] * (key == "ssk_nobody")  # what cannot be a key costs no look at the database


async def test_few_keys_are_checked_at_once(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_socket, "MOST_WAITING", 3)
    going, asked = asyncio.Event(), list[str]()

    async def slow(key: str) -> tuple[int, str] | None:
        asked.append(key)
        await going.wait()
        return KEYS.get(key)

    async with site(slow) as both:
        for _ in range(3):
            await both.worker()
        await both.until(lambda: len(asked) == worker_socket.AT_ONCE)
        await asyncio.sleep(0.2)
        with pytest.raises(InvalidStatus, match="503"):
            async with both.stranger():
                pass
        assert len(asked) == worker_socket.AT_ONCE
        going.set()
        await both.until(lambda: len(both.server.workers()) == 3)


async def test_a_plain_request_is_no_worker(site: Any) -> None:
    async with site() as both, httpx.AsyncClient() as client:
        answer = await client.get(both.url + web_client.PATH, headers={"Authorization": "Bearer ssk_ann"})
        assert answer.status_code in (400, 404, 426)


async def test_when_keys_cannot_be_checked_workers_come_again(site: Any) -> None:
    async def away(key: str) -> tuple[int, str] | None:
        raise Temporary("the database is away")

    async with site(away) as both:
        with pytest.raises(InvalidStatus, match="503"):
            async with both.stranger():
                pass
        worker = await both.worker()
        await asyncio.sleep(0.3)
        assert not worker.gone.is_set()


async def test_a_user_has_some_workers_at_most(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_server, "OWN_MOST", 2)
    async with site() as both:
        for _ in range(2):
            await both.worker()
        await both.until(lambda: len(both.server.workers()) == 2)
        with pytest.raises(InvalidStatus, match="429"):
            async with both.stranger():
                pass
        await both.worker("ssk_bob")
        await both.until(lambda: len(both.server.workers()) == 3)


async def test_a_worker_has_as_many_tasks_as_it_may(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_server, "OWN_PLACES", 2)
    async with site() as both:
        for number in range(5):
            await both.offer(task(number))
        async with both.stranger(places=10_000) as line:
            await both.until(lambda: [one.leased for one in both.server.workers()] == [2])
            await asyncio.sleep(0.1)
            assert [(one.places, one.leased) for one in both.server.workers()] == [(2, 2)]
            for number in range(worker_server.OWN_CALLS + 1):
                await line.send(frames.encode("call", id=number, name="forever", arguments={}))
            await ended(line)


async def test_a_worker_whose_key_is_removed_is_disconnected_and_its_tasks_are_lost(site: Any) -> None:
    async with site() as both:
        worker = await both.worker()
        await both.worker("ssk_bob")
        await both.until(lambda: len(both.server.workers()) == 2)
        (bob,) = [one for one in both.server.workers() if one.user == BOB]
        await both.offer(task(1))
        lease = await worker.lease(())
        both.server.drop({(2, BOB)})
        await both.until(lambda: both.heard)
        await both.until(lambda: lease.ended)
        await lease.answer(Verdict.passed())
        assert [answer.result.why for answer in both.heard] == [LOST]
        assert bob in both.server.workers()


# A ping with 125 bytes, masked with zeros (RFC 6455 5.2).
PING = b"\x89\xfd\0\0\0\0" + b"x" * 125
RUDE: list[Any] = [
    "text",
    b"\xff\xfe",
    frames.encode("dance"),
    frames.encode("answer", b"{}", token=7),
    frames.encode("welcome", settings={}),
]


@pytest.mark.parametrize("said", RUDE, ids=range(len(RUDE)))
async def test_a_worker_that_sends_rubbish_is_disconnected(site: Any, said: Any) -> None:
    async with site() as both:
        await both.offer(task(1))
        async with both.stranger() as line:
            await both.until(lambda: [one.leased for one in both.server.workers()] == [1])
            await line.send(said)
            await ended(line)
        await both.until(lambda: both.heard)
        assert "rubbish" in both.heard[0].result.reason


async def test_an_answer_without_end_is_not_read(site: Any) -> None:
    async with site() as both:
        await both.offer(task(1))
        async with both.stranger() as line:
            await both.until(lambda: [one.leased for one in both.server.workers()] == [1])
            with contextlib.suppress(ConnectionClosed):
                await line.send(frames.encode("answer", b"x" * 100_000_000, token="token 1"))
            await ended(line)
        await both.until(lambda: both.heard)
        assert isinstance(both.heard[0].result, Deferral)


UNUSABLE = [
    b"rubbish",
    b'{"message":2,"n":0,"token":"token 1","verdict":{"action":"pass"}}',
    b'{"message":1,"n":0,"token":"token 1","verdict":{"action":"deny","then":"discard"}}',
    b'{"message":1,"n":0,"token":"token 1","verdict":{"action":"pass","edits":[{"cut":[0,5],"text":""}]}}',
    b'{"message":1,"n":0,"token":"token 1","deferral":{"reason":"x","why":"lost"}}',
    b'{"message":1,"n":0,"token":"token 1","deferral":{"reason":"x","why":"offline"}}',
]


@pytest.mark.parametrize("data", UNUSABLE, ids=range(len(UNUSABLE)))
async def test_what_a_user_s_worker_may_not_answer_puts_the_mail_off(site: Any, data: bytes) -> None:
    async with site() as both:
        await both.offer(task(1))
        async with both.stranger() as line:
            await both.until(lambda: [one.leased for one in both.server.workers()] == [1])
            await line.send(frames.encode("answer", data, token="token 1"))
            await both.until(lambda: both.heard)
        assert "cannot be used" in both.heard[0].result.reason
        assert both.heard[0].result.why == ""


@pytest.mark.parametrize("kind", ["back", "discard"])
async def test_a_task_that_a_worker_had_does_not_come_back_as_if_it_had_not(site: Any, kind: str) -> None:
    async with site() as both:
        await both.offer(task(1))
        async with both.stranger() as line:
            await both.until(lambda: [one.leased for one in both.server.workers()] == [1])
            await line.send(frames.encode(kind, token="token 1"))
            await both.until(lambda: both.heard)
        assert both.heard[0].result.why == LOST
        # What it gives back when it stops another worker gets.
        await both.offer(task(2))
        async with both.stranger() as line:
            await both.until(lambda: [one.leased for one in both.server.workers()] == [1])
            await line.send(frames.encode("stop"))
            await line.send(frames.encode("back", token="token 2"))
            await both.until(lambda: [one.leased for one in both.server.workers()] == [0])
        assert both.broker.has(task(2))


async def test_pings_without_end_are_not_answered_for_a_client_that_does_not_read(site: Any) -> None:
    async with site() as both, both.stranger() as line:
        await both.until(both.server.workers)
        line.transport.pause_reading()
        async with asyncio.timeout(20):
            while both.server.workers():
                line.transport.write(PING * 100)
                await asyncio.sleep(0.001)
        line.transport.abort()


async def test_fragments_without_end_are_not_kept(site: Any) -> None:
    async with site() as both, both.stranger() as line:
        await both.until(both.server.workers)

        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b""

        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionClosed, OSError):
                await line.send(pieces())
        await both.until(lambda: not both.server.workers())


async def test_fields_of_a_frame_are_small(site: Any) -> None:
    async with site() as both, both.stranger() as line:
        await both.until(both.server.workers)
        await line.send(frames.encode("call", id=1, name="whose", arguments={"x": "y" * worker_socket.FIELDS}))
        await ended(line)


async def test_answers_to_tasks_of_others_have_no_effect(site: Any) -> None:
    async with site() as both:
        bob = await both.worker("ssk_bob")
        await both.offer(task(2, BOB))
        lease = await bob.lease(())
        forged = b'{"message":2,"n":0,"token":"token 2","verdict":{"action":"pass"}}'
        async with both.stranger() as line:
            await line.send(frames.encode("answer", forged, token="token 2"))
            await line.send(frames.encode("fetch", token="token 2"))
            await line.send(frames.encode("stop"))
            while frames.decode(await line.recv()).kind != "stopped":
                pass
        assert both.heard == []
        await lease.answer(Verdict.quarantine())
        await both.until(lambda: both.heard)
        assert both.heard[0].result == replace(Verdict.quarantine(), worker="w")


async def test_a_worker_that_does_not_read_is_disconnected(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is limited, and the end does not wait for it either."""
    monkeypatch.setattr(worker_socket, "WAITING", 1_000_000)
    async with site() as both, both.stranger(places=100) as line:
        await both.until(both.server.workers)
        line.transport.pause_reading()
        both.large.append("x" * 1_000_000)
        async with asyncio.timeout(20):
            while both.server.workers():
                both.server.tell_settings()
                await asyncio.sleep(0.005)
        line.transport.abort()


async def test_a_silent_worker_is_disconnected(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_server, "DISTANT_BEAT", 0.05)
    async with site() as both:
        living = await both.worker()
        await both.offer(task(1))
        async with both.stranger():
            await both.until(lambda: len(both.server.workers()) == 2)
            await both.until(lambda: len(both.server.workers()) == 1)
        assert not living.gone.is_set()


class SlowLine(QueuedStream):
    """A connection that sends one frame in some time, and says nothing but that it is there."""

    def __init__(self) -> None:
        super().__init__(10**9)
        self.cut, self.posted = asyncio.Event(), 0
        self._said = [
            frames.Frame("hello", {"format": 1, "name": "w", "places": 1, "queues": []}),
            frames.Frame("ready"),
        ]

    async def read(self) -> frames.Frame | None:
        if self._said:
            return self._said.pop(0)
        await self.cut.wait()
        return None

    async def _post(self, frame: bytes) -> None:
        await asyncio.sleep(0.03)
        self.posted += 1

    async def _close(self) -> None:
        self.cut.set()

    def _cut(self) -> None:
        self.cut.set()


async def test_a_worker_on_a_slow_line_is_not_silent(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers to pings come when the content before them has come."""
    monkeypatch.setattr(worker_server, "DISTANT_BEAT", 0.1)
    async with site() as both:
        line = SlowLine()
        for _ in range(50):  # more than a second, and a silent worker has 0.3
            line.write(b"content")
        serving = asyncio.create_task(both.server.serve(line, login=Login(ANN, 1)))
        async with asyncio.timeout(10):
            await line.cut.wait()
        assert line.posted > 50  # all of it, and then it was silent
        await serving


async def test_a_worker_connects_again_when_the_node_comes_back(site: Any) -> None:
    async with site() as both:
        worker = await both.worker()
        await both.until(both.server.workers)
        both.server.drop({(2, BOB)})
        await both.until(lambda: not both.server.workers())
        await both.until(both.server.workers)
        await both.offer(task(1))
        assert (await worker.lease(())).task.message == 1


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://mail.example", "wss://mail.example/api/v1/work"),
        ("https://mail.example:8443/switch/", "wss://mail.example:8443/switch/api/v1/work"),
        ("wss://mail.example/api/v1/work", "wss://mail.example/api/v1/work"),
        ("http://127.0.0.1:60666", "ws://127.0.0.1:60666/api/v1/work"),
        ("http://[::1]:60666", "ws://[::1]:60666/api/v1/work"),
        ("http://mail.example", ""),
        ("mail.example", ""),
        ("ftp://mail.example", ""),
        ("https://mail.example?x=1", ""),
        ("https://", ""),
    ],
)
def test_the_place_of_a_node(url: str, place: str) -> None:
    if place:
        assert web_client.place_of(url) == place
    else:
        with pytest.raises(ValueError, match=r"URL|https"):
            web_client.place_of(url)


def test_both_ends_know_the_same_place() -> None:
    assert web_client.PATH == worker_socket.PATH


@asynccontextmanager
async def two_nodes(site: Any, path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """A node, and another one behind its web port."""
    async with site(others={2: path}) as first, site() as second:
        await second.server.start(unix_socket.listen(path))
        yield first, second


async def consuming(connect_to: Callable[[int], remote.Connect], told: dict[str, object] | None = None) -> SeveralNodes:
    """A worker for several nodes; what each told it comes into `told`."""

    async def on_settings(node: str, settings: Mapping[str, Any] | None) -> None:
        if told is not None:
            told[node] = settings

    both = SeveralNodes(connect_to, name="w", places=2, on_settings=on_settings)
    await both.open()
    return both


async def two_consumed(first: Site) -> tuple[SeveralNodes, dict[str, object]]:
    """A worker of Ann's for the nodes behind an address, and what each told it."""
    told: dict[str, object] = {}
    both = await consuming(partial(web_client.connector, web_client.place_of(first.url), "ssk_ann"), told)
    await first.until(lambda: len(told) == 2)
    return both, told


async def test_a_worker_that_means_another_node_is_passed_on(site: Any, tmp_path: Path) -> None:
    async with two_nodes(site, tmp_path / "workers") as (first, second):
        worker = await first.worker(number=2)
        await second.offer(task(2, BOB))
        await second.offer(task(1, size=len(LARGE)))
        lease = await worker.lease(())
        assert read_all(await lease.content()) == LARGE
        await lease.answer(Verdict.passed("yes"))
        await first.until(lambda: second.heard)
        (one,) = second.server.workers()
        assert (one.user, one.pid, one.queues) == (ANN, 0, (own_queue(ANN),))
        assert first.server.workers() == []
        second.server.drop(set())  # its key is removed
        await first.until(lambda: not second.server.workers())


async def test_a_worker_serves_all_nodes(site: Any, tmp_path: Path) -> None:
    async with two_nodes(site, tmp_path / "workers") as (first, second):
        both, _ = await two_consumed(first)
        await first.offer(task(1))
        await second.offer(task(2))
        leases = [await both.lease(()), await both.lease(())]
        assert {lease.node: lease.task.message for lease in leases} == {"1": 1, "2": 2}
        assert await both.call("2", "whose", {}) == "the site"
        with pytest.raises(Temporary):
            await both.call("3", "whose", {})
        for lease in leases:
            await lease.answer(Verdict.passed("yes"))
        await first.until(lambda: first.heard and second.heard)
        await second.server.stop()  # it is started again
        second.server = WorkerServer(
            second.broker, reading(tmp_path / "more"), lambda _: {}, lambda _: {}, lambda _: None
        )
        (tmp_path / "workers").unlink()
        await second.server.start(unix_socket.listen(tmp_path / "workers"))
        await first.until(lambda: second.server.workers())
        await both.close()
        await first.until(lambda: not first.server.workers() and not second.server.workers())


async def test_what_waits_here_when_a_worker_stops_goes_back_to_each_node(site: Any, tmp_path: Path) -> None:
    """Also when one of them is gone."""
    async with two_nodes(site, tmp_path / "workers") as (first, second):
        calls = [0]

        def connect_to(number: int) -> remote.Connect:
            connected = web_client.connector(web_client.place_of(first.url), "ssk_ann", number)

            async def once() -> Any:
                calls[0] += number == 1
                if number == 1 and calls[0] > 1:
                    raise OSError("it is gone")
                return await connected()

            return once

        both = await consuming(connect_to)
        await second.offer(task(2))
        await first.until(lambda: [one.leased for one in second.server.workers()] == [1])
        await asyncio.sleep(0.1)  # it waits in the worker
        first.server.drop(set())
        await first.until(lambda: calls[0] > 1)
        await both.stop_taking()
        await first.until(lambda: [one.leased for one in second.server.workers()] == [0])
        assert second.heard == []
        assert second.broker.has(task(2))
        await both.close()


async def test_a_node_that_is_there_no_more_is_left(site: Any, tmp_path: Path) -> None:
    others = {2: tmp_path / "workers"}
    async with site(others=others) as first, site() as second:
        await second.server.start(unix_socket.listen(tmp_path / "workers"))
        both, told = await two_consumed(first)
        await second.offer(task(2))
        await second.until(lambda: [one.leased for one in second.server.workers()] == [1])
        del others[2]
        first.server.tell_settings()
        await first.until(lambda: told["2"] is None)
        await first.until(lambda: not second.server.workers())
        assert second.broker.has(task(2))
        await first.offer(task(1))
        assert (await both.lease(())).task.message == 1
        await both.close()


async def test_a_node_that_refuses_a_worker_is_called_again(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first node has accepted it."""
    monkeypatch.setattr(remote, "LAST_RETRY", 0.05)
    refusals = [Refused("this key is not valid"), Refused("this key is not valid")]
    async with two_nodes(site, tmp_path / "workers") as (first, second):

        def connect_to(number: int) -> remote.Connect:
            connected = web_client.connector(web_client.place_of(first.url), "ssk_ann", number)

            async def perhaps() -> Any:
                if number == 2 and refusals:
                    raise refusals.pop()
                return await connected()

            return perhaps

        both = await consuming(connect_to)
        await first.until(lambda: second.server.workers())
        assert (refusals, both.gone.is_set(), both.refused) == ([], False, "")
        await both.close()


@pytest.mark.parametrize("answers", range(6, 16))
async def test_the_last_answers_of_a_worker_that_goes_are_passed_on(site: Any, tmp_path: Path, answers: int) -> None:
    """Also to a node that is slow to read them, however many the system keeps meanwhile."""
    gone, heard = asyncio.Event(), asyncio.Queue[str]()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        while (frame := await frames.read(reader)) is not None:
            heard.put_nowait(frame.kind)
        writer.close()

    server = await asyncio.start_unix_server(slow, sock=unix_socket.listen(tmp_path / "workers"))
    async with server, site(others={2: tmp_path / "workers"}) as first:
        async with first.stranger(2) as line:
            for number in range(answers):
                await line.send(frames.encode("answer", b"x" * 30_000, token=f"token {number}"))
        await asyncio.sleep(0.1)  # the first node knows that it is gone
        gone.set()
        async with asyncio.timeout(10):
            said = [await heard.get() for _ in range(answers + 3)]
        assert said == ["login", "hello", "ready"] + ["answer"] * answers


async def test_a_worker_that_is_passed_on_and_does_not_read_is_disconnected(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_socket, "PATIENCE", 0.2)
    async with two_nodes(site, tmp_path / "workers") as (first, second), first.stranger(2) as line:
        await first.until(second.server.workers)
        line.transport.pause_reading()
        second.large.append("x" * 10_000_000)
        for _ in range(3):
            second.server.tell_settings()
        await first.until(lambda: not second.server.workers())
        line.transport.abort()


async def test_a_full_node_lets_workers_of_the_others_in(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_server, "OWN_MOST", 1)
    monkeypatch.setattr(worker_socket, "OWN_MOST", 2)
    async with two_nodes(site, tmp_path / "workers") as (first, second), first.stranger():
        await first.until(first.server.workers)
        async with first.stranger(2):
            await first.until(second.server.workers)
            async with first.stranger(2) as line:
                await ended(line)  # the other node has one already
                async with first.stranger(2):
                    await asyncio.sleep(0)
            assert len(second.server.workers()) == 1


async def test_more_connections_than_a_user_may_have_are_not_passed_on(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_socket, "OWN_MOST", 1)
    async with two_nodes(site, tmp_path / "workers") as (first, second):
        async with first.stranger(2):
            with pytest.raises(InvalidStatus, match="429"):
                async with first.stranger(2):
                    pass
        await first.until(lambda: not second.server.workers())
        async with first.stranger(2):
            await first.until(second.server.workers)


@pytest.mark.parametrize("number", ["3", "x", ""])
async def test_a_node_that_is_not_there_is_not_served(site: Any, tmp_path: Path, number: str) -> None:
    async with two_nodes(site, tmp_path / "workers") as (first, _):
        headers = {"Authorization": "Bearer ssk_ann", NODE: number}
        with pytest.raises(InvalidStatus, match="409"):
            async with connect(web_client.place_of(first.url), additional_headers=headers):
                pass


async def test_stopped_is_said_once(site: Any) -> None:
    async with site() as both, both.stranger() as line:
        for _ in range(3):
            await line.send(frames.encode("stop"))
        await line.send(frames.encode("call", id=1, name="whose", arguments={}))
        said = []
        while "result" not in said:
            said.append(frames.decode(await line.recv()).kind)
        assert said.count("stopped") == 1


@pytest.mark.parametrize("said", ["text", b"x" * 100_000 + b"\n", b"no frame\n"])
async def test_rubbish_is_not_passed_on(site: Any, tmp_path: Path, said: str | bytes) -> None:
    async with two_nodes(site, tmp_path / "workers") as (first, second):
        headers = {"Authorization": "Bearer ssk_ann", NODE: "2"}
        place = web_client.place_of(first.url)
        async with connect(place, additional_headers=headers, compression=None) as line:
            await line.send(frames.encode("hello", format=1, name="x", places=3, queues=[]))
            await first.until(lambda: second.server.workers())
            await line.send(said)
            await ended(line)
        await first.until(lambda: not second.server.workers())


async def test_who_logs_in_says_the_key_and_not_the_other_node(site: Any) -> None:
    """A frame `login` counts on the socket in the data folder only."""
    async with site() as both:
        headers = {"Authorization": "Bearer ssk_ann"}
        async with connect(web_client.place_of(both.url), additional_headers=headers, compression=None) as line:
            await line.send(frames.encode("login", address=BOB, key=2))
            await line.send(frames.encode("hello", format=1, name="x", places=3, queues=[]))
            await ended(line)
        assert both.server.workers() == []


async def test_who_would_reach_one_of_several_only_is_refused(site: Any, tmp_path: Path) -> None:
    async with site(others=None) as second:
        worker = await second.worker()
        await second.until(worker.gone.is_set)
        assert "first one's web port" in worker.refused
    async with site(others={2: tmp_path / "workers"}) as first:
        headers = {"Authorization": "Bearer ssk_ann"}
        with pytest.raises(InvalidStatus, match="403"):  # of a version that knows nothing of it
            async with connect(web_client.place_of(first.url), additional_headers=headers):
                pass
        worker = await first.worker(number=2)  # it is just being started
        await asyncio.sleep(0.3)
        assert not worker.gone.is_set()
