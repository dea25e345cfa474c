"""The spool: accept a message durably, change its deliveries, find what is due, recover at start.

What a caller may rely on: when `accept` returns, the message survives kill -9 and power loss (as far as the disk
keeps fsync's promise). `change` is durable when it returns. Nothing else is promised; in particular a delivery
whose next hop said 250 a moment before a crash, and whose `change` had not returned, is delivered again.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import orjson

from sendswitch import logs
from sendswitch.clock import Clock
from sendswitch.errors import SpoolUnavailable, caused_by, in_words
from sendswitch.journal.events import Event, EventKind
from sendswitch.mail.content import Content, InMemory, digest_of
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.mail.ids import Sequence as IdSequence
from sendswitch.mail.ids import first_at, to_text
from sendswitch.mail.verdict import Verdict
from sendswitch.spool import schema
from sendswitch.spool.body import LARGE, Body
from sendswitch.spool.connection import connect, scalar, write_rows
from sendswitch.spool.contents import STORED, Stored, open_content
from sendswitch.spool.records import (
    COLUMNS,
    EVENTS,
    Change,
    Delivery,
    Message,
    NewMessage,
    NewState,
    Record,
    delivery_from_row,
    dumps,
    event_from_row,
)
from sendswitch.spool.rules import SUSPENDED, AdminRule, active, in_force, let_go_since
from sendswitch.spool.schema import content_file
from sendswitch.spool.states import NEVER_OURS
from sendswitch.spool.writer import Call, Writer

# Seconds that a look at the free space counts.
FREE_FOR = 1.0


def _delivery_values(delivery: Delivery) -> list[Any]:
    recipient = delivery.recipient
    return [
        delivery.n,
        recipient.address,
        recipient.notify,
        recipient.orcpt,
        delivery.state,
        delivery.due,
        delivery.attempts,
        delivery.origin,
        _verdict_text(delivery.verdict),
        delivery.reply,
    ]


def insert_delivery(connection: sqlite3.Connection, delivery: Delivery, now: float) -> None:
    """Add a delivery of a message (a forward's target) inside the caller's transaction."""
    n, recipient, notify, orcpt, state, *rest = _delivery_values(delivery)
    row = (delivery.message.id, n, recipient, notify, orcpt, state, now, *rest)
    connection.execute(f"INSERT INTO delivery VALUES ({', '.join('?' * len(row))})", row)


def _verdict_text(verdict: Verdict | None) -> str | None:
    """Return a verdict as a delivery keeps it: without the trace, which the journal has."""
    return None if verdict is None else dumps(verdict.to_json(trace=False))


class Spool:
    """The spool of one node. Make it with `open_spool`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, clock: Clock, recording: str) -> None:
        self._folder, self._clock, self._recording = folder, clock, recording
        self._files = folder / "content"
        self._writer = Writer(connection)
        self._reader = connect(folder / "spool.db")
        self._reading = asyncio.Lock()
        self._free, self._free_at = 0, -FREE_FOR - 1.0
        self.version_before = schema.VERSION  # of an older program's spool that was upgraded
        # The spool's name never changes; the number is in the ids of its messages, no other node's spool has it.
        self.name = str(scalar(connection, "SELECT value FROM meta WHERE key = 'name'"))
        self.number = int(scalar(connection, "SELECT value FROM meta WHERE key = 'node'"))
        self.next_id = IdSequence(self.number, clock, scalar(connection, "SELECT max(id) FROM message") or 0)

    @property
    def written(self) -> asyncio.Event:
        """Return the event that every write sets. The reader of events waits for it and clears it."""
        return self._writer.written

    @property
    def groups(self) -> int:
        """Return how many group commits there were; while it rises there is mail on its way."""
        return self._writer.groups

    def writing_for(self) -> float:
        """Return seconds that the group commit under way has taken; 0 when there is none."""
        return self._writer.busy_for()

    @property
    def failure(self) -> Exception | None:
        """Return why the last write failed; None when it did not."""
        return self._writer.failure

    # Taking mail

    def free(self) -> int:
        """Return how many bytes can still be written where the spool is; 0 when that cannot be known.

        Asked for each message, looked up once a second.
        """
        now = time.monotonic()
        if now - self._free_at > FREE_FOR:
            self._free_at = now
            try:
                there = os.statvfs(self._files)
                self._free = there.f_bavail * there.f_frsize
            except OSError:
                self._free = 0
        return self._free

    def body(self) -> Body:
        """Return a new message's content, to be written as it comes in."""
        return Body(self._files, self.next_id())

    def accept(
        self, message: Message, deliveries: Sequence[Delivery], *, data: dict[str, Any] | None = None
    ) -> asyncio.Future[None]:
        """Write a message with its deliveries. It is safe when the future is done; the future fails with
        SpoolUnavailable, and then the message is not stored.

        `message.content` is the content, in memory or as a completed file in this spool. `data` goes into the event.
        """
        return self._writer.submit([self.row(message, deliveries, data)])

    def row(self, message: Message, deliveries: Sequence[Delivery], data: dict[str, Any] | None = None) -> Record:
        """Return the row that makes a message, for a transaction that also changes something else."""
        content, envelope = message.content, message.envelope
        alive = any(delivery.due is not None for delivery in deliveries)
        states = {delivery.state for delivery in deliveries}
        first = EventKind.ACCEPTED
        if not alive and len(states) == 1 and states <= NEVER_OURS:
            first = EventKind(states.pop().value)
        recorded = not alive and first is not EventKind.REFUSED and self.records(deliveries)
        told = envelope.to_json()
        facts = {
            "from": envelope.sender,
            "to": [delivery.recipient.address for delivery in deliveries],
            "size": message.size,
            "via": message.via,
            **told,
            **message.about,
        }
        return NewMessage(
            message=message.id,
            at=message.received,
            event=first,
            data=facts | data if data else facts,
            expires=message.expires,
            sender=envelope.sender,
            size=message.size,
            in_file=(alive or recorded) and not isinstance(content, InMemory),
            via=message.via,
            envelope=dumps(told),
            content=content.data if (alive or recorded) and isinstance(content, InMemory) else None,
            deliveries=orjson.dumps([_delivery_values(delivery) for delivery in deliveries]).decode(),
            recorded=recorded,
            digest=message.digest,
        ).row()

    def records(self, deliveries: Sequence[Delivery]) -> bool:
        """Return whether the content of a message is kept when these deliveries are final."""
        if self._recording == "filtered":
            return any(delivery.verdict is not None for delivery in deliveries)
        return self._recording == "all"

    # Changing deliveries

    def change_row(self, change: Change) -> Record:
        """Return the row for a new state and its event. Content goes with the last delivery that needs it."""
        delivery = change.delivery
        return NewState(
            message=delivery.message.id,
            n=delivery.n,
            at=self._clock(),
            event=change.event,
            data=change.data,
            was=delivery.state,
            state=change.state,
            due=change.due,
            verdict=_verdict_text(change.verdict),
            attempts=change.attempts,
            reply=change.reply,
        ).row()

    async def change(self, changes: Sequence[Change], *, more: Sequence[Record] = ()) -> None:
        """Write new states with their events, durable on return. Raises SpoolUnavailable: then nothing changed."""
        await self._writer.submit([*map(self.change_row, changes), *more])
        await self._changed(changes)

    async def _changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            delivery = change.delivery
            delivery.state, delivery.due, delivery.attempts = change.state, change.due, change.attempts
            delivery.reply = change.reply
            if change.verdict is not None:
                delivery.verdict = change.verdict
        for message in {change.delivery.message.id: change.delivery.message for change in changes}.values():
            if message.size > LARGE:
                await self._remove_unneeded(message.id)

    async def _remove_unneeded(self, message: int) -> None:
        """Remove a file that is no longer needed. A file that an error leaves is removed at the next start."""
        try:
            if not await self._needed(message):
                self.remove_file(message)
        except SpoolUnavailable as error:
            logs.failed("removing a file", error=error, msg_id=to_text(message))

    async def note(self, message: int, n: int, event: EventKind, data: dict[str, Any]) -> None:
        """Write an event that changes no delivery, durable on return. Raises SpoolUnavailable."""
        row = (message, n, self._clock(), event, dumps(data))
        await self.call(
            lambda c: c.execute("INSERT INTO outbox (message, n, at, event, data) VALUES (?, ?, ?, ?, ?)", row)
        )

    async def call(self, call: Call) -> Any:
        """Run a function on the connection inside the next group's transaction. Raises its errors."""
        return await self._writer.submit((), call)

    async def in_force(self, rule: int) -> bool:
        """Return whether a rule has not been cancelled."""
        return bool(await self.call(lambda c: in_force(c, rule)))

    async def change_by_rule(self, rule: int, changes: Sequence[Change], *, keeps: bool = False) -> list[Change]:
        """Write new states because of a rule. Return the changes that were written.

        None are written when the rule was cancelled meanwhile. A rule that `keeps` mail leaves out deliveries that a
        person released after it was added.
        """
        rows = [(change, self.change_row(change)) for change in changes]

        def run(connection: sqlite3.Connection) -> list[Change]:
            if not in_force(connection, rule):
                return []
            meant = [
                (change, row)
                for change, row in rows
                if not keeps or not let_go_since(connection, rule, *change.delivery.key)
            ]
            write_rows(connection, [row for _, row in meant])
            return [change for change, _ in meant]

        done: list[Change] = await self.call(run)
        await self._changed(done)
        return done

    async def suspects(self) -> dict[tuple[int, int], int]:
        """Return the deliveries that were in hand when a node was killed, and how often each broke its pipeline."""
        return {(message, n): broke for message, n, broke in await self._read("SELECT message, n, broke FROM suspect")}

    async def have(self, keys: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return which of these deliveries are in the spool."""
        found = set()
        for message, n in keys:
            if await self._read("SELECT 1 FROM delivery WHERE message = ? AND n = ?", message, n):
                found.add((message, n))
        return found

    async def suspect(self, counts: Mapping[tuple[int, int], int]) -> None:
        """Write how often deliveries broke their pipelines, durable on return; -1 forgets one.

        Raises SpoolUnavailable.
        """
        rows = [(message, n, count) for (message, n), count in counts.items() if count >= 0]
        gone = [key for key, count in counts.items() if count < 0]

        def run(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO suspect VALUES (?, ?, ?)", rows)
            connection.executemany("DELETE FROM suspect WHERE message = ? AND n = ?", gone)

        await self.call(run)

    async def make_due(self, keys: Sequence[tuple[int, int]]) -> None:
        """Let deliveries that wait for a verdict be tried again now. Raises SpoolUnavailable."""
        now = self._clock()
        rows = [(now, now, *key) for key in keys]
        sql = "UPDATE delivery SET due = ? WHERE due > ? AND state = 'accepted' AND message = ? AND n = ?"
        await self.call(lambda connection: connection.executemany(sql, rows))

    async def rules(self) -> list[AdminRule]:
        """Return the rules that apply now. Raises SpoolUnavailable."""
        return cast(list[AdminRule], await self.call(lambda c: active(c, self._clock())))

    # Reading

    def file(self, message: int) -> Path:
        """Return the file of a large message's content."""
        return content_file(self._files, message)

    def remove_file(self, message: int) -> None:
        """Delete a finished message's file, if it had one."""
        with suppress(OSError):
            self.file(message).unlink(missing_ok=True)

    async def content(self, message: int) -> Content:
        """Return a message's content, its length and digest checked.

        Raises SpoolUnavailable when it cannot be read, ContentDamaged when it differs from what was stored.
        """
        found = await self._read(
            f"SELECT {STORED} FROM message m LEFT JOIN content c ON c.message = m.id WHERE m.id = ?",
            message,
        )
        if not found:
            raise SpoolUnavailable(f"message {to_text(message)} is not in the spool")
        stored = Stored(*found[0])
        try:
            if stored.small is not None:
                return open_content(self._files, stored)
            return await asyncio.to_thread(open_content, self._files, stored)
        except OSError as error:
            raise caused_by(
                error, SpoolUnavailable(f"content of {to_text(message)} cannot be read: {in_words(error)}")
            ) from error

    async def due(self, now: float, limit: int) -> list[Delivery]:
        """Return deliveries whose time has come, the longest waiting first."""
        rows = await self._read(
            f"SELECT {COLUMNS} FROM delivery d JOIN message m ON m.id = d.message"
            " WHERE d.due <= ? ORDER BY d.due LIMIT ?",
            now,
            limit,
        )
        messages: dict[int, Message] = {}
        found: list[Delivery] = []
        for row in rows:
            wrong: Exception | None = None
            try:
                found.append(delivery_from_row(row, messages, self.content))
            except (ValueError, TypeError, KeyError) as error:
                wrong = error
            if wrong is not None:
                await self._put_aside(row[0], row[9], wrong)
        return found

    async def _put_aside(self, message: int, n: int, error: Exception) -> None:
        """Look again in an hour at a row that cannot be read, and say so: it must not stop the others."""
        logs.failed(f"reading delivery {n}", error=error, msg_id=to_text(message))
        row = (self._clock() + 3600, message, n)
        await self.call(lambda c: c.execute("UPDATE delivery SET due = ? WHERE message = ? AND n = ?", row))

    async def next_due(self, now: float) -> float | None:
        """Return when the next delivery's time comes, after `now`."""
        rows = await self._read("SELECT min(due) FROM delivery WHERE due > ?", now)
        return None if not rows else rows[0][0]

    async def hurry(self, now: float, longest: float) -> int:
        """Make deliveries due whose retry is later than any retry delay allows, because of a wrong clock. Return their
        number.

        Suspended deliveries wait as their rule says.
        """
        late = "due > ? AND state IN ('accepted', 'decided') AND substr(reply, 1, ?) != ?"
        which = (now + longest, len(SUSPENDED), SUSPENDED)
        if not await self._read(f"SELECT 1 FROM delivery WHERE {late} LIMIT 1", *which):
            return 0
        sql = f"UPDATE delivery SET due = ? WHERE {late}"
        return int(await self.call(lambda c: c.execute(sql, (now, *which)).rowcount))

    async def _needed(self, message: int) -> bool:
        alive = "SELECT n FROM delivery WHERE message = ? AND due IS NOT NULL ORDER BY n DESC LIMIT 1"
        recorded = "SELECT 1 FROM recorded WHERE message = ?"
        return bool(await self._read(alive, message) or await self._read(recorded, message))

    async def figures(self) -> tuple[dict[str, int], float | None, int]:
        """Return deliveries with a `due` by state, when the oldest on its way came, and events the journal does not
        have.
        """
        states = await self._read("SELECT state, count(*) FROM delivery WHERE due IS NOT NULL GROUP BY state")
        oldest = await self._read(
            "SELECT min(m.received) FROM delivery d JOIN message m ON m.id = d.message"
            " WHERE d.due IS NOT NULL AND d.state IN ('accepted', 'decided')"
        )
        # What the journal does not have has no holes, and a million would take long to count.
        first, last = (await self._read("SELECT (SELECT min(id) FROM outbox), (SELECT max(id) FROM outbox)"))[0]
        behind = max(await self.journaled(), (first or 1) - 1)
        return dict(states), oldest[0][0], max(0, (last or 0) - behind)

    async def _read(self, sql: str, *parameters: Any) -> list[Any]:
        async with self._reading:
            try:
                return await asyncio.to_thread(lambda: self._reader.execute(sql, parameters).fetchall())
            except sqlite3.Error as error:
                raise caused_by(error, SpoolUnavailable(f"the spool cannot be read: {in_words(error)}")) from error

    # What the journal takes over

    async def events(self, after: int, limit: int) -> list[Event]:
        """Return events behind number `after`, in their order."""
        rows = await self._read(f"{EVENTS} WHERE id > ? ORDER BY id LIMIT ?", after, limit)
        # In a thread, because a thousand of them would stop the loop for a while.
        return await asyncio.to_thread(lambda: [event_from_row(row) for row in rows])

    async def journaled(self) -> int:
        """Return the number of the last event that the journal has, 0 for none."""
        rows = await self._read("SELECT value FROM meta WHERE key = 'journaled'")
        return int(rows[0][0]) if rows else 0

    async def waiting_since(self) -> float | None:
        """Return when the oldest event that the journal does not have happened; None when it has all."""
        rows = await self._read("SELECT at FROM outbox WHERE id > ? ORDER BY id LIMIT 1", await self.journaled())
        return float(rows[0][0]) if rows else None

    async def mark_journaled(self, seq: int) -> None:
        """Note that the journal has every event up to this one; they may go when their time has come."""
        await self.call(lambda c: c.execute("INSERT OR REPLACE INTO meta VALUES ('journaled', ?)", (str(seq),)))

    # Keeping house

    async def probe(self) -> None:
        """Write something durable. Raises SpoolUnavailable when that does not work."""
        at = str(self._clock())
        await self.call(lambda c: c.execute("INSERT OR REPLACE INTO meta VALUES ('probe', ?)", (at,)))

    async def purge(self, before: float, limit: int = 1000, *, journal: bool = True) -> int:
        """Delete messages that came before `before`, are final, not recorded since, and (with `journal`) in the
        journal, with their events and recorded content. Return their number.

        At most `limit` at once, because mail waits for the transaction. The newest event stays, because its number must
        not be used again.
        """
        waits = (
            " AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.message = message.id AND o.id >"
            " coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'journaled'), 0))"
        )

        def run(connection: sqlite3.Connection) -> list[int]:
            ids = connection.execute(
                "SELECT id FROM message WHERE id < ? AND NOT EXISTS"
                " (SELECT 1 FROM delivery WHERE message = message.id AND due IS NOT NULL) AND NOT EXISTS"
                " (SELECT 1 FROM recorded WHERE message = message.id AND since >= ?)"
                f"{waits if journal else ''} LIMIT ?",
                (first_at(before), before, limit),
            ).fetchall()
            large = _forget_content(connection, ids)
            connection.executemany("DELETE FROM delivery WHERE message = ?", ids)
            newest = scalar(connection, "SELECT max(id) FROM outbox") or 0
            connection.executemany(f"DELETE FROM outbox WHERE message = ? AND id < {newest}", ids)
            if len(ids) < limit:  # what was told of mail that was refused for now, and is in no other table
                connection.execute(
                    f"DELETE FROM outbox WHERE id < {newest} AND event = 'candidate' AND message < ?"
                    " AND message NOT IN (SELECT id FROM message)",
                    (first_at(before),),
                )
                connection.execute("DELETE FROM rule_delivery WHERE message NOT IN (SELECT id FROM message)")
            connection.executemany("DELETE FROM suspect WHERE message = ?", ids)
            connection.executemany("DELETE FROM message WHERE id = ?", ids)
            return [len(ids), *large]

        purged, *large = await self.call(run)
        await asyncio.to_thread(self._remove_files, large)
        return int(purged)

    async def recorded(self) -> int:
        """Return how many bytes of content are kept of final messages."""
        return int((await self._read("SELECT coalesce(sum(size), 0) FROM recorded"))[0][0])

    async def trim(self, most: int, limit: int = 200) -> int:
        """Delete the oldest recorded content beyond `most` bytes, of at most `limit` messages. Return their number."""
        excess = await self.recorded() - most
        if excess <= 0:
            return 0

        def run(connection: sqlite3.Connection) -> list[int]:
            ids, freed = [], 0
            for message, size in connection.execute(
                "SELECT message, size FROM recorded WHERE NOT EXISTS (SELECT 1 FROM delivery d"
                " WHERE d.message = recorded.message AND d.due IS NOT NULL) ORDER BY since LIMIT ?",
                (limit,),
            ):
                ids.append((message,))
                freed += size
                if freed >= excess:
                    break
            return [len(ids), *_forget_content(connection, ids)]

        trimmed, *large = await self.call(run)
        await asyncio.to_thread(self._remove_files, large)
        return int(trimmed)

    def _remove_files(self, messages: Sequence[int]) -> None:
        for message in messages:
            self.remove_file(message)

    async def close(self) -> None:
        """Write the pending changes and close. The spool stays as it is."""
        await self._writer.close()
        self._reader.close()


def _forget_content(connection: sqlite3.Connection, ids: Sequence[tuple[int]]) -> list[int]:
    """Delete the recorded content of final messages. Return those with a file; the caller deletes the files."""
    large = [id_ for (id_,) in ids if scalar(connection, "SELECT in_file FROM message WHERE id = ?", id_)]
    connection.executemany("DELETE FROM content WHERE message = ?", ids)
    connection.executemany("DELETE FROM recorded WHERE message = ?", ids)
    return large


def new_message(
    spool: Spool, envelope: Envelope, content: Content, *, now: float, lifetime: float, via: str, id_: int | None = None
) -> Message:
    """Return a message that is not in the spool yet; `lifetime` is how long its delivery is tried, in seconds."""
    return Message(
        id=spool.next_id() if id_ is None else id_,
        received=now,
        expires=now + lifetime,
        envelope=envelope,
        size=content.size,
        via=via,
        content=content,
        loader=spool.content,
        digest=digest_of(content),
    )


def own_message(spool: Spool, to: str, data: bytes, *, now: float, lifetime: float) -> tuple[Message, Delivery]:
    """Return a message of our own, such as a report, and its one delivery, not written yet.

    It has the null sender, so that no report follows it (RFC 5321 4.5.5), and is never filtered.
    """
    recipient = Recipient(to)
    body = "" if data.isascii() else "8BITMIME"
    envelope = Envelope("", (recipient,), body=body, smtputf8=not to.isascii())
    message = new_message(spool, envelope, InMemory(data), now=now, lifetime=lifetime, via="report")
    return message, Delivery(message, 0, recipient, due=now)
