"""Webhooks that decide, against a real receiver over HTTPS that verifies with the official library."""

from __future__ import annotations

import asyncio
import gc
import ssl
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import orjson
import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from sendswitch.errors import InvalidConfiguration, Refused, Temporary
from sendswitch.mail.content import InMemory
from sendswitch.mail.ids import first_at, to_text
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, PipelineResult, Verdict
from sendswitch.pipeline.chain import BoundStep, Chain
from sendswitch.processors import registry, webhook
from sendswitch.processors.base import Context, Services
from sendswitch.processors.services import http
from sendswitch.processors.webhook import Webhook, WebhookOptions
from sendswitch.testing import context, mail, message, opinion
from tests.receiver import Receiver, receiver
from tests.verdicts import verdict_of

SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
OTHER = "whsec_" + "b3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3Ro"
ASKED = replace(context(now=1_700_000_000.0), message=to_text(first_at(1_700_000_000.0)))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSE", 0.02)


@pytest.fixture
def secure(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver whose certificate this machine trusts."""
    trusted = ssl.create_default_context(cafile=certificate[0])
    monkeypatch.setattr(http, "trusted", lambda: trusted)
    with receiver(certificate) as kept:
        yield kept


@pytest.fixture
def plain() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


def made(url: str, allow: tuple[str, ...] = ("127.0.0.1",), **options: Any) -> Webhook:
    processor = Webhook(WebhookOptions(url=url, **{"secret": SECRET} | options))
    processor.setup(Services(allow=allow))
    return processor


async def said(processor: Webhook, mail: Mail, asked: Context = ASKED) -> Verdict | None:
    try:
        async with asyncio.timeout(10):
            return await opinion(processor, mail, asked)
    finally:
        await processor.close()


async def answered(hook: Webhook, limit: float) -> PipelineResult:
    """What a pipeline of this step alone says."""
    chain = Chain([BoundStep("webhook", hook, "hold", limit, service=hook)])
    try:
        return await chain.run(mail(), ASKED)
    finally:
        await chain.close()


async def test_a_signed_request_over_https_and_its_verdict(secure: Receiver) -> None:
    secure.answers = [(200, b'{"action": "quarantine", "reason": "odd", "tags": ["ODD"]}', {})]
    processor = made(f"https://127.0.0.1:{secure.port}/hook?x=1", previous_secret=OTHER)
    verdict = await said(processor, mail("hello\r\n", Subject="Grüße"))
    assert verdict == Verdict(Action.QUARANTINE, tags=("ODD",), reason="odd")
    (request,) = secure.requests
    assert request.path == "/hook?x=1"
    for secret in (SECRET, OTHER):
        told = Verifier(secret).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Verifier("whsec_" + "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jv").verify(request.body, request.headers)
    assert (told["type"], told["timestamp"]) == ("message.decide", "2023-11-14T22:13:20+00:00")
    assert (told["data"]["subject"], told["data"]["id"]) == ("Grüße", ASKED.message)
    assert "text" not in told["data"]
    assert request.headers["Host"] == f"127.0.0.1:{secure.port}"
    assert request.headers["traceparent"].startswith("00-")
    assert request.headers["webhook-attempt"] == "1"


# uvloop drops a transport whose handshake failed without closing it first, and says so when it is collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_certificate_nobody_trusts_is_no_receiver(certificate: tuple[Path, Path]) -> None:
    with receiver(certificate) as kept:
        verdict = verdict_of(await answered(made(f"https://127.0.0.1:{kept.port}/"), limit=0.5))
        assert verdict.action is Action.PENDING
        assert "at attempt " in verdict.trace[0].saw
        assert "certificate verify failed" in verdict.trace[0].saw
        gc.collect()
        assert kept.requests == []


@pytest.mark.parametrize(
    ("content", "format_", "expected"),
    [("full", "json", "hello"), ("thin", "json", None), ("full", "form", "hello"), ("thin", "form", None)],
)
async def test_what_is_sent(plain: Receiver, content: str, format_: str, expected: str | None) -> None:
    await said(made(f"http://127.0.0.1:{plain.port}", content=content, format=format_), mail("hello"))
    (request,) = plain.requests
    if format_ == "json":
        told = orjson.loads(request.body)["data"]
    else:
        told = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        assert orjson.loads(told["envelope"])["from"] == "sender@example.org"
    assert told.get("text") == expected
    assert told["subject"] == "test"


async def test_the_whole_message_byte_for_byte(plain: Receiver) -> None:
    raw = message("\xff\x00\r\n") + b"\xff\xfe\x00"
    await said(made(f"http://127.0.0.1:{plain.port}", content="raw"), Mail(InMemory(raw)))
    assert b64decode(orjson.loads(plain.requests[0].body)["data"]["raw"]) == raw


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", None),
        (b" \n", None),
        (b"{}", None),
        (b'{"action": "pass"}', Verdict(Action.PASS)),
        (b'{"tags": ["NEWS"]}', Verdict(tags=("NEWS",))),
        (b'{"action": "deny", "reply": "554 5.7.1 No"}', Verdict.deny(reply="554 5.7.1 No")),
        (
            b'{"action": "deny", "reply": {"code": 554, "enhanced": "5.7.1", "text": "No"}}',
            Verdict.deny(reply="554 5.7.1 No"),
        ),
        (b'{"action": "forward", "forward": ["a@b.example"]}', Verdict.forwarded("a@b.example")),
        (b'{"action": "discard", "reason": "x"}', Verdict.quarantine("x")),
    ],
)
async def test_answers(plain: Receiver, body: bytes, expected: Verdict | None) -> None:
    plain.answers = [(200, body, {})]
    assert await said(made(f"http://127.0.0.1:{plain.port}"), mail()) == expected


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (400, b"wrong", "answered 400: wrong"),
        (410, b"", "answered 410"),
        (302, b"", "answered 302"),
        (200, b"<html>", "with what is no verdict"),
        (200, b"[1]", "with what is no verdict"),
        (200, b'{"acton": "pass"}', "a verdict has no field 'acton'"),
        (200, b'{"action": "deny", "reply": {}}', "with what is no verdict"),
        (200, b"x" * 300_000, "answered with more than 262144 bytes"),
    ],
)
async def test_answers_that_are_none(plain: Receiver, status: int, body: bytes, problem: str) -> None:
    plain.answers = [(status, body, {"Location": f"http://127.0.0.1:{plain.port}/elsewhere"} if status == 302 else {})]
    with pytest.raises((ValueError, Temporary), match=problem):
        await said(made(f"http://127.0.0.1:{plain.port}/?token=secret"), mail())
    assert len(plain.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_who_cannot_answer_now_is_asked_again(plain: Receiver, status: int) -> None:
    plain.answers = [(status, b"", {"Retry-After": "0"}), (status, b"", {}), (200, b'{"tags": ["LATE"]}', {})]
    assert await said(made(f"http://127.0.0.1:{plain.port}"), mail()) == Verdict(tags=("LATE",))
    assert [request.headers["webhook-attempt"] for request in plain.requests] == ["1", "2", "3"]
    assert len({request.headers["webhook-id"] for request in plain.requests}) == 1


@pytest.mark.parametrize("after", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
async def test_a_receiver_that_asks_for_time_gets_it(plain: Receiver, after: str) -> None:
    plain.answers = [(503, b"", {"Retry-After": after})]
    assert (await answered(made(f"http://127.0.0.1:{plain.port}"), limit=0.3)).trace[0].outcome == "timeout"
    assert len(plain.requests) == 1


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{port}", "http://localhost:{port}", "http://[::ffff:127.0.0.1]:{port}", "http://127.1:{port}"],
)
async def test_nobody_is_asked_who_is_not_public(plain: Receiver, url: str) -> None:
    with pytest.raises((Refused, OSError), match=r"is no public address|has no address"):
        await said(made(url.format(port=plain.port), allow=()), mail())
    assert plain.requests == []


async def test_no_cookie_is_kept(plain: Receiver) -> None:
    plain.answers = [(200, b"", {"Set-Cookie": "a=b; Path=/"})]

    async def twice() -> None:
        hook = made(f"http://127.0.0.1:{plain.port}/x/")
        for _ in range(2):
            await opinion(hook, mail(), ASKED)
        await hook.close()

    await twice()
    assert [(request.path, "Cookie" in request.headers) for request in plain.requests] == [("/x/", False)] * 2


async def test_a_host_is_asked_by_its_name(plain: Receiver) -> None:
    await said(made(f"http://localhost:{plain.port}/", allow=("localhost",)), mail())
    assert plain.requests[0].headers["Host"] == f"localhost:{plain.port}"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("secret = ''", "secret must be given"),
        ("secret = 'whsec_c2VjcmV0'", "24 to 64 bytes"),
        ("secret = 'c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0'", "24 to 64 bytes"),
        ("secret = 'whsec_c2VjcmV0!'", "24 to 64 bytes"),
        ("secret = {file = '/nowhere'}", "cannot be read"),
        (f"secret = '{SECRET}'\nurl = 'https://user:c2VjcmV0@host.example/'", "password in it"),
    ],
)
def test_options_that_are_refused_show_no_secret(options: str, problem: str) -> None:
    url = "" if "url" in options else "url = 'https://host.example/'\n"
    with pytest.raises(InvalidConfiguration, match=problem) as caught:
        registry.check(f"[[step]]\nuse = 'webhook'\n{url}{options}\n", "p")
    assert "c2VjcmV0" not in str(caught.value)


async def test_a_replay_asks_nobody(plain: Receiver) -> None:
    plain.answers = [(200, b'{"action": "deny", "reason": "then"}', {})]
    hook = made(f"http://127.0.0.1:{plain.port}")
    chain = Chain([BoundStep("webhook", hook, "hold", 5, service=hook)])

    async def inside() -> tuple[Any, Any]:
        first = await chain.run(mail(), ASKED)
        again = await chain.run(mail(), ASKED, first.trace)
        await chain.close()
        return first, again

    first, again = await inside()
    assert (again.action, again.reason) == (first.action, "then")
    assert len(plain.requests) == 1
