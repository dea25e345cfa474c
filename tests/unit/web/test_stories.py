"""The pages of the demonstration: nothing of a message acts in them, and no other site reads them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine
from starlette.applications import Starlette

from sendswitch.db import journal
from sendswitch.db.connect import open_database
from sendswitch.journal.events import Event
from sendswitch.mail.ids import to_text
from sendswitch.web.stories import make_routes

MESSAGE = 1_700_000_000_000_001

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(f"sqlite:///{tmp_path / 'x.db'}")


async def fetch(engine: Engine, path: str, host: str = "127.0.0.1:60666") -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=make_routes(engine)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path, headers={"Host": host})

    found: httpx.Response = await ask()
    return found


def accepted(engine: Engine) -> None:
    """A message whose every text is hostile."""
    client = {"address": EVIL, "helo": EVIL}
    told = {"from": EVIL, "to": [EVIL], "subject": EVIL, "size": 1, "via": "filter", "client": client}
    journal.write(engine, [Event(1, MESSAGE, None, 1.7e9, "accepted", told)])


async def test_nothing_of_a_message_acts_in_a_page(engine: Engine) -> None:
    accepted(engine)
    for path in ("/", f"/messages/{to_text(MESSAGE)}"):
        page = await fetch(engine, path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "&lt;script&gt;" in page.text
        assert "<script" not in page.text
    assert f'href="/messages/{to_text(MESSAGE)}"' in (await fetch(engine, "/")).text


@pytest.mark.parametrize(
    "path", ["/messages/0000000000000", "/messages/nonsense", f"/messages/{EVIL.replace('/', '')}"]
)
async def test_a_message_that_is_not_there(engine: Engine, path: str) -> None:
    page = await fetch(engine, path)
    assert page.status_code == 404
    assert "<script" not in page.text


async def test_a_journal_without_mail_says_what_to_do(engine: Engine) -> None:
    assert "No message has come yet" in (await fetch(engine, "/")).text


LOOPBACK = ("localhost:60666", "[::1]:60666", "127.0.0.1")
OTHERS = ("rebound.example", "re_bound.example", "127.0.0.1.example", "[127.0.0.1", "a@localhost", "")


@pytest.mark.parametrize("host", [*LOOPBACK, *OTHERS])
async def test_only_a_loopback_name_opens_the_pages(engine: Engine, host: str) -> None:
    """A name of another site may lead to this machine, also one with characters that no host should have."""
    accepted(engine)
    for path in ("/", f"/messages/{to_text(MESSAGE)}"):
        page = await fetch(engine, path, host)
        assert page.status_code == (200 if host in LOOPBACK else 421)
        assert ("script" in page.text) == (host in LOOPBACK)
