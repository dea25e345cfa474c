"""The ways to a worker, measured: the socket of this machine, and RabbitMQ beside a bare loop over it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import smtplib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import uvloop

from sendswitch.bench.measure import (
    CONNECTIONS,
    QUIET,
    Result,
    added_latency,
    at_least,
    at_most,
    drained,
    in_turns,
    memory_of,
    through,
)
from sendswitch.bench.peers import Node, Sink
from sendswitch.bench.rabbitmq import RABBITMQ, RabbitMQ
from sendswitch.errors import Temporary

# A pipeline that is not light and costs next to nothing: mail that is tagged SPAM gets no automatic reply.
CHEAP = '[[step]]\nuse = "tag"\ntags = ["SPAM"]\n\n[[step]]\nuse = "reply"\ntext = "away"\n\n[[step]]\nuse = "pass"\n'
# Seconds between two questions to /livez, so that asking is not the load that is measured.
PAUSE = 0.001
# Tasks under way at once in the bare loop, and bytes of a task and of an answer.
AT_ONCE, TASK, ANSWER = 100, 4_500, 350

_BARE = """
import asyncio, sys
import aio_pika, uvloop
async def main():
    connection = await aio_pika.connect(sys.argv[1])
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(prefetch_count=int(sys.argv[2]))
    queue = await channel.declare_queue("bare", durable=True)
    async def came(message):
        answer = aio_pika.Message(b"x" * int(sys.argv[3]), message_id=message.message_id)
        await channel.default_exchange.publish(answer, routing_key=message.reply_to)
        await message.ack()
    await queue.consume(came)
    await asyncio.Event().wait()
uvloop.run(main())
"""


def workers(folder: Path, rounds: int) -> list[Result]:
    """Measure the rate and the latency through one worker process, on its socket and through RabbitMQ."""
    if not RABBITMQ.exists():
        raise Temporary("bench needs RabbitMQ; as root: apt-get install rabbitmq-server")
    server = RabbitMQ(folder / "rabbitmq")
    server.start()
    one = QUIET | CONNECTIONS | {"worker": {"processes": 1}}
    try:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(Sink())
            hop = f"127.0.0.1:{sink.port}"
            plain = stack.enter_context(Node(folder / "plain", hop, settings=QUIET | CONNECTIONS))
            near = stack.enter_context(Node(folder / "near", hop, settings=one))
            far = stack.enter_context(Node(folder / "far", hop, settings=one | {"broker": {"urls": [server.url]}}))
            bare = stack.enter_context(_bare_worker(server.url))
            for node in (near, far):
                node.add_pipeline("b@example.test", CHEAP)
                through(node, 500)
            relayed, socket, rabbit, loop = in_turns(
                rounds,
                lambda: through(plain, 5_000),
                lambda: through(near, 3_000),
                lambda: through(far, 3_000),
                lambda: uvloop.run(_bare_loop(server.url, 5_000)),
            )
            resident = memory_of(near.worker_pids()[0], "VmRSS")
            assert bare.poll() is None
        near_ms = added_latency(folder / "near-latency", one, CHEAP)
        far_ms = added_latency(folder / "far-latency", one | {"broker": {"urls": [server.url]}}, CHEAP)
    finally:
        server.kill()
    return [
        at_least("through a worker process / relay", socket / relayed, 0.4, f"{socket:.0f} and {relayed:.0f} msg/s"),
        at_least("through RabbitMQ / bare loop over it", rabbit / loop, 0.8, f"{rabbit:.0f} and {loop:.0f} msg/s"),
        at_most("idle latency added by a worker process, p50, ms", near_ms, 10, "100 messages"),
        at_most("idle latency added by RabbitMQ, p50, ms", far_ms, 30, "100 messages"),
        at_most("one worker process, MiB", resident, 80, "resident, after 1,000s of messages"),
    ]


# Steps that read all of a message, and conditions that do.
READING = """
[[step]]
use = "lists"
deny = ["header:Subject=*casino*", "/^x.*y@z$/", "*@*.spam.example"]
[[step]]
use = "tag"
tags = ["AMBIGUOUS"]
when = "is:ambiguous"
[[step]]
use = "attachment"
names = ["*.exe"]
action = "tag"
[[step]]
use = "sieve"
script = '''require "body"; if body :text :contains "casino" { discard; }'''
"""


def stalls(folder: Path) -> list[Result]:
    """Measure how long a message of 1 MB can keep the node from answering /livez."""
    with Sink() as sink, Node(folder / "stalls", f"127.0.0.1:{sink.port}", settings=QUIET) as node:
        node.add_pipeline("b@example.test", READING)
        worst = {"nothing": _longest(node, b"Subject: x\r\n\r\ny\r\n")}
        worst |= {name: _longest(node, message) for name, message in _hostile().items()}
        drained(node)
    name, longest = max(worst.items(), key=lambda one: one[1])
    detail = f"{name}; with a small message {worst['nothing']:.0f} ms"
    return [at_most("/livez while 1 MB is filtered, ms", longest, 50, detail)]


def _hostile() -> dict[str, bytes]:
    """Return messages of 1 MB that are as much work as their size allows."""
    plain = b"Subject: x\r\n"
    nested = b"".join(b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (n, n) for n in range(18_000))
    parts = b"--b\r\nContent-Disposition: attachment; filename=a.txt\r\n\r\nx\r\n" * 16_000
    return {
        "a body in one line": plain + b"\r\n" + b"x" * 1_000_000 + b"\r\n",
        "many header fields": b"X-A: b\r\n" * 115_000 + b"\r\nx\r\n",
        "one header field": b"Subject: " + b"=?utf-8?q?a?= " * 70_000 + b"\r\n\r\nx\r\n",
        "many addresses": b"From: " + b"a@b.example, " * 75_000 + b"\r\n\r\nx\r\n",
        "parentheses": b"From: " + b"(" * 500_000 + b"a@b.example" + b")" * 400_000 + b"\r\n\r\nx\r\n",
        "nested parts": plain + nested,
        "many parts": plain + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + parts + b"--b--\r\n",
        "base64": plain + b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QUJD" * 250_000 + b"\r\n",
    }


def _longest(node: Node, message: bytes) -> float:
    """Return the longest answer of /livez while a message is sent, filtered and delivered, in milliseconds."""
    sending = threading.Thread(target=_send, args=(node.port, message))
    sending.start()
    longest, until = 0.0, time.monotonic() + 3
    while time.monotonic() < until or sending.is_alive():
        began = time.perf_counter()
        with urlopen(f"http://127.0.0.1:{node.web}/livez", timeout=30) as answer:
            answer.read()
        longest = max(longest, time.perf_counter() - began)
        time.sleep(PAUSE)
    return longest * 1000


def _send(port: int, message: bytes) -> None:
    with smtplib.SMTP("127.0.0.1", port) as client, contextlib.suppress(smtplib.SMTPException):
        client.ehlo("bench.example")
        client.mail("a@example.org")
        client.rcpt("b@example.test")
        client.data(message)


@contextlib.contextmanager
def _bare_worker(url: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", _BARE, url, str(AT_ONCE), str(ANSWER)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def _bare_loop(url: str, messages: int) -> float:
    """Return requests and answers a second, with the same library, confirms and number under way as ours."""
    import aio_pika

    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=True)
    await channel.declare_queue("bare", durable=True)
    answers = await connection.channel(publisher_confirms=False)
    queue = await answers.declare_queue("", exclusive=True)
    waiting: dict[str, asyncio.Future[None]] = {}

    async def came(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        waiting.pop(message.message_id or "").set_result(None)

    await queue.consume(came, no_ack=True)
    numbers, body = itertools.count(), b"x" * TASK

    async def ask() -> None:
        while (number := next(numbers)) < messages:
            answered = waiting[str(number)] = asyncio.get_running_loop().create_future()
            request = aio_pika.Message(body, message_id=str(number), reply_to=queue.name)
            await channel.default_exchange.publish(request, routing_key="bare", mandatory=True)
            await answered

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    taken = messages / (time.perf_counter() - began)
    await connection.close()
    return taken
