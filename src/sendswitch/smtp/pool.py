"""The connections to one next hop.

A message goes to an idle connection, or to a new one, or waits; a connection that is free takes the next that waits.
Idle connections are given back within seconds: the re-injection service of Postfix has few processes (maxproc), each
connection holds one, and an idle pool can starve the very mail it is kept for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from sendswitch import logs, metrics
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply, printable
from sendswitch.smtp.client import ClientOptions, Connection, Delivered, Job
from sendswitch.smtp.endpoint import Endpoint
from sendswitch.smtp.flush import Turn
from sendswitch.smtp.protocol.client import Failed, Outcome


class Pool:
    """Connections to one next hop, at most `size`, each given back after `idle` seconds without work."""

    def __init__(self, endpoint: Endpoint, options: ClientOptions, *, size: int, idle: float) -> None:
        self.endpoint, self._options, self._size, self._keep = endpoint, options, size, idle
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._idle: list[tuple[Connection, float]] = []
        self._waiting: deque[Job] = deque()
        self._returned: deque[Job] = deque()  # for new connections only
        self._timer: asyncio.TimerHandle | None = None
        self.turn = Turn()
        self._closed = False

    @property
    def open(self) -> int:
        """Return how many connections are open or being opened."""
        return len(self._connections)

    async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        """Do one transaction over some connection; wait while all are in use."""
        result: asyncio.Future[Delivered] = self._loop.create_future()
        job = Job(envelope, content, content.whole(), unanimous, result)
        self.submit(job)
        try:
            return await result
        except asyncio.CancelledError:
            if job.connection is not None:
                job.connection.cancel(job)
            raise

    async def check(self) -> Reply | None:
        """Connect and greet once. Return the failure, None when the next hop answers."""
        connection = Connection(self._options)
        failed = await connection.connect(self.endpoint)
        if failed is not None and connection.without_tls:
            connection = Connection(replace(self._options, tls="off"))
            failed = await connection.connect(self.endpoint)
        connection.quit()
        return failed.reply if failed else None

    def close(self) -> None:
        """Close idle connections now, and the others when their jobs end. Jobs that did not begin end without
        a reply.
        """
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._idle:
            self._idle.pop()[0].quit()
        for jobs in (self._waiting, self._returned):
            while (job := _next(jobs)) is not None:
                job.result.set_result(_not_begun(job))

    # What the connections call

    def submit(self, job: Job) -> None:
        """Start a job now, or when a connection is free. A job that is no longer wanted never starts."""
        if job.result.done():
            return
        if self._closed:
            job.result.set_result(_not_begun(job))
            return
        if job.returned:
            self._returned.append(job)  # its connection is going, which makes room for the new one
            self._open_more()
            return
        # The connection used last, so that those not needed grow old and go.
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                self._employ(connection, job)
                return
        self._waiting.append(job)
        self._open_more()

    def next_ahead(self) -> Job | None:
        """Return a job that can be sent ahead on a busy connection, when the next that waits is one."""
        job = _next(self._waiting)
        if job is not None and (job.data is None or job.unanimous):
            self._waiting.appendleft(job)
            return None
        return job

    def free(self, connection: Connection) -> None:
        """Give a free connection its next job."""
        self._employ(connection, self._job_for(connection))

    def gone(self, connection: Connection) -> None:
        """Forget a closed connection, and open another for waiting jobs."""
        self._connections.discard(connection)
        self._open_more()

    # Inside

    def _job_for(self, connection: Connection) -> Job | None:
        job = None if connection.used else _next(self._returned)
        return job or _next(self._waiting)

    def _employ(self, connection: Connection, job: Job | None) -> None:
        while job is not None:
            connection.start(job)
            if not connection.usable:
                return
            job = self._job_for(connection)
        if self._closed:
            connection.quit()
            return
        self._idle.append((connection, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(self._keep, self._expire)

    def _open_more(self) -> None:
        """Open a connection, when a job waits that none is being opened for and there is room."""
        wanted = len(self._waiting) + len(self._returned)
        if wanted > len(self._opening) and len(self._connections) < self._size:
            connection = Connection(self._options, self)
            self._connections.add(connection)
            task = self._loop.create_task(self._connect(connection))
            self._opening.add(task)
            task.add_done_callback(self._opened)

    async def _connect(self, connection: Connection) -> None:
        try:
            failed = await connection.connect(self.endpoint)
            if failed is not None and connection.without_tls:
                logs.tls_given_up(str(self.endpoint), str(failed.reply))
                self._connections.discard(connection)
                connection = Connection(replace(self._options, tls="off"), self)
                self._connections.add(connection)
                failed = await connection.connect(self.endpoint)
        except Exception as error:
            logs.failed(f"connecting to {self.endpoint}", error=error)
            connection.abort()
            failed = Failed(Reply(451, "4.4.1", printable(f"Cannot connect to {self.endpoint}: {error}")))
        if failed is not None:
            self._connections.discard(connection)
            metrics.NEXT_HOP_CONNECT_FAILURES.inc()
            if (job := self._job_for(connection)) is not None:
                job.result.set_result(Delivered((Outcome(failed.reply),) * len(job.envelope.recipients)))

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._open_more()

    def _expire(self) -> None:
        now = self._loop.time()
        self._timer = None
        while self._idle and self._idle[0][1] + self._keep <= now + 0.01:
            self._idle.pop(0)[0].quit()
        if self._idle:
            due = self._idle[0][1] + self._keep - now
            self._timer = self._loop.call_later(due, self._expire)


def _not_begun(job: Job) -> Delivered:
    return Delivered((Outcome(None),) * len(job.envelope.recipients))


def _next(jobs: deque[Job]) -> Job | None:
    """Return the next job that is still wanted."""
    while jobs:
        job = jobs.popleft()
        if not job.result.done():
            return job
    return None
