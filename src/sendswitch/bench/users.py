"""Many users: how long a node takes to start, its memory, and how soon a change of one user holds on every node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from smtplib import SMTP, SMTPException

from sqlalchemy import Engine, insert

from sendswitch.accounts import users
from sendswitch.bench.measure import QUIET, Result, at_most, memory_of
from sendswitch.bench.peers import Node, Sink
from sendswitch.bench.postgresql import POSTGRES, postgres
from sendswitch.db.connect import open_database
from sendswitch.db.tables import pipelines
from sendswitch.db.tables import users as users_table
from sendswitch.errors import Temporary

PIECE = 5_000
TEXT = '[[step]]\nuse = "lists"\ndeny = ["*@spam{n}.example"]\n[[step]]\nuse = "pass"\n'
DENY = '[[step]]\nuse = "deny"\n'


def many_users(folder: Path, count: int) -> list[Result]:
    """Measure two nodes with `count` users, each with a pipeline, in PostgreSQL. Raises Temporary without one."""
    if not POSTGRES.exists():
        raise Temporary("bench needs PostgreSQL; as root: apt-get install postgresql")
    with postgres(folder / "postgres") as url, Sink() as sink:
        engine = open_database(url)
        _fill(engine, count)
        settings = QUIET | {"database": {"url": url}}
        hop = f"127.0.0.1:{sink.port}"
        nodes = [Node(folder / name, hop, command="serve", mode="proxy", settings=settings) for name in ("one", "two")]
        first = _start(nodes[0])  # after an upgrade: the summaries of pipelines are made
        nodes[0].stop()
        with ExitStack() as stack:
            stack.callback(nodes[0].stop)
            second = _start(nodes[0])
            assert nodes[0].process is not None
            memory = memory_of(nodes[0].process.pid, "VmRSS")
            stack.enter_context(nodes[1])
            slowest = max(_changes(engine, nodes, count))
        engine.dispose()
    return [
        at_most(f"start with {count:,} users, s", second, 15, f"PostgreSQL; {memory:.0f} MiB resident"),
        at_most("the first start after an upgrade, s", first, 60, "reads every pipeline once"),
        at_most("a change of one of them holds on two nodes after, s", slowest, 1, "the slowest of five"),
    ]


def _fill(engine: Engine, count: int) -> None:
    """Write users with pipelines as an earlier version did: without summaries."""
    for begin in range(0, count, PIECE):
        numbers = range(begin, min(count, begin + PIECE))
        with engine.begin() as connection:
            addresses = [(n + 1, f"user{n}@example.test") for n in numbers]
            rows = [{"id": n, "address": address, "key": address, "created": 0.0} for n, address in addresses]
            connection.execute(insert(users_table), rows)
            stored = [{"user_id": n + 1, "version": 1, "text": TEXT.format(n=n), "created": 0.0} for n in numbers]
            connection.execute(insert(pipelines), stored)


def _start(node: Node) -> float:
    """Start a node; return the seconds until it takes mail."""
    began = time.perf_counter()
    node.start()
    return time.perf_counter() - began


def _changes(engine: Engine, nodes: list[Node], count: int) -> Iterator[float]:
    """Change one user after the other; yield the seconds until each node refuses the user's mail."""
    for n in range(5):
        address = f"user{(n + 1) * count // 6}@example.test"
        with ExitStack() as stack:
            lines = [stack.enter_context(_dialog(node)) for node in nodes]
            if any(_refused(line, address) for line in lines):
                raise Temporary(f"mail for {address} was refused before it had to be")
            began = time.perf_counter()
            users.set_pipeline(engine, address, DENY)
            while not all([_refused(line, address) for line in lines]):
                if time.perf_counter() - began > 30:
                    raise Temporary(f"the change of {address} was not seen within 30 s")
            yield time.perf_counter() - began


@contextmanager
def _dialog(node: Node) -> Iterator[SMTP]:
    with SMTP(node.host, node.port, timeout=30) as line:
        line.ehlo("bench.example")
        yield line


def _refused(line: SMTP, to: str) -> bool:
    """Send a message; return whether it was refused for good."""
    try:
        line.mail("a@example.org")
        line.rcpt(to)
        code, _ = line.data(b"Subject: x\r\n\r\nx\r\n")
    except SMTPException as error:
        raise Temporary(f"a message was not taken: {error}") from error
    return code >= 500
