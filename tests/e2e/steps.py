"""What end-to-end tests do again and again: send, wait, ask the commands."""

from __future__ import annotations

import contextlib
import json
import smtplib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from sendswitch.bench.peers import Node

QUICK = {"next_hop": {"first_retry": "0.2s", "last_retry": "1s", "command_timeout": "2s", "content_timeout": "2s"}}


def send(
    port: int,
    *to: str,
    subject: str = "x",
    body: bytes = b"text\r\n",
    sender: str = "sender@example.org",
    headers: bytes = b"",
) -> bytes:
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.ehlo("client.example")
        client.mail(sender)
        for address in to or ("joe@example.test",):
            client.rcpt(address)
        code, text = client.data(f"Subject: {subject}\r\n".encode() + headers + b"\r\n" + body)
        if code != 250:
            raise smtplib.SMTPDataError(code, text)
        return text


def ready(node: Node) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.web}/readyz", timeout=10) as answer:
            status, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read()
    return status, {check["name"]: check["cause"] for check in json.loads(body)["checks"]}


def until(true: Callable[[], object], limit: float = 30.0, node: Node | None = None) -> None:
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, node.log.read_text()[-4000:] if node else "not in time"
        time.sleep(0.05)


def programmed(node: Node, address: str, extra: str = "") -> None:
    """Give a user a pipeline that a worker must run: a program that says nothing."""
    program = node.folder / "program.py"
    program.write_text("async def process(mail, context):\n    return None\n")
    node.add_pipeline(address, f"{extra}[[step]]\nuse = 'python'\nfile = '{program}'\n")


def queue(node: Node) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(node.run("queue", "list", "--json").stdout)
    return rows


def clean(node: Node) -> None:
    done = node.run("audit", check=False)
    assert done.returncode == 0, done.stdout
    log = node.log.read_text()
    assert "Traceback" not in log
    failed = [line for line in log.splitlines() if '"event":"failed"' in line]
    assert not failed, failed[:5]


def said(node: Node, *arguments: str, code: int = 0) -> Any:
    done = node.run(*arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def overloaded(node: Node) -> Iterator[None]:
    """A node that takes no mail, because it may have less memory than it needs; well again on leaving."""
    text = node.config.read_text()
    node.config.write_text(text.replace("[node]", '[node]\nmax_memory = "1MB"'))
    told = node.log.read_text().count('"event":"overload_over"')
    said(node, "reload")
    until(lambda: node.log.read_text().count('"event":"overloaded"') > told, node=node)
    yield
    node.config.write_text(text)
    said(node, "reload")
    until(lambda: node.log.read_text().count('"event":"overload_over"') > told, node=node)


class Stream:
    """Mail without end over one connection, to see whether anything disturbs it; `pause` seconds before each."""

    def __init__(self, port: int, pause: float = 0.0) -> None:
        self._port, self._pause, self.sent, self.trouble = port, pause, 0, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with smtplib.SMTP("127.0.0.1", self._port, timeout=20) as client:
                while not self._stop.wait(self._pause):
                    client.sendmail("a@example.org", ["joe@example.test"], b"Subject: x\r\n\r\ntext\r\n")
                    self.sent += 1
        except (OSError, smtplib.SMTPException) as error:
            self.trouble = repr(error)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self.trouble, self.trouble
