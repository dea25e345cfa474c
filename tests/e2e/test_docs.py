"""The tutorial and every how-to page, done from top to bottom as their readers would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from sendswitch.bench.peers import Postfix, free_port, public_folder
from sendswitch.bench.rabbitmq import RabbitMQ
from sendswitch.bench.scanners import clamd, rspamd, spamd
from sendswitch.processors import registry
from tests.conftest import need
from tests.e2e.amavis import BehindAmavis, amavis
from tests.e2e.pages import Reader, compare, replaced

DOCS = Path(__file__).parents[2] / "docs"
START = DOCS / "howto" / "README.md"
PROCESSORS = DOCS / "processors"
PAGES = sorted(page for page in (DOCS / "howto").glob("*.md") if page != START)
# The pages that need an amavis, a RabbitMQ, and a Postfix of their own.
AMAVIS = "attach-to-amavis.md"
RABBIT = "run-your-pipeline-over-rabbitmq.md"
BEHIND = ("put-it-behind-postfix.md", "refuse-before-the-queue.md")


@pytest.fixture
def folder() -> Iterator[Path]:
    """The reader's home; Postfix must be able to look into it."""
    with public_folder("reader") as folder:
        yield folder / "you"


def test_the_tutorial(folder: Path) -> None:
    with Reader(folder, {"/home/you": str(folder)}) as reader:
        reader.follow((DOCS / "tutorial.md").read_text())


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in (*BEHIND, AMAVIS, RABBIT)], ids=lambda page: page.stem
)
def test_how_to(page: Path, folder: Path) -> None:
    need("swaks", "swaks")
    with Reader(folder, {"/home/you": str(folder)}) as reader:
        reader.follow(START.read_text())
        reader.follow(page.read_text())


def _clamd(folder: Path) -> AbstractContextManager[tuple[str, int]]:
    need("clamd", "clamav-daemon")
    return clamd(folder)


def _spamd(folder: Path) -> AbstractContextManager[tuple[str, int]]:
    need("spamd", "spamd")
    return spamd(folder)


def _rspamd(folder: Path) -> AbstractContextManager[tuple[str, int]]:
    need("rspamd", "rspamd")
    return rspamd(folder)


# The servers that pages are about, by the port they stand at there.
SERVERS = {":3310": _clamd, ":783": _spamd, ":11333": _rspamd}


@pytest.mark.parametrize("name", registry.names())
def test_the_page_of_a_processor(name: str, folder: Path) -> None:
    page = (PROCESSORS / f"{name}.md").read_text()
    with ExitStack() as stack:
        known = {"/home/you": str(folder), ":8800": f":{free_port()}"}
        for place, start in SERVERS.items():
            if place in page:
                _, port = stack.enter_context(start(folder.parent / place[1:]))
                known[place] = f":{port}"
        env = {"SENDSWITCH_NODE__DATA": str(folder / "data")}  # a site of its own
        stack.enter_context(Reader(folder, known, env)).follow(page)


def test_the_page_about_ones_own(folder: Path) -> None:
    with Reader(folder, {"/home/you": str(folder)}, {"PYTHONDONTWRITEBYTECODE": "1"}) as reader:
        reader.follow((PROCESSORS / "write-your-own.md").read_text())


@pytest.mark.parametrize("page", BEHIND)
def test_how_to_behind_postfix(page: str, folder: Path, postfix_installed: None) -> None:
    need("swaks", "swaks")
    with Postfix(folder.parent / "postfix") as postfix, behind(folder, postfix) as reader:
        reader.follow(START.read_text())
        reader.follow((DOCS / "howto" / page).read_text())


def test_how_to_attach_to_amavis(folder: Path, postfix_installed: None) -> None:
    need("swaks", "swaks")
    back = free_port()
    with amavis(folder.parent / "amavis", back) as port, BehindAmavis(folder.parent / "postfix", port, back) as postfix:
        ports = {":10024": f":{port}", ":10025": f":{back}", ":10026": f":{free_port()}"}
        with behind(folder, postfix, ports) as reader:
            reader.follow(START.read_text())
            reader.follow((DOCS / "howto" / AMAVIS).read_text())


def test_how_to_run_a_pipeline_over_rabbitmq(folder: Path, managed_rabbit: RabbitMQ) -> None:
    need("swaks", "swaks")
    urls, management = f'["{managed_rabbit.url}"]', managed_rabbit.management
    env = {"SENDSWITCH_BROKER__URLS": urls, "SENDSWITCH_BROKER__MANAGEMENT": management}
    with Reader(folder, {"/home/you": str(folder)}, env) as reader:
        reader.follow(START.read_text())
        reader.follow((DOCS / "howto" / RABBIT).read_text())


def behind(folder: Path, postfix: Postfix, ports: Mapping[str, str] | None = None) -> Reader:
    """A reader whose Postfix is a private one, with these ports for those of the page."""
    smtp = f"127.0.0.1:{postfix.plain}"
    known = {"/home/you": str(folder), "smtp/inet": f"{smtp}/inet", "127.0.0.1:25": smtp} | dict(ports or {})
    return Reader(folder, known, {"MAIL_CONFIG": str(postfix.folder / "etc")})


@pytest.mark.parametrize(
    ("expected", "said", "problem"),
    [
        (["one", "two"], ["one", "", "two"], ""),
        (["one"], ["one", "two"], "nothing more expected"),
        (["one", "two"], ["one"], "nothing more"),
        (["one  two"], ["one two"], ""),
        (["one"], ["two"], "expected: one"),
        (["one", "…", "four"], ["one", "two", "three", "four"], ""),
        (["one", "…", "four"], ["one", "two"], "nothing more"),
        (["took 1.5 ms at 2026-01-01 00:00:00"], ["took 20 ms at 2026-11-21 10:11:12"], ""),
        (["took 1.5 ms"], ["took 1.5 s"], "expected"),
        (["a … c"], ["a b c"], ""),
        (["38fwqhqeqet00.0 38fwqhqeqet00"], ["38fxt8ybhj800.0 38fxt8ybhj800"], ""),
        (["38fwqhqeqet00.0 38fwqhqeqet00"], ["38fxt8ybhj800.0 38fxt8ybhj900"], "expected"),
        (["38fwqhqeqet00", "38fwqhqeqet00"], ["38fxt8ybhj800", "38fxt8ybhj900"], "expected"),
    ],
)
def test_a_page_that_is_wrong_is_noticed(expected: list[str], said: list[str], problem: str) -> None:
    found = compare(expected, said, {})
    assert problem in found
    assert bool(problem) == bool(found)


def test_ports_and_folders_are_replaced_at_once() -> None:
    known = {":25": ":25188", "smtp/inet": "127.0.0.1:25188/inet", "/home/you": "/tmp/x"}
    page = "to 127.0.0.1:25 of smtp/inet in /home/you, not 127.0.0.1:2525"
    here = "to 127.0.0.1:25188 of 127.0.0.1:25188/inet in /tmp/x, not 127.0.0.1:2525"
    assert replaced(page, known) == here
    assert replaced(here, {value: key for key, value in known.items()}) == page


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    page = "```console\n$ {}\n```\n"
    with Reader(tmp_path) as reader:
        reader.follow(page.format("true"))
        with pytest.raises(AssertionError, match="it ended with 1"):
            reader.follow(page.format("false"))
        # And one that shows an error and ends with 0 is as wrong.
        with pytest.raises(AssertionError, match="it ended with 0"):
            reader.follow(page.format("echo sendswitch: no\nsendswitch: no"))
