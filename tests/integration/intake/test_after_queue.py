"""The intake after the queue, with a directory that is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sendswitch.accounts.directory import Directory, KnownUsers
from sendswitch.errors import Temporary
from sendswitch.intake.after_queue import FilterIntake, IntakeOptions
from sendswitch.reply import Reply
from sendswitch.smtp.protocol.server import MailCommand
from sendswitch.testing import FakeClock
from tests.switch import switch


class Elsewhere:
    """A directory that answers later: what another directory says, or that it cannot be asked."""

    def __init__(self, directory: Directory | None = None) -> None:
        self._directory = directory

    def lookup(self, key: str) -> asyncio.Future[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self._directory is None:
            future.set_exception(Temporary("the directory is away"))
        else:
            found = self._directory.lookup(key)
            assert isinstance(found, str)
            future.set_result(found)
        return future


USERS = KnownUsers(["joe@example.test", "joe+sales@example.test"])


@pytest.mark.parametrize("directory", [USERS, Elsewhere(USERS)], ids=["in memory", "elsewhere"])
@pytest.mark.parametrize(
    ("sender", "code"),
    [
        ("joe@example.test", 250),
        ("JOE@Example.Test", 250),
        ("joe+lists@example.test", 250),
        ("joe+sales@example.test", 553),
        ("ann@example.test", 553),
        ("", 250),
    ],
)
async def test_a_user_sends_from_own_addresses(
    tmp_path: Path, clock: FakeClock, directory: Directory, sender: str, code: int
) -> None:
    async def inside() -> Reply:
        async with switch(tmp_path, clock) as s:
            options = IntakeOptions("us.example", 1000, 50, 0, directory=directory)
            reply = FilterIntake(s.spool, s.queue, options, clock).mail(MailCommand(sender, 100, "joe@example.test"))
            return reply if isinstance(reply, Reply) else await reply

    assert (await inside()).code == code


async def test_a_directory_that_is_away_lets_nobody_send(tmp_path: Path, clock: FakeClock) -> None:
    async with switch(tmp_path, clock) as s:
        options = IntakeOptions("us.example", 1000, 50, 0, directory=Elsewhere())
        reply = FilterIntake(s.spool, s.queue, options, clock).mail(
            MailCommand("joe+lists@example.test", 100, "joe@example.test")
        )
        assert not isinstance(reply, Reply)
        with pytest.raises(Temporary):
            await reply
