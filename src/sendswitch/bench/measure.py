"""The measurements. A ratio is made of figures of one run only.

Absolute numbers are printed to be looked at and mean nothing elsewhere. Where two peers are compared they take turns,
several rounds each, and the medians are compared, so that a machine that slows down slows both.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import smtplib
import socket
import statistics
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any
from urllib.request import urlopen

from sendswitch.bench.peers import Node, Postfix, Sink, free_port, source, stop, wait_for_port
from sendswitch.db import journal
from sendswitch.db.connect import open_database
from sendswitch.errors import Temporary
from sendswitch.journal.events import Event
from sendswitch.journal.story import explain, timeline
from sendswitch.mail.ids import first_at

SESSIONS = 50
SIZE = 4000
# Seconds in which one chain writes what it still has to (logs, the journal), so that the other is not slowed by it.
SETTLE = 1.0
Settings = dict[str, dict[str, Any]]
QUIET: Settings = {"log": {"level": "warning"}}
CONNECTIONS: Settings = {"next_hop": {"connections": 20}}
LISTS = textwrap.dedent(
    """
    [[step]]
    use = "lists"
    allow = ["friend@example.net", "*@*.example.net"]
    deny = ["spam.example", "*@*.spam.example"]
    [[step]]
    use = "pass"
    """
)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table: the measurement, its limit, and whether it kept the limit."""

    name: str
    value: float
    must: str
    reached: bool
    detail: str


def rate(port: int, messages: int, sessions: int = SESSIONS, to: str = "b@example.test") -> float:
    """Return the messages a second through a port, sent by smtp-source over reused connections."""
    return messages / source(port, messages=messages, sessions=sessions, size=SIZE, to=to)


def drained(node: Node, pause: float = 0.02) -> None:
    """Wait until the node has nothing on its way, asking it every `pause` seconds, which takes some of its time.

    Raises Temporary when that takes a minute.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not any(figure(node, f'sendswitch_queue_depth{{state="{state}"}}') for state in ("accepted", "decided")):
            return
        time.sleep(pause)
    raise Temporary("the node did not get through its queue in a minute")


def figure(node: Node, name: str) -> float:
    """Return one of the node's metrics, the sum of it where it is several."""
    total = 0.0
    for port in node.webs:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        total += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))
    return total


def through(
    node: Node, messages: int, *, file: Path | None = None, to: str = "b@example.test", sessions: int = SESSIONS
) -> float:
    """Return the messages a second from the first byte in to the last one out.

    With `file`, each message is that file.
    """
    began = time.perf_counter()
    source(node.port, messages=messages, sessions=sessions, size=SIZE, file=file, to=to)
    drained(node, 0.1 if file else 0.02)
    return messages / (time.perf_counter() - began)


def in_turns(rounds: int, *measures: Callable[[], float]) -> list[float]:
    """Return the median of each measure, taken in turns."""
    taken: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for values, measure in zip(taken, measures, strict=True):
            values.append(measure())
    return [statistics.median(values) for values in taken]


def relay(folder: Path, rounds: int) -> list[Result]:
    """Measure the durable relay, with and without pipelines, beside the sink itself, Postfix, and the seeds' way."""
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink())
        node = stack.enter_context(Node(folder / "relay", f"127.0.0.1:{sink.port}", settings=QUIET | CONNECTIONS))
        piped = stack.enter_context(Node(folder / "piped", f"127.0.0.1:{sink.port}", settings=QUIET | CONNECTIONS))
        piped.add_pipeline("b@example.test", LISTS)
        postfix = stack.enter_context(Postfix(folder / "postfix", relay=sink.port))
        seed = stack.enter_context(_seed(folder, sink.port))
        for warm in (node, piped):
            through(warm, 500)
        direct, ours, pipeline, theirs, old = in_turns(
            rounds,
            lambda: rate(sink.port, 20_000),
            lambda: through(node, 8_000),
            lambda: through(piped, 5_000),
            lambda: _postfix_relay(postfix, 1_000),
            lambda: rate(seed, 600, 20),
        )
    return [
        at_least("relay / direct to smtp-sink", ours / direct, 0.25, f"{ours:.0f} and {direct:.0f} msg/s"),
        at_least("relay / Postfix relaying", ours / theirs, 5, f"{ours:.0f} and {theirs:.0f} msg/s"),
        at_least("lists + pass / relay", pipeline / ours, 0.6, f"{pipeline:.0f} and {ours:.0f} msg/s"),
        at_least("relay / aiosmtpd with smtplib", ours / old, 2, f"{ours:.0f} and {old:.0f} msg/s; not durable there"),
    ]


def several(folder: Path, rounds: int) -> list[Result]:
    """Measure two nodes on one port beside one, into a sink that takes everything."""
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink())
        one, two = (
            stack.enter_context(
                Node(
                    folder / f"{n}", f"127.0.0.1:{sink.port}", settings=QUIET | CONNECTIONS | {"node": {"processes": n}}
                )
            )
            for n in (1, 2)
        )
        for warm in (one, two):
            through(warm, 1_000)
        alone, both = in_turns(rounds, lambda: through(one, 8_000), lambda: through(two, 8_000))
    return [at_least("two nodes / one", both / alone, 1.2, f"{both:.0f} and {alone:.0f} msg/s")]


def _postfix_relay(postfix: Postfix, messages: int) -> float:
    began = time.perf_counter()
    source(postfix.plain, messages=messages, sessions=SESSIONS, size=SIZE)
    end = time.monotonic() + 120
    while postfix.queue().strip():
        if time.monotonic() > end:
            raise Temporary(f"Postfix did not get through its queue\n{postfix.maillog[-2000:]}")
        time.sleep(0.05)
    return messages / (time.perf_counter() - began)


_SEED = """
import asyncio, smtplib, sys
from aiosmtpd.controller import Controller
class Handler:
    async def handle_DATA(self, server, session, envelope):
        def send():
            with smtplib.SMTP("127.0.0.1", int(sys.argv[2])) as client:
                client.sendmail(envelope.mail_from, envelope.rcpt_tos, envelope.content)
        await asyncio.get_running_loop().run_in_executor(None, send)
        return "250 OK"
controller = Controller(Handler(), hostname="127.0.0.1", port=int(sys.argv[1]))
controller.start()
import time
time.sleep(3600)
"""


@contextlib.contextmanager
def _seed(folder: Path, sink: int) -> Iterator[int]:
    """Run aiosmtpd handing on with smtplib in a thread: how the older system did it."""
    if importlib.util.find_spec("aiosmtpd") is None:
        raise Temporary("bench compares with aiosmtpd, which is not installed: pip install 'sendswitch[bench]'")
    port = free_port()
    script = folder / "seed.py"
    script.write_text(_SEED)
    process = Popen([sys.executable, str(script), str(port), str(sink)], stderr=DEVNULL)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        stop(process)


def chain(folder: Path, rounds: int) -> list[Result]:
    """Measure Postfix → SendSwitch → second Postfix → Maildir, beside the same without SendSwitch. Our defaults."""
    with contextlib.ExitStack() as stack:
        last = Postfix(folder / "last")
        node = Node(folder / "chain", f"127.0.0.1:{last.reinject}", settings=QUIET)
        ours = Postfix(folder / "with", content_filter=node.port)
        bare = Postfix(folder / "without", content_filter=last.reinject)
        for part in (last, ours, bare, node):
            stack.enter_context(part)
        with_us, without = in_turns(
            rounds, lambda: _through_chain(ours, last, 1_000), lambda: _through_chain(bare, last, 1_000)
        )
    detail = f"{with_us:.0f} and {without:.0f} msg/s"
    return [at_least("Postfix → us → Postfix / Postfix → Postfix", with_us / without, 0.9, detail)]


def _through_chain(first: Postfix, last: Postfix, messages: int) -> float:
    """Return the messages a second from the first Postfix to a Maildir of the last."""
    last.put_aside("bob")
    time.sleep(SETTLE)
    os.sync()  # what the round before left to be written would be written in this one
    began = time.perf_counter()
    source(first.smtp, messages=messages, sessions=20, size=SIZE, to="bob@example.test")
    end = time.monotonic() + 180
    while last.count("bob") < messages:
        if time.monotonic() > end:
            raise Temporary(f"Postfix did not get through its queue\n{first.maillog[-2000:]}")
        time.sleep(0.02)
    return messages / (time.perf_counter() - began)


def line(folder: Path, rounds: int) -> list[Result]:
    """Measure 200 messages over one connection in and one out to Postfix, beside smtp-source straight to it."""
    with contextlib.ExitStack() as stack:
        postfix = stack.enter_context(Postfix(folder / "postfix"))
        settings = QUIET | {"next_hop": {"connections": 1}}
        node = stack.enter_context(Node(folder / "line", f"127.0.0.1:{postfix.reinject}", settings=settings))
        ours, direct = in_turns(
            rounds,
            lambda: through(node, 200, sessions=1, to="bob@example.test"),
            lambda: rate(postfix.reinject, 200, 1, "bob@example.test"),
        )
    detail = f"{200 / ours:.2f} and {200 / direct:.2f} s for 200 messages"
    return [at_most("one connection through us / straight to Postfix", direct / ours, 3, detail)]


def history(folder: Path, rounds: int) -> list[Result]:
    """Measure the cost of the history for the mail, and the delay of the journal after a burst."""
    forgetful: Settings = {"journal": {"enabled": False}, "recording": {"mail": "none"}}
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink())
        settings = QUIET | CONNECTIONS | {"recording": {"mail": "all"}}
        node = stack.enter_context(Node(folder / "history", f"127.0.0.1:{sink.port}", settings=settings))
        bare = stack.enter_context(
            Node(folder / "bare", f"127.0.0.1:{sink.port}", settings=QUIET | CONNECTIONS | forgetful)
        )
        ratios = []

        def burst() -> float:
            began = time.perf_counter()
            rate = through(node, 8_000)
            out = time.perf_counter() - began
            _journaled(node)
            ratios.append(out / (time.perf_counter() - began))
            return rate

        for warm in (node, bare):
            through(warm, 500)
        _journaled(node)
        keeping, forgetting = in_turns(rounds, burst, lambda: through(bare, 8_000))
    detail = f"{keeping:.0f} and {forgetting:.0f} msg/s"
    return [
        at_least("relay with journal and all mail recorded / without", keeping / forgetting, 0.8, detail),
        at_least("mail out / journal complete, a burst", statistics.median(ratios), 0.5, "8,000 messages"),
    ]


def _journaled(node: Node) -> None:
    end = time.monotonic() + 60
    while figure(node, "sendswitch_outbox_events"):
        if time.monotonic() > end:
            raise Temporary("the journal was not complete in a minute")
        time.sleep(0.02)


_PROGRAM = """
from sendswitch.mail.verdict import Verdict
async def process(mail, context):
    if any(attachment.name.endswith(".exe") for attachment in mail.attachments):
        return Verdict.quarantine("a program is attached")
    return None
"""


def rehearsal(folder: Path, messages: int) -> list[Result]:
    """Measure recorded mail through lists and a user's program again, by the processor time of both."""
    program = folder / "program.py"
    program.write_text(_PROGRAM)
    with Sink() as sink, Node(folder / "replay", f"127.0.0.1:{sink.port}", settings=QUIET | CONNECTIONS) as node:
        node.add_pipeline("b@example.test", f'{LISTS.replace("pass", "python")}file = "{program}"\n')
        through(node, messages)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(node.run("replay", "--json").stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if (found["total"], found["differing"]) != (messages, 0):
        raise Temporary(f"the replay gave {found['differing']} differences in {found['total']} of {messages}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    detail = f"{messages} messages of {SIZE} bytes"
    return [Result("replay, msg/s per core", messages / spent, "≥ 2000", messages / spent >= 2000, detail)]


def stories(folder: Path, messages: int) -> list[Result]:
    """Measure how long the story of one message takes in a journal with many."""
    engine = open_database(f"sqlite:///{folder}/journal.db")
    now, per = time.time(), 2000
    first = first_at(now - messages)
    for start in range(0, messages, per):
        journal.write(engine, [e for n in range(start, start + per) for e in _story(first + (n << 21), n, now)])
    seconds: list[float] = []
    for n in range(0, messages, messages // 200):
        began = time.perf_counter()
        kept = journal.story(engine, first + (n << 21))
        explain(kept.events, 0, "delivered")
        timeline(kept.events)
        seconds.append(time.perf_counter() - began)
    engine.dispose()
    worst = max(seconds) * 1000
    name = f"explain and timeline, {messages:,} messages, ms"
    return [Result(name, worst, "< 50", worst < 50, f"the slowest of {len(seconds)}")]


def _story(message: int, n: int, now: float) -> list[Event]:
    came = {
        "from": f"a{n}@example.org",
        "to": ["b@example.test"],
        "size": SIZE,
        "via": "filter",
        "subject": f"number {n}",
    }
    step = {"processor": "lists", "seconds": 0.0001, "outcome": "no opinion"}
    verdict = {"action": "pass", "reason": "the pipeline came to its end", "trace": [step]}
    ended = {"reply": "250 2.0.0 Ok", "seconds": 0.01}
    told: tuple[tuple[int | None, str, dict[str, Any]], ...] = (
        (None, "accepted", came),
        (0, "verdict", verdict),
        (0, "delivered", ended),
    )
    return [Event(3 * n + k, message, to, now, event, data) for k, (to, event, data) in enumerate(told)]


def latency(folder: Path) -> list[Result]:
    """Measure the delay that an idle node adds."""
    value = added_latency(folder / "latency", QUIET)
    return [Result("idle latency added, p50, ms", value, "< 10", value < 10, "100 messages")]


def added_latency(folder: Path, settings: Mapping[str, Mapping[str, Any]], pipeline: str = "") -> float:
    """Return the delay that an idle node adds, in milliseconds: from the end of data to the message at the next hop,
    one message at a time; the median of 100.
    """
    arrivals: list[float] = []
    with _stamping_hop(arrivals) as hop, Node(folder, f"127.0.0.1:{hop}", settings=settings) as node:
        if pipeline:
            node.add_pipeline("b@example.test", pipeline)
            through(node, 10)
        added = _latencies(node.port, arrivals)
        direct = _latencies(hop, arrivals)
    return (statistics.median(added) - statistics.median(direct)) * 1000


def _latencies(port: int, arrivals: list[float]) -> list[float]:
    taken = []
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo("bench.example")
        for _ in range(100):
            arrivals.clear()
            client.mail("a@example.org")
            client.rcpt("b@example.test")
            began = time.perf_counter()
            client.data(b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n")
            end = time.monotonic() + 5
            while not arrivals:
                if time.monotonic() > end:
                    raise Temporary("a message did not arrive in 5 s")
                time.sleep(0.0002)
            taken.append(arrivals[0] - began)
    return taken


@contextlib.contextmanager
def _stamping_hop(arrivals: list[float]) -> Iterator[int]:
    """Run a next hop in a thread that notes when it has a whole message."""
    server = socket.create_server(("127.0.0.1", free_port()))

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"220 stamp\r\n")
            data = b""
            in_data = False
            while piece := connection.recv(65536):
                data += piece
                while b"\r\n" in data:
                    if in_data:
                        if not data.endswith(b"\r\n.\r\n"):
                            break
                        arrivals.append(time.perf_counter())
                        data, in_data = b"", False
                        connection.sendall(b"250 ok\r\n")
                        continue
                    line, _, data = data.partition(b"\r\n")
                    in_data = line.upper() == b"DATA"
                    said = b"221 bye\r\n" if line.upper() == b"QUIT" else b"250 ok\r\n"
                    connection.sendall(b"354 go\r\n" if in_data else said)

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.close()


def memory(folder: Path) -> list[Result]:
    """Measure the memory of 2,000 idle connections, and of 50 messages of 25 MB at once."""
    with Sink() as sink, Node(folder / "memory", f"127.0.0.1:{sink.port}", settings=QUIET) as node:
        assert node.process is not None
        idle = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(2000)]
        for connection in idle:
            connection.recv(200)
        resting = memory_of(node.process.pid, "VmRSS")
        for connection in idle:
            connection.close()
        _send_large(node.port, 50, 25_000_000)
        drained(node)
        peak = memory_of(node.process.pid, "VmHWM")
    return [
        Result("2,000 idle connections, MiB", resting, "< 100", resting < 100, "resident, the node without workers"),
        Result("50 messages of 25 MB at once, MiB", peak, "< 300", peak < 300, "peak resident"),
    ]


def memory_of(pid: int, key: str) -> float:
    """Return a figure of /proc/PID/status, in MiB. Raises Temporary when it is not there."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise Temporary(f"/proc/{pid}/status has no {key}")


def _send_large(port: int, count: int, size: int) -> None:
    failures: list[str] = []
    piece = (b"x" * 74 + b"\r\n") * 1000

    def one() -> None:
        try:
            with smtplib.SMTP("127.0.0.1", port, timeout=300) as client:
                client.ehlo("bench.example")
                client.mail("a@example.org")
                client.rcpt("b@example.test")
                client.docmd("DATA")
                assert client.sock is not None
                for _ in range(size // len(piece)):
                    client.sock.sendall(piece)
                client.sock.sendall(b".\r\n")
                code, text = client.getreply()
                if code != 250:
                    failures.append(text.decode())
        except (OSError, smtplib.SMTPException) as error:
            failures.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Temporary(f"{len(failures)} of {count} large messages failed: {failures[0]}")


def backlog(folder: Path, messages: int) -> list[Result]:
    """Measure 100,000 messages in the spool: the rate while it fills, and how soon a restart takes mail."""
    dead = free_port()
    settings: Settings = QUIET | {"next_hop": {"first_retry": "1h"}}
    node = Node(folder / "backlog", f"127.0.0.1:{dead}", settings=settings)
    with node:
        tenth = messages // 10
        rates = [rate(node.port, tenth) for _ in range(10)]
        drained_attempts(node)
    began = time.perf_counter()
    with node:
        start = time.perf_counter() - began
        full = rate(node.port, tenth)
    first, last = statistics.median(rates[:3]), statistics.median(rates[-3:])
    return [
        Result(f"start with {messages:,} spooled, s", start, "< 5", start < 5, "until mail is taken"),
        at_least("intake with a full backlog / empty", last / first, 0.8, f"{last:.0f} and {first:.0f} msg/s"),
        at_least("intake after that restart / empty", full / first, 0.8, f"{full:.0f} and {first:.0f} msg/s"),
    ]


def drained_attempts(node: Node) -> None:
    """Wait until the first attempts are over, so that the restart is measured and not they."""
    end = time.monotonic() + 120
    before = -1.0
    while time.monotonic() < end:
        now = figure(node, "sendswitch_reinject_connect_failures_total")
        if now == before:
            return
        before = now
        time.sleep(1.0)


def at_least(name: str, value: float, wanted: float, detail: str) -> Result:
    """Return the result for a figure that must not be smaller."""
    return Result(name, value, f"≥ {wanted:g}", value >= wanted, detail)


def at_most(name: str, value: float, wanted: float, detail: str) -> Result:
    """Return the result for a figure that must not be larger."""
    return Result(name, value, f"≤ {wanted:g}", value <= wanted, detail)
