"""Group commit: one thread writes whatever waits in one transaction, with one fsync, then answers all of it.

Theory of operation. Callers on the event loop submit operations and await a future. The thread takes all that
have gathered, runs them between BEGIN IMMEDIATE and COMMIT (WAL, synchronous=FULL: SQLite fsyncs the log before
COMMIT returns), and hands every result back with one call into the loop. While one group is in its fsync the
next one gathers, so the rate grows with the load instead of with the disk's fsync rate.

Rules:
1. A future resolves after the commit has returned, never before.
2. A group that fails as a whole (disk full, I/O error) fails every operation in it with SpoolUnavailable.
3. A group that fails because of one operation is run again one by one, so that only the guilty one fails.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sendswitch import logs, metrics
from sendswitch.errors import SendSwitchError, SpoolUnavailable, in_words
from sendswitch.spool.connection import MOST_ROWS, transaction, write_rows
from sendswitch.spool.records import Record

# More operations than this in one transaction would only make the first wait longer.
MAX_GROUP = 500

Call = Callable[[sqlite3.Connection], Any]
"""A function of the connection, run inside the group's transaction; what it raises fails it alone."""


class _Operation:
    __slots__ = ("call", "error", "future", "result", "rows")

    def __init__(self, rows: Sequence[Record], call: Call | None, future: asyncio.Future[Any]) -> None:
        self.rows, self.call, self.future = rows, call, future
        self.result: Any = None
        self.error: Exception | None = None


class Writer:
    """The one thread that writes. Start it from the event loop it answers to.

    Operations gather on the loop while the thread works, and go over to it as one group: one wake-up each way for
    a group, however many are in it.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._gathered: list[_Operation] = []
        self._busy = self._closing = False
        self._handed_over = 0.0
        self._queue: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._idle = asyncio.Event()
        self._idle.set()
        self.written = asyncio.Event()
        self.groups = 0  # committed or failed
        # Not `_thread`: compiled, that would be a word of C.
        self._writing = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self.failure: Exception | None = None
        self._writing.start()

    def submit(self, rows: Sequence[Record], call: Call | None = None) -> asyncio.Future[Any]:
        """Write durably. The future has the call's result; it fails with SpoolUnavailable or the call's error."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closing:
            future.set_exception(SpoolUnavailable("the spool is being closed"))
            return future
        self._gather(_Operation(rows, call, future))
        return future

    async def close(self) -> None:
        """Write the pending calls, then end the thread. Later calls fail."""
        self._closing = True
        await self._idle.wait()
        self._queue.put(None)
        await asyncio.to_thread(self._writing.join)
        self._connection.close()

    def busy_for(self) -> float:
        """Return seconds since the thread was given the group it has; 0 when it has none."""
        return time.monotonic() - self._handed_over if self._busy else 0.0

    def _gather(self, operation: _Operation) -> None:
        self._gathered.append(operation)
        if not self._busy:
            self._busy = True
            self._idle.clear()
            self._hand_over()

    def _hand_over(self) -> None:
        group, self._gathered = self._gathered[:MAX_GROUP], self._gathered[MAX_GROUP:]
        self._handed_over = time.monotonic()
        self._queue.put(group)

    # In the thread

    def _run(self) -> None:
        while (group := self._queue.get()) is not None:
            self._commit(group)
            self._loop.call_soon_threadsafe(self._answer, group)

    def _commit(self, group: list[_Operation]) -> None:
        began = time.perf_counter()
        try:
            self._transaction(group)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError) as error:
            self._one_by_one(group, error)
            return
        except sqlite3.Error as error:
            self._fail(group, error)
        except Exception as error:
            self._one_by_one(group, error)
            return
        else:
            if self.failure is not None:
                self.failure = None
                logs.spool_recovered()
        metrics.SPOOL_COMMIT.observe(time.perf_counter() - began)
        metrics.SPOOL_GROUP.observe(len(group))

    def _one_by_one(self, group: list[_Operation], error: Exception) -> None:
        """Find out which operation is at fault (rule 3)."""
        if len(group) == 1:
            group[0].error = error
            return
        for operation in group:
            self._commit([operation])

    def _transaction(self, group: list[_Operation]) -> None:
        """Write all of the group or nothing of it, durably.

        A group that fits is one statement, which is its own transaction: each way back to the interpreter lock can
        cost a switch interval (5 ms) while the event loop is busy, and with BEGIN, a step a row and COMMIT they were
        the largest part of a commit.
        """
        connection = self._connection
        rows = [row for operation in group for row in operation.rows]
        calls = [operation for operation in group if operation.call is not None]
        if len(rows) <= MOST_ROWS and not calls:
            write_rows(connection, rows)
            return
        with transaction(connection):
            write_rows(connection, rows)
            for operation in calls:
                self._run_call(operation)

    def _run_call(self, operation: _Operation) -> None:
        assert operation.call is not None
        self._connection.execute("SAVEPOINT one")
        try:
            operation.result = operation.call(self._connection)
        except SendSwitchError as error:
            operation.error = error
            self._connection.execute("ROLLBACK TO one")
        self._connection.execute("RELEASE one")

    def _fail(self, group: list[_Operation], error: sqlite3.Error) -> None:
        if self.failure is None:
            logs.spool_failed(error=error)
        self.failure = error
        metrics.SPOOL_FAILURES.inc()
        for operation in group:
            failed = SpoolUnavailable(f"the spool cannot be written: {in_words(error)}")
            failed.__cause__ = error
            operation.error = failed

    # In the loop

    def _answer(self, group: list[_Operation]) -> None:
        if self._gathered:
            self._hand_over()
        else:
            self._busy = False
            self._idle.set()
        self.written.set()
        self.groups += 1
        for operation in group:
            future = operation.future
            if future.done():
                continue
            if operation.error is not None:
                future.set_exception(operation.error)
            else:
                future.set_result(operation.result)
