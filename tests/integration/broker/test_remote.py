"""A node and workers in other processes, over a unix socket: leases, content, calls, and workers that misbehave."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sendswitch import unix_socket
from sendswitch.broker import frames, worker_server
from sendswitch.broker.codec import MAX_ANSWER
from sendswitch.broker.embedded import EmbeddedBroker, EmbeddedPublisher
from sendswitch.broker.remote import RemoteConsumer
from sendswitch.broker.streams import SocketStream
from sendswitch.broker.worker_server import WorkerServer
from sendswitch.errors import InvalidConfiguration, NotFound, Refused, Temporary
from sendswitch.mail.content import Content, InFile, read_all
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.verdict import BROKE, LOST, Deferral, Verdict
from sendswitch.testing import envelope
from tests.integration.broker.contents import LARGE, SMALL, reading


def task(number: int, content: Content | Reference | None = None, *, owner: str = "ann@example.test") -> Task:
    mail = envelope()
    reference = Reference(number, len(SMALL), b"")
    return Task(
        number, 0, f"token {number}", mail.recipients[0], mail.sender, mail.client, content or reference, owner, 1,
        "q", 5.0,
    )  # fmt: skip


@dataclass
class Pair:
    """A node's side and its socket, with what it heard."""

    folder: Path
    broker: EmbeddedBroker
    publisher: EmbeddedPublisher
    server: WorkerServer
    heard: list[Answer] = field(default_factory=list)
    hung: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    told: list[Mapping[str, Any]] = field(default_factory=list)
    workers: list[RemoteConsumer] = field(default_factory=list)

    async def worker(self, places: int = 1, *, once: bool = False, name: str = "w") -> RemoteConsumer:
        async def on_settings(node: str, settings: Mapping[str, Any] | None) -> None:
            assert settings is not None
            self.told.append(settings)

        async def stream() -> SocketStream:
            return SocketStream(*await self.connect())

        made = RemoteConsumer(stream, name=name, places=places, queues=("q",), on_settings=on_settings, once=once)
        self.workers.append(made)
        await made.open()
        return made

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with unix_socket.address_of(self.folder / "workers") as address:
            return await asyncio.open_unix_connection(address)

    async def stranger(self, *, places: int, queue: str = "q") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a worker that then does as the test says."""
        reader, writer = await self.connect()
        hello = frames.encode("hello", format=1, name="x", places=places, queues=[queue])
        writer.write(frames.with_length(hello) + frames.with_length(frames.encode("ready")))
        return reader, writer

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not true():
                await asyncio.sleep(0.005)


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def made(**calls: Any) -> AsyncIterator[Pair]:
        read = reading(tmp_path / "large")

        broker = EmbeddedBroker()
        publisher = broker.publisher()
        settings: dict[str, Any] = {"n": 1}
        found = Pair(tmp_path, broker, publisher, None, settings=settings)  # type: ignore[arg-type]
        found.server = WorkerServer(broker, read, lambda owner: calls, lambda owner: settings, found.hung.append)
        await publisher.open(found.heard.append, lambda: None)
        await found.server.start(unix_socket.listen(tmp_path / "workers"))
        try:
            yield found
        finally:
            for one in found.workers:
                await one.close()
            await found.server.stop()

    return made


async def test_an_answer_reaches_the_node(pair: Any) -> None:
    async with pair() as both:
        worker = await both.worker()
        for number in (1, 2):
            await both.publisher.offer(task(number))
        for result in (Verdict.passed("yes"), Deferral("the scanner is away")):
            lease = await worker.lease(("q",))
            assert read_all(await lease.content()) == SMALL
            await lease.answer(result)
        await both.until(lambda: len(both.heard) == 2)
        assert both.heard == [
            Answer(1, 0, "token 1", Verdict.passed("yes")),
            Answer(2, 0, "token 2", Deferral("the scanner is away")),
        ]
        assert not both.publisher.has(task(1))
        (told,) = both.server.workers()
        assert (told.name, told.places, told.leased, told.done) == ("w", 1, 0, 2)


@pytest.mark.parametrize("rehearsal", [False, True], ids=["stored", "in the task"])
async def test_large_content_comes_in_pieces_and_leaves_no_file(pair: Any, rehearsal: bool) -> None:
    async with pair() as both:
        worker = await both.worker(places=2)
        content = InFile(both.folder / "large", len(LARGE)) if rehearsal else Reference(1, len(LARGE), b"")
        await both.publisher.offer(task(1, content))
        lease = await worker.lease(("q",))
        got: Any = await lease.content()
        assert read_all(got) == LARGE
        path = got.path
        assert path.exists()
        await lease.answer(Verdict.passed())
        del got, lease
        assert not path.exists()


async def test_content_that_cannot_be_read_is_a_deferral(pair: Any) -> None:
    async with pair() as both:
        worker = await both.worker(places=2)
        await both.publisher.offer(task(404))
        await both.until(lambda: both.heard)
        assert both.heard[0].result == Deferral("the content cannot be read: the disk is away")
        await both.publisher.offer(task(1, Reference(1, len(LARGE), b"")))
        (both.folder / "large").unlink()
        with pytest.raises(Temporary, match="no such file"):
            await (await worker.lease(("q",))).content()


async def test_what_is_given_back_another_worker_gets(pair: Any) -> None:
    async with pair() as both:
        worker = await both.worker(places=5)
        for number in range(1, 4):
            await both.publisher.offer(task(number))
        first = await worker.lease(("q",))
        await both.until(lambda: both.server.workers()[0].leased == 3)
        await worker.stop_taking()  # two that nobody leased go back at once
        other = await both.worker(places=5)
        found = [await other.lease(("q",)) for _ in range(2)]
        assert sorted(lease.task.message for lease in found) == [2, 3]
        await first.give_back()
        await first.answer(Verdict.passed("from a worker that gave it back"))
        assert (await other.lease(("q",))).task.message == 1
        assert both.heard == []


async def test_a_task_that_is_discarded_is_offered_by_the_node_only(pair: Any) -> None:
    async with pair() as both:
        worker = await both.worker()
        await both.publisher.offer(task(1))
        await (await worker.lease(("q",))).discard()
        await both.until(lambda: not both.publisher.has(task(1)))
        assert both.heard == []


async def test_the_tasks_of_a_worker_that_dies_are_lost_and_the_node_is_told(pair: Any) -> None:
    async with pair() as both:
        _, writer = await both.stranger(places=2)
        await both.until(both.server.workers)
        for number in (1, 2):
            await both.publisher.offer(task(number))
        await both.until(lambda: both.server.workers()[0].leased == 2)
        writer.close()
        await both.until(lambda: len(both.heard) == 2)
        assert {answer.result.why for answer in both.heard} == {LOST}
        assert "its worker ended" in both.heard[0].result.reason
        assert not both.publisher.has(task(1))
        assert both.server.workers() == []


async def test_a_worker_that_closes_loses_nothing(pair: Any) -> None:
    async with pair() as both:
        worker, other = await both.worker(places=2), None
        for number in (1, 2):
            await both.publisher.offer(task(number))
        await worker.lease(("q",))
        await worker.close()
        other = await both.worker(places=2)
        assert {(await other.lease(("q",))).task.message for _ in range(2)} == {1, 2}
        assert both.heard == []


async def test_a_worker_that_is_silent_is_known_to_hang(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_server, "BEAT", 0.02)
    async with pair() as both:
        _, writer = await both.stranger(places=1)
        living = await both.worker(name="living")
        await both.until(lambda: len(both.server.workers()) == 2)
        await both.until(lambda: both.hung)
        await both.until(lambda: [one.name for one in both.server.workers()] == ["living"])
        assert len(both.hung) == 1
        assert living.gone.is_set() is False
        writer.close()


async def test_a_worker_that_answers_late_is_answered_for_and_keeps_its_place(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_server, "BEHIND", -4.9)
    monkeypatch.setattr(worker_server, "BEAT", 0.1)
    async with pair() as both:
        worker = await both.worker()
        await both.publisher.offer(task(1))
        await both.publisher.offer(task(2))
        lease = await worker.lease(("q",))
        await both.until(lambda: both.heard)
        assert both.heard[0].result == Deferral("the worker w did not answer in time")
        assert [one.leased for one in both.server.workers()] == [1]
        await lease.answer(Verdict.passed("too late"))
        assert (await worker.lease(("q",))).task.message == 2
        assert len(both.heard) == 1


RUBBISH = [
    b"",
    b"\0\0\0\5hello",
    b"\xff\xff\xff\xff",
    frames.with_length(b"{}\n"),
    frames.with_length(b"[]\n"),
    frames.with_length(frames.encode("task")),
    frames.with_length(frames.encode("hello", format=99, name="x", places=1, queues=[])),
    frames.with_length(frames.encode("hello", format=1, name="x", places=0, queues=[])),
    frames.with_length(frames.encode("hello", format=1, name="x", places=1, queues="q")),
    frames.with_length(frames.encode("hello", format=1, name=5, places=1, queues=["q"])),
]


@pytest.mark.parametrize("data", RUBBISH, ids=range(len(RUBBISH)))
async def test_a_stranger_s_bytes_end_its_connection_only(pair: Any, data: bytes) -> None:
    async with pair() as both:
        reader, writer = await both.connect()
        writer.write(data)
        if not data:
            writer.write_eof()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        worker = await both.worker()
        await both.publisher.offer(task(1))
        assert (await worker.lease(("q",))).task.message == 1


UNUSABLE = [
    b"rubbish",
    b'{"message":2,"n":0,"token":"token 1","verdict":{"action":"pass"}}',
    b'{"message":1,"n":0,"token":"token 1","verdict":{"action":"destroy"}}',
    b"x" * (MAX_ANSWER + 1),
]


@pytest.mark.parametrize("data", UNUSABLE, ids=range(len(UNUSABLE)))
async def test_an_answer_that_cannot_be_used_costs_its_own_mail_only(pair: Any, data: bytes) -> None:
    async with pair() as both:
        _, writer = await both.stranger(places=2)
        for number in (1, 2):
            await both.publisher.offer(task(number))
        await both.until(lambda: [one.leased for one in both.server.workers()] == [2])
        writer.write(frames.with_length(frames.encode("answer", data, token="token 1")))
        await both.until(lambda: both.heard)
        (answer,) = both.heard
        assert (answer.message, answer.result.why) == (1, "")
        assert "cannot be used" in answer.result.reason
        assert [one.leased for one in both.server.workers()] == [1]
        writer.close()


RUDE = [frames.encode("answer", b"{}", token=7), frames.encode("dance"), b"\xff"]


@pytest.mark.parametrize("frame", RUDE, ids=range(len(RUDE)))
async def test_a_frame_that_is_none_costs_the_worker_its_tasks(pair: Any, frame: bytes) -> None:
    async with pair() as both:
        _, writer = await both.stranger(places=1)
        await both.publisher.offer(task(1))
        await both.until(lambda: [one.leased for one in both.server.workers()] == [1])
        writer.write(frames.with_length(frame))
        await both.until(lambda: both.heard)
        assert both.heard[0].result.why == BROKE  # it had no other
        assert "rubbish" in both.heard[0].result.reason
        writer.close()


async def test_a_worker_that_reads_nothing_does_not_delay_the_end(pair: Any) -> None:
    async with pair() as both:
        _, writer = await both.stranger(places=1)
        await both.publisher.offer(task(1, Reference(1, len(LARGE), b"")))
        await both.until(lambda: [one.leased for one in both.server.workers()] == [1])
        for _ in range(100):  # one piece after the other, and no second time meanwhile
            writer.write(frames.with_length(frames.encode("fetch", token="token 1")))
        writer.write(frames.with_length(frames.encode("call", id=1, name="nothing", arguments={})))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(3):
            await both.server.stop()
        writer.transport.abort()


async def test_calls_without_end_are_rubbish(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_server, "CALLS", 10)

    async def never(told: Mapping[str, Any]) -> Any:
        await asyncio.Event().wait()

    async with pair(never=never) as both:
        reader, writer = await both.stranger(places=1)
        for number in range(11):
            writer.write(frames.with_length(frames.encode("call", id=number, name="never", arguments={})))
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()


@pytest.mark.parametrize("at_once", [False, True])
async def test_no_task_is_lost_when_its_worker_goes_as_it_comes(pair: Any, at_once: bool) -> None:
    async with pair() as both:
        for number in range(1, 60):
            _, writer = await both.stranger(places=5)
            await both.publisher.offer(task(number, owner=f"{number}@example.test"))
            if not at_once:
                await asyncio.sleep(0.001 * (number % 7))
            writer.transport.abort()
        await both.until(lambda: both.server.workers() == [])
        worker = await both.worker(places=100)
        heard = {answer.message for answer in both.heard}
        for _ in range(59 - len(heard)):
            heard.add((await worker.lease(("q",))).task.message)
        assert heard == set(range(1, 60))


async def test_answers_that_were_sent_before_the_end_count(pair: Any) -> None:
    async with pair() as both:
        for number in range(1, 30):
            await both.publisher.offer(task(number, owner=f"{number}@example.test"))
        worker = await both.worker(places=29)
        leases = [await worker.lease(("q",)) for _ in range(29)]
        for lease in leases[:20]:
            await lease.answer(Verdict.passed())
        await worker.stop_taking()
        await worker.close()
        await both.until(lambda: both.server.workers() == [])
        assert [type(answer.result) for answer in both.heard] == [Verdict] * 20
        other = await both.worker(places=29)
        assert len({(await other.lease(("q",))).task.message for _ in range(9)}) == 9


async def test_an_answer_that_cannot_be_sent_leaves_the_lease(pair: Any) -> None:
    async with pair() as both:
        worker = await both.worker()
        await both.publisher.offer(task(1))
        lease = await worker.lease(("q",))
        with pytest.raises((TypeError, ValueError)):
            await lease.answer(Verdict.passed("\ud800"))
        await lease.discard()
        await both.until(lambda: not both.publisher.has(task(1)))


async def test_content_of_a_lease_that_ended_is_not_waited_for(pair: Any) -> None:
    async with pair() as both:
        worker = await both.worker()
        await both.publisher.offer(task(1, Reference(1, len(LARGE), b"")))
        lease = await worker.lease(("q",))
        await both.server.stop()
        await both.until(lambda: lease.ended)
        with pytest.raises(Temporary):
            await lease.content()


async def test_an_answer_for_another_s_task_has_no_effect(pair: Any) -> None:
    async with pair() as both:
        one, two = await both.worker(name="one"), None
        await both.publisher.offer(task(1))
        lease = await one.lease(("q",))
        reader, writer = await both.stranger(places=1, queue="other")
        stolen = b'{"message":1,"n":0,"token":"token 1","verdict":{"action":"pass"}}'
        for kind in ("answer", "back", "discard", "fetch"):
            writer.write(frames.with_length(frames.encode(kind, stolen, token="token 1")))
        writer.write(frames.with_length(frames.encode("call", id=1, name="nothing", arguments={})))
        while (frame := await frames.read(reader)) is not None and frame.kind != "result":
            pass  # by then the node has read all of them
        assert frame is not None
        assert frame.fields["error"] == "refused"
        assert (both.heard, both.publisher.has(task(1))) == ([], True)
        await lease.answer(Verdict.deny("no"))
        await both.until(lambda: both.heard)
        assert both.heard[0].result == Verdict.deny("no")
        writer.close()
        assert two is None


async def test_a_call_returns_its_result_or_its_error(pair: Any) -> None:
    async def double(told: Mapping[str, Any]) -> Any:
        return told["n"] * 2

    async def fail(told: Mapping[str, Any]) -> Any:
        raise {"found": NotFound("no pipeline"), "bad": InvalidConfiguration(["a", "b"]), "io": OSError(28, "x")}[
            told["how"]
        ]

    async with pair(double=double, fail=fail) as both:
        worker = await both.worker()
        await both.until(lambda: both.told)
        assert await asyncio.gather(*(worker.call("", "double", {"n": n}) for n in range(50))) == list(range(0, 100, 2))
        with pytest.raises(NotFound, match="no pipeline"):
            await worker.call("", "fail", {"how": "found"})
        with pytest.raises(InvalidConfiguration) as bad:
            await worker.call("", "fail", {"how": "bad"})
        assert bad.value.problems == ["a", "b"]
        with pytest.raises(Temporary, match="the disk is full"):
            await worker.call("", "fail", {"how": "io"})
        for name, arguments in (("double", {}), ("double", {"n": None}), ("nothing", {})):
            with pytest.raises(Refused, match=name):
                await worker.call("", name, arguments)


async def test_a_call_without_a_node_is_temporary(pair: Any) -> None:
    async def never(told: Mapping[str, Any]) -> Any:
        await asyncio.Event().wait()

    async with pair(never=never) as both:
        worker = await both.worker(once=True)
        await both.until(lambda: both.told)
        calling = asyncio.create_task(worker.call("", "never", {}))
        await asyncio.sleep(0)
        await both.server.stop()
        for asked in (calling, worker.call("", "never", {})):
            with pytest.raises(Temporary, match="connection"):
                await asked
        await asyncio.wait_for(worker.gone.wait(), 5)


async def test_settings_come_before_the_first_task_and_when_they_change(pair: Any) -> None:
    async with pair() as both:
        await both.publisher.offer(task(1))
        worker = await both.worker()
        await worker.lease(("q",))
        assert list(both.told) == [{"n": 1}]
        both.settings["n"] = 2
        both.server.tell_settings()
        await both.until(lambda: len(both.told) == 2)
        assert both.told[1] == {"n": 2}


async def test_a_worker_comes_back_when_the_node_does(pair: Any) -> None:
    async with pair() as both:
        worker = await both.worker()
        await both.publisher.offer(task(1))
        old = await worker.lease(("q",))
        await both.server.stop()
        await both.until(lambda: old.ended)
        await both.server.start(unix_socket.listen(both.folder / "workers"))
        await old.answer(Verdict.passed("over a connection that is gone"))
        await both.publisher.offer(task(2))
        assert (await worker.lease(("q",))).task.message == 2
        assert [answer.result.why for answer in both.heard] == [BROKE]  # it was the only one


def test_a_frame_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME", 10)
    with pytest.raises(frames.BadFrame, match="at most 10"):
        frames.with_length(b"x" * 11)


async def test_a_length_is_believed_up_to_a_limit() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(struct.pack("!I", frames.MAX_FRAME + 1))
    with pytest.raises(frames.BadFrame, match="at most"):
        await frames.read(reader)
