"""The measurements of processors: cost of scanners, memory of many pipelines, time of look-ups in lists."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import uvloop

from sendswitch.bench.measure import CONNECTIONS, QUIET, Result, at_most, in_turns, memory_of, through
from sendswitch.bench.peers import Node, Sink, public_folder
from sendswitch.bench.scanners import clamd, spamd
from sendswitch.errors import Temporary
from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.pipeline.chain import build
from sendswitch.processors.clamav import Clamd
from sendswitch.processors.list_entries import Entries, Entry
from sendswitch.processors.registry import check
from sendswitch.processors.services.connections import Closable
from sendswitch.processors.spamassassin import Spamd

Client = TypeVar("Client", bound=Closable)

# Scanned at once, directly and through the pipeline: as many as the machine has cores to scan with.
AT_ONCE = 2
# Text of ordinary mail, so that a scanner has something to do.
TEXT = b"Dear customer, please find the figures of the last quarter below, and call us when you have questions.\r\n"


def _message(size: int) -> bytes:
    head = b"From: a@example.org\r\nTo: joe@example.test\r\nSubject: figures\r\nMessage-ID: <1@example.org>\r\n\r\n"
    return head + TEXT * (size // len(TEXT))


def scanners(folder: Path, rounds: int) -> list[Result]:
    """Measure spamd and clamd asked directly, and through a pipeline, in one run."""
    missing = [name for name in ("spamd", "clamd") if shutil.which(name) is None]
    if missing:
        raise Temporary(f"{' and '.join(missing)} missing; as root: apt-get install spamd clamav-daemon")
    with public_folder("scanners") as place:
        with spamd(place / "spamd") as (_, port):
            address = f"127.0.0.1:{port}"
            mail = Mail(InMemory(_message(4000)))
            spam = _scanner(
                folder,
                "spamassassin",
                address,
                lambda: Spamd(address),
                lambda spamd: spamd.scan(mail, "b@example.test"),
                rounds,
                100,
            )
        with clamd(place / "clamd", signatures=20_000) as (path, _):
            unix = f"unix:{path}"
            large = InMemory(_message(200_000))
            virus = _scanner(
                folder, "clamav", unix, lambda: Clamd(unix), lambda clamd: clamd.scan(large), rounds, 400, size=200_000
            )
    return [spam, virus]


def _scanner(
    folder: Path,
    name: str,
    address: str,
    make: Callable[[], Client],
    ask: Callable[[Client], Awaitable[object]],
    rounds: int,
    messages: int,
    size: int = 4000,
) -> Result:
    """Return the time that a scanner adds in a pipeline, and the time it takes alone."""
    pipeline = f'[[step]]\nuse = "{name}"\naddress = "{address}"\nconnections = {AT_ONCE}\nlimit = "60s"\n'
    place = folder / name
    place.mkdir()
    file = place / "message.eml"
    file.write_bytes(_message(size).replace(b"\r\n", b"\n"))
    settings = QUIET | CONNECTIONS | {"pipelines": {"deadline": "10m"}}
    with Sink() as sink, Node(place, f"127.0.0.1:{sink.port}", settings=settings) as node:
        node.add_pipeline("@example.test", pipeline)
        alone, piped, plain = in_turns(
            rounds,
            lambda: messages / uvloop.run(_directly(make, ask, messages)),
            lambda: through(node, messages, file=file),
            lambda: through(node, messages, file=file, to="b@elsewhere.test"),
        )
    # What the step adds to the way through the node, as a share of what the scanner takes when it is asked directly.
    added = (1 / piped - 1 / plain) * alone
    detail = f"{piped:.0f} msg/s, without it {plain:.0f}, the scanner alone {alone:.0f}, of {size // 1000} kB"
    return at_most(f"time that {name} adds / that it takes alone", added, 1.10, detail)


async def _directly(make: Callable[[], Client], ask: Callable[[Client], Awaitable[object]], messages: int) -> float:
    client = make()

    async def one_after_another(number: int) -> None:
        for _ in range(number):
            await ask(client)

    began = time.perf_counter()
    await asyncio.gather(*(one_after_another(messages // AT_ONCE) for _ in range(AT_ONCE)))
    seconds = time.perf_counter() - began
    await client.aclose()
    return seconds


FIVE = """
[[step]]
use = "lists"
allow = ["friend{n}@example.net", "*@*.example.net"]
deny = ["spam{n}.example", "192.0.2.0/24"]
[[step]]
use = "attachment"
names = ["*.exe", "*.scr"]
[[step]]
use = "spamassassin"
quarantine = 8
when = "size < 500kB and not tag:FRIEND"
[[step]]
use = "clamav"
[[step]]
use = "headers"
set = {{ X-Envelope-From = "{{sender}}" }}
"""


def pipelines(number: int) -> list[Result]:
    """Return the memory of so many pipelines of five processors, ready to run."""
    build(check(FIVE.format(n=0), "p"), 10.0)  # what is loaded once is not theirs
    gc.collect()
    before = memory_of(os.getpid(), "VmRSS")
    held = [build(check(FIVE.format(n=n), "p"), 10.0) for n in range(number)]
    gc.collect()
    used = memory_of(os.getpid(), "VmRSS") - before
    return [at_most(f"{len(held)} pipelines of 5 processors, MiB", used, 200, f"{used * 1024 / number:.0f} KiB each")]


def looked_up(number: int) -> list[Result]:
    """Return how long it takes to find that a sender is on none of so many entries."""
    texts: Sequence[str] = [
        *(f"user{n}@host{n}.example" for n in range(number // 2)),
        *(f"domain{n}.example" for n in range(number * 3 // 10)),
        *(f".sub{n}.example" for n in range(number // 10)),
        *(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(number * 9 // 100)),
        *(f"*news{n}@*.host{n}.example" for n in range(number // 100)),
    ]
    entries = Entries(map(Entry, texts))
    asked = [f"joe{n}@mail.elsewhere{n}.example.org" for n in range(1000)]

    def once() -> float:
        began = time.perf_counter()
        for sender in asked:
            entries.sender(sender, 0.0)
            entries.client("192.0.2.7", 0.0)
        return (time.perf_counter() - began) / len(asked)

    seconds = statistics.median(once() for _ in range(5))
    return [at_most(f"a look-up among {len(texts)} entries, µs", seconds * 1e6, 20, "sender and client, none matches")]
