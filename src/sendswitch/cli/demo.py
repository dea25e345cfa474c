"""`demo`: a node with a worker, three pipelines and six messages, and the result for each message."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import smtplib
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from importlib import resources
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
import uvloop

from sendswitch import logs
from sendswitch.accounts import users
from sendswitch.bootstrap.node import Node
from sendswitch.cli.output import Session
from sendswitch.config.load import validate
from sendswitch.config.model import Config
from sendswitch.db.connect import open_database
from sendswitch.delivery.maildir import folder_name
from sendswitch.errors import AddressTaken, Temporary
from sendswitch.processors import registry
from sendswitch.spool import admin
from sendswitch.spool.states import TERMINAL, State

# Seconds for six messages; a slow machine needs two.
LIMIT = 30.0
# How often the start is tried again when a port was taken in the meantime.
TRIES = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """A message, and the states its deliveries must end in."""

    what: str
    sender: str
    recipient: str
    subject: str
    ends: tuple[State, ...]
    list_id: str = ""
    program: bool = False


SAMPLES = (
    Sample("no pipeline", "friend@example.org", "joe@example.test", "Lunch on Friday?", (State.DELIVERED,)),
    Sample("on Ann's allow list", "friend@example.org", "ann@example.test", "Holiday pictures", (State.DELIVERED,)),
    Sample("on Ann's deny list", "win@spam.example", "ann@example.test", "You have won", (State.BOUNCED,)),
    Sample(
        "Bob's program: newsletter",
        "news@example.org",
        "bob@example.test",
        "This week",
        (State.DELIVERED,),
        list_id="week.example.org",
    ),
    Sample(
        "Bob's program: attachment",
        "sales@example.org",
        "bob@example.test",
        "Your invoice",
        (State.QUARANTINED,),
        program=True,
    ),
    Sample(
        "Carol forwards to Dave",
        "friend@example.org",
        "carol@example.test",
        "Minutes",
        (State.FORWARDED, State.DELIVERED, State.DELIVERED),
    ),
)


def demo(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Exit after the table.")] = False,
    data: Annotated[Path | None, typer.Option("--data", help="Keep everything in this folder.")] = None,
) -> None:
    """Run a switch with sample pipelines and six messages.

    The result for each message is shown.
    """
    logs.setup("text", "error")
    with _folder(data) as folder:
        raise typer.Exit(uvloop.run(_run(context.obj, folder, once=once)))


@contextlib.contextmanager
def _folder(data: Path | None) -> Iterator[Path]:
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
        yield data.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="sendswitch-demo-") as name:
        yield Path(name)


def free_port(wanted: int) -> int:
    """Return `wanted` when it is free on the loopback, else the first free one above it."""
    for port in range(wanted, 65536):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Temporary(f"no free port from {wanted} on")


def _config(folder: Path) -> Config:
    """Return the configuration, which is left in the folder for other commands."""
    smtp, web = free_port(8025), free_port(60666)
    settings = {
        "node": {"data": str(folder / "data"), "host": "demo.example.test"},
        "listener": [{"bind": f"127.0.0.1:{smtp}"}],
        "next_hop": {"address": f"maildir:{folder / 'mail'}"},
        "web": {"bind": f"127.0.0.1:{web}"},
        "tags": {"subject": {"NEWS": "[News] "}},
    }
    (folder / "sendswitch.toml").write_text(tomli_w.dumps(settings))
    return validate(Config, settings, "demo", {})


def _set_up(config: Config, folder: Path) -> None:
    """Make users and pipelines, as `user add` and `pipeline set` would."""
    engine = open_database(config.database_url)
    source = resources.files("sendswitch.cli.demo_files")
    (folder / "bob.py").write_text(source.joinpath("bob.py").read_text())
    for name in ("ann", "bob", "carol"):
        text = source.joinpath(f"{name}.toml").read_text().replace("{folder}", str(folder))
        registry.check(text, f"{name}.toml")
        address = f"{name}@example.test"
        if address not in {user.address for user in users.list_users(engine)}:
            users.add_user(engine, address)
        users.set_pipeline(engine, address, text)
    engine.dispose()


async def start(folder: Path) -> Node:
    """Return a running node with the demonstration's users. Raises Temporary."""
    for left in reversed(range(TRIES)):
        config = _config(folder)
        _set_up(config, folder)
        node = Node(config, workers=True, stories=True)
        try:
            await node.start()
        except AddressTaken:
            if not left:
                raise
        else:
            return node
    raise AssertionError("one of the tries returns or raises")


async def _run(session: Session, folder: Path, *, once: bool) -> int:
    node = await start(folder)
    config = node.config
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        ids = await asyncio.to_thread(_send_all, node.listeners[0].port)
        found = await _outcome(config.node.data, ids, stop)
        good = _show(session, ids, found, folder)
        if not once and not stop.is_set():
            _explain(node, folder, session)
            await stop.wait()
    finally:
        await node.stop()
    return 0 if good else 1


def _send_all(port: int) -> list[str]:
    """Send the samples with a plain SMTP client. Return their ids."""
    ids = []
    with smtplib.SMTP("127.0.0.1", port, local_hostname="demo-client.example.org") as client:
        client.ehlo()
        for sample in SAMPLES:
            client.mail(sample.sender)
            client.rcpt(sample.recipient)
            _, answer = client.data(_message(sample).as_bytes())
            ids.append(answer.decode().rpartition(" ")[2])
    return ids


def _message(sample: Sample) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sample.sender, sample.recipient, sample.subject
    if sample.list_id:
        message["List-Id"] = sample.list_id
    message.set_content("A sample message.\n")
    if sample.program:
        message.add_attachment(b"MZ", maintype="application", subtype="octet-stream", filename="invoice.exe")
    return message


async def _outcome(data: Path, ids: list[str], stop: asyncio.Event) -> list[admin.Row]:
    """Return every delivery of the samples, once none is on its way any more or the time is up."""
    connection = admin.open_files(data)
    end = time.monotonic() + LIMIT
    settled = {*TERMINAL, State.QUARANTINED, State.HELD}
    while True:
        rows = [row for row in admin.rows(connection, tuple(State)) if row.id.partition(".")[0] in ids]
        if all(row.state in settled for row in rows) or time.monotonic() > end or stop.is_set():
            return rows
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.05)


def _show(session: Session, ids: list[str], found: list[admin.Row], folder: Path) -> bool:
    rows = []
    good = True
    for id_, sample in zip(ids, SAMPLES, strict=True):
        own = [row for row in found if row.id.partition(".")[0] == id_]
        right = sorted(row.state for row in own) == sorted(sample.ends)
        good = good and right
        for row in own:
            rows.append(
                {
                    "sample": sample.what,
                    "to": row.recipient,
                    "verdict": (row.action or "none") + ("".join(f" [{tag}]" for tag in row.tags)),
                    "state": row.state if right else f"{row.state}, expected {', '.join(sample.ends)}",
                    "reason": row.reason or "no pipeline: delivered",
                    "where": _where(row, folder),
                    "id": row.id,
                }
            )
    columns = ("sample", "to", "verdict", "state", "reason", "where")
    session.show(rows, columns, "nothing was sent")
    return good


def _where(row: admin.Row, folder: Path) -> str:
    match row.state:
        case State.DELIVERED:
            return f"mail/{folder_name(row.recipient)}/new"
        case State.QUARANTINED:
            return f"quarantine {row.id}"
        case State.BOUNCED:
            return f"report in mail/{folder_name(row.sender)}/new"
        case State.FORWARDED:
            return row.reply.removeprefix("250 ")
    return row.reply


def _explain(node: Node, folder: Path, session: Session) -> None:
    if session.json:
        return
    addresses = node.addresses()
    print()
    print(f"Mail:         {folder / 'mail'}")
    print(f"{'Look:':<14}{addresses.pop('web')}/ lists the messages; each links to its story")
    for name, address in addresses.items():
        print(f"{name + ':':<14}{address}")
    print(f"Edit:         {folder / 'bob.py'}; the next message to Bob is judged by what you wrote")
    print(f"Try:          swaks --server {addresses['smtp filter']} --to ann@example.test --from win@spam.example")
    print(f"Ask:          sendswitch message explain to:bob --config {folder / 'sendswitch.toml'}")
    print("Stop:         Ctrl-C", flush=True)  # a reader of a pipe wants it now, not at the end
