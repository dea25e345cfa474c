"""Users, pipelines, kept lists and keys as a node knows them: read when it starts, then whatever was changed.

Other nodes may change the same database. So it is asked every LOOK seconds for the numbers of changes, which costs one
query, and what was changed is read. While the database is away everything stays as it was known; then, and once an
hour, all is read: another server may have taken its place, and nodes of older versions count nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from time import monotonic

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from sendswitch import logs
from sendswitch.accounts import access_keys
from sendswitch.accounts.directory import KnownUsers
from sendswitch.accounts.routes import Changes, read_users, renew_summaries, routes_of
from sendswitch.config.model import Config
from sendswitch.db import marks
from sendswitch.db.connect import in_thread
from sendswitch.processors.list_book import read_book
from sendswitch.processors.list_entries import KeptLists
from sendswitch.queue.settings import Current
from sendswitch.routing import Route, Routes

# Seconds between two looks at the numbers of changes, and after which everything is read again.
LOOK, WHOLE = 0.5, 3600.0
# Seconds that a request waits for a change that it made to hold here.
PATIENCE = 2.0

Keys = frozenset[tuple[int, str]]
"""The keys of workers that are valid: numbers, and addresses of their users."""


class DatabaseView:
    """The database as a node knows it. `on_routes` is called with new routes when they are in force."""

    def __init__(
        self,
        engine: Engine,
        config: Callable[[], Config],
        current: Current,
        on_routes: Callable[[Iterable[Route]], None],
    ) -> None:
        self._engine, self._config, self._current, self._on_routes = engine, config, current, on_routes
        self.directory = KnownUsers()
        self.lists = KeptLists(lambda: read_book(engine, config().routing.recipient_delimiter))
        self.lists_read = ""  # another text each time they were read
        self._users_read, self._lists_tried, self._keys_read = -1, -1, -1
        self._asked, self._whole = asyncio.Event(), False
        self._waiting: list[asyncio.Future[None]] = []
        self._all_read, self._failing, self._keys_again = 0.0, False, False

    async def open(self) -> None:
        """Read everything. Raises the errors of the database."""
        try:
            await in_thread(renew_summaries, self._engine)
        except SQLAlchemyError as error:  # another node may be doing it
            logs.failed("writing summaries of pipelines", error=error)
        numbers = await in_thread(marks.numbers, self._engine)
        await self._read_users(since=-1)
        self._keys_read = numbers[marks.KEYS]  # no worker is connected yet
        await self._read_lists(numbers[marks.LISTS])
        self._all_read = monotonic()

    def look(self, *, whole: bool = False) -> None:
        """Look for changes now; with `whole` read all users again, because the configuration was changed."""
        self._whole = self._whole or whole
        self._asked.set()

    async def catch_up(self) -> None:
        """Look for changes now. On return those that were made before hold here, unless the database cannot be read or
        takes longer than PATIENCE seconds.
        """
        looked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(looked)
        self.look()
        await asyncio.wait([looked], timeout=PATIENCE)

    async def follow(self, told: Callable[[], Awaitable[None]], keys: Callable[[Keys], None]) -> None:
        """Read what is changed, for ever. Call `told` after changes and when asked to look, `keys` with the keys that
        are left after some were removed.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            waiting, self._waiting = self._waiting, []
            try:
                if await self._look(keys) or asked:
                    await told()
                self._failing = False
            except Exception as error:
                if asked or not self._failing:  # once, not at each look
                    logs.failed("reading users, lists and keys", error=error)
                self._failing = self._whole = True
            for looked in waiting:
                looked.set_result(None)

    async def _look(self, keys: Callable[[Keys], None]) -> bool:
        """Read what was changed. Return whether anything was."""
        numbers = await in_thread(marks.numbers, self._engine)
        changed = whole = self._whole or monotonic() - self._all_read > WHOLE
        self._whole = False  # from here on another request is for the next look
        if whole or numbers[marks.KEYS] != self._keys_read or self._keys_again:
            keys(await in_thread(access_keys.valid_keys, self._engine, "work"))
            # At the next look once more: a worker may have been logging in with a key that was being removed.
            self._keys_again = whole or numbers[marks.KEYS] != self._keys_read
            self._keys_read = numbers[marks.KEYS]
        if whole or numbers[marks.USERS] != self._users_read:
            # Fewer changes than were seen: a backup was restored.
            await self._read_users(since=-1 if whole or numbers[marks.USERS] < self._users_read else self._users_read)
            logs.reloaded(users=len(self._current.settings.routes))
            changed = True
        if whole or numbers[marks.LISTS] != self._lists_tried:
            await self._read_lists(numbers[marks.LISTS])
            changed = True
        if whole:
            self._all_read = monotonic()
        return changed

    async def _read_users(self, *, since: int) -> None:
        """Read the users that were changed after the change of this number; -1 for all users."""
        routes, changes = await in_thread(self._changed, since)
        if since < 0:
            self.directory.swap(changes.there)
        else:
            self.directory.change(changes.there, changes.gone)
        self._current.use_routes(routes)
        self._on_routes(changes.routes.values())
        self._users_read = changes.number

    def _changed(self, since: int) -> tuple[Routes, Changes]:
        """Return the routes that hold now, and the users that were changed. Blocks."""
        config = self._config()
        changes = read_users(self._engine, config, since=since)
        if since < 0:
            return routes_of(changes, config), changes
        gone = set(changes.gone).union(changes.there).difference(changes.routes)
        return self._current.settings.routes.changed(changes.routes, gone), changes

    async def _read_lists(self, number: int) -> None:
        """Read the kept lists. An entry that nobody should have been able to add leaves the old lists in force, here
        and in the workers.
        """
        self._lists_tried = number
        try:
            await in_thread(self.lists.refresh)
        except ValueError as error:
            logs.failed("reading the lists", error=error)
        else:
            self.lists_read = secrets.token_hex(8)
