"""The limits to what workers may ask of a node over RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from sendswitch.broker import frames
from sendswitch.broker.calls import Call
from sendswitch.broker.frames import BadFrame
from sendswitch.broker.rabbitmq.served_calls import CALLS, OWN_PERIOD, REPLIES, ServedCalls
from sendswitch.broker.rabbitmq.topology import SITE
from sendswitch.broker.worker_server import OWN_CALLS
from sendswitch.mail.content import Content
from sendswitch.mail.task import Task

ANN = "ann@example.test"
QUESTION = frames.decode(frames.encode("call", id=1, name="ask", arguments={}))


def no_task(token: str, account: str) -> Task:
    raise AssertionError(token)


async def no_content(task: Task) -> Content:
    raise AssertionError(task)


def served(ask: Call, replies: list[bytes]) -> ServedCalls:
    async def reply(body: bytes, reply_to: str) -> None:
        assert reply_to == f"{REPLIES}1"
        replies.append(body)

    return ServedCalls(lambda owner: {"ask": ask}, lambda owner: {}, no_task, no_content, reply)


@pytest.mark.parametrize(("account", "most"), [(ANN, OWN_CALLS), (SITE, CALLS)])
async def test_a_call_beyond_the_limit_is_refused_and_one_after_another_is_not(account: str, most: int) -> None:
    may, replies = asyncio.Event(), list[bytes]()

    async def ask(arguments: Mapping[str, Any]) -> str:
        await may.wait()
        return "yes"

    calls = served(ask, replies)
    work = [asyncio.create_task(calls.call(QUESTION, account, f"{REPLIES}1")) for _ in range(most)]
    with pytest.raises(BadFrame, match=f"more than {most} calls"):
        await calls.call(QUESTION, account, f"{REPLIES}1")
    may.set()
    await asyncio.gather(*work)
    await calls.call(QUESTION, account, f"{REPLIES}1")
    assert len(replies) == most + 1


async def test_what_one_user_is_sent_in_one_period_is_limited() -> None:
    replies: list[bytes] = []

    async def ask(arguments: Mapping[str, Any]) -> str:
        return "y" * (OWN_PERIOD // 4)

    calls = served(ask, replies)
    for _ in range(4):
        await calls.call(QUESTION, ANN, f"{REPLIES}1")
    fifth = asyncio.create_task(calls.call(QUESTION, ANN, f"{REPLIES}1"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(replies) == 4
    # Others do not wait for them, and the site's workers have no such limit.
    await calls.call(QUESTION, "bob@example.test", f"{REPLIES}1")
    for _ in range(5):
        await calls.call(QUESTION, SITE, f"{REPLIES}1")
    assert len(replies) == 10
    calls.next_period()
    await fifth
    assert len(replies) == 11
