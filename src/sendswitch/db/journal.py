"""The journal in the database: written in batches, searched, read message by message, and pruned.

Each function is one transaction and blocks; the mail path never waits for one. Writing a batch twice changes nothing,
so that a writer that is not sure writes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement

from sendswitch import logs
from sendswitch.conditions.fields import FIELDS, How
from sendswitch.config.units import COMPARE
from sendswitch.db.tables import comparisons, deliveries, events, marks, messages
from sendswitch.journal.events import Event, Key, Row, fold
from sendswitch.journal.search import Term
from sendswitch.mail.address import key
from sendswitch.mail.ids import first_at, to_text

# Messages forgotten in one transaction.
PRUNED = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """One delivery that a search found, with its message: the columns of both tables by name."""

    message: Mapping[str, Any]
    delivery: Mapping[str, Any]


def write(engine: Engine, batch: Sequence[Event]) -> None:
    """Add events and update messages and deliveries in one transaction. Raises SQLAlchemyError.

    An event whose content the database refuses is logged and left out, because the database would refuse it for ever.
    It stays in the spool.
    """
    try:
        _write(engine, batch)
    except (DataError, IntegrityError) as error:
        if len(batch) == 1:
            logs.failed(f"keeping the event {batch[0].event}", error=error, msg_id=to_text(batch[0].message))
            return
        for event in batch:
            write(engine, [event])


def _write(engine: Engine, batch: Sequence[Event]) -> None:
    rows = fold(batch)
    told = [
        {"message": e.message, "seq": e.seq, "n": e.n, "at": e.at, "event": e.event, "data": _text(e)} for e in batch
    ]
    with engine.begin() as connection:
        _add(connection, messages, list(rows.messages.values()))
        _add(connection, deliveries, list(rows.deliveries.values()))
        _change(connection, rows.changes)
        _add(connection, comparisons, list(rows.comparisons.values()))
        _add(connection, events, told)


def _text(event: Event) -> str:
    return event.raw or orjson.dumps(event.data).decode()


def _add(connection: Connection, table: Table, rows: list[Row]) -> None:
    """Insert rows that are missing, and replace the rows of deliveries.

    The driver's own executemany does it: SQLAlchemy's work for each row took half the time of a batch, and numbers and
    text need no conversion.
    """
    if not rows:
        return
    text, order = _insert_new(table, connection.engine)
    values = [tuple([row[name] for name in order]) for row in rows] if order else rows
    connection.exec_driver_sql(text, values)


def _nothing(statement: postgresql.Insert | sqlite.Insert) -> Insert:
    return statement.on_conflict_do_nothing()


@lru_cache(maxsize=32)
def _insert_new(table: Table, engine: Engine) -> tuple[str, tuple[str, ...]]:
    """Return the statement for this database, and the order of its values, empty where it takes them by name."""
    # Not INSERT IGNORE: that passes over more than what is there already, such as text that had to be cut.
    statement: Insert
    keys = [column.name for column in table.primary_key]
    # A delivery's row has the changes of its batch in it; when batches are cut another way the second time, the row
    # is there already and the changes are not.
    others = [column.name for column in table.columns if column.name not in keys] if table is deliveries else []
    match engine.dialect.name:
        case "postgresql":
            insert = postgresql.insert(table)
            new = {name: insert.excluded[name] for name in others}
            statement = insert.on_conflict_do_update(index_elements=keys, set_=new) if new else _nothing(insert)
        case "sqlite":
            insert_ = sqlite.insert(table)
            new = {name: insert_.excluded[name] for name in others}
            statement = insert_.on_conflict_do_update(index_elements=keys, set_=new) if new else _nothing(insert_)
        case _:
            insert_my = mysql.insert(table)
            new_my = {name: insert_my.inserted[name] for name in others} or {name: table.c[name] for name in keys}
            statement = insert_my.on_duplicate_key_update(new_my)
    compiled = statement.compile(engine, column_keys=table.c.keys())
    assert isinstance(compiled, SQLCompiler)
    return str(compiled), tuple(compiled.positiontup or ())


def _change(connection: Connection, changes: Mapping[Key, Row]) -> None:
    """Change deliveries; those in which the same columns change share a statement."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for (message, n), change in changes.items():
        if change:
            alike.setdefault(tuple(sorted(change)), []).append({"_message": message, "_n": n} | change)
    for columns, rows in alike.items():
        here = and_(deliveries.c.message == bindparam("_message"), deliveries.c.n == bindparam("_n"))
        connection.execute(update(deliveries).where(here).values({name: bindparam(name) for name in columns}), rows)


# Searching


def find(engine: Engine, terms: Sequence[Term], *, limit: int, before: Key | None = None) -> list[Found]:
    """Return deliveries for which every term holds, the newest first, behind the row `before` of the last answer."""
    here = and_(true(), *(_condition(term) for term in terms))
    if before is not None:
        message, n = before
        here = and_(
            here, or_(deliveries.c.message < message, and_(deliveries.c.message == message, deliveries.c.n > n))
        )
    query = (
        select(messages, deliveries)
        .join_from(deliveries, messages, deliveries.c.message == messages.c.id)
        .where(here)
        .order_by(deliveries.c.message.desc(), deliveries.c.n)
        .limit(limit)
    )
    with engine.connect() as connection:
        return [_found(row) for row in connection.execute(query)]


def _found(row: Any) -> Found:
    middle = len(messages.c)
    return Found(
        dict(zip(messages.c.keys(), row[:middle], strict=True)),
        dict(zip(deliveries.c.keys(), row[middle:], strict=True)),
    )


_COLUMNS: Mapping[str, ColumnElement[Any]] = {
    "sender": messages.c.sender,
    "recipient": deliveries.c.recipient,
    "subject": messages.c.subject,
    "helo": messages.c.helo,
    "client_name": messages.c.client_name,
    "message_id": messages.c.message_id,
    "header_cc": messages.c.header_cc,
    "reply_to": messages.c.reply_to,
    "reason": deliveries.c.reason,
    "user": deliveries.c.recipient_key,
    "state": deliveries.c.state,
    "action": deliveries.c.action,
    "processor": deliveries.c.processor,
    "queue_id": messages.c.queue_id,
    "address": messages.c.client_address,
    "message": deliveries.c.message,
}


def _condition(term: Term) -> ColumnElement[bool]:
    if term.name == "score":  # what has none is neither above nor below
        condition = and_(deliveries.c.score.is_not(None), COMPARE[term.how](deliveries.c.score, term.value))
    else:
        condition = _positive(term.name, term.value)
    return not_(condition) if term.negated else condition


def _positive(name: str, value: str | float) -> ColumnElement[bool]:
    if (field := FIELDS.get(name)) is not None:
        found = [_COLUMNS[fact] for fact in field.facts]
        if field.how is How.EQUALS:
            return or_(*(column == value for column in found))
        return or_(*(func.lower(column).contains(str(value).lower(), autoescape=True) for column in found))
    match name:
        case "tag":
            return func.lower(deliveries.c.tags).contains(f" {str(value).lower()} ", autoescape=True)
        case "has":
            return messages.c.parts.contains(f" {value} ")
        case "is":
            return deliveries.c.tags != ""
        case "bcc":
            named = func.lower(messages.c.header_to + literal(" ") + messages.c.header_cc)
            wanted = func.lower(deliveries.c.recipient).contains(str(value).lower(), autoescape=True)
            return and_(wanted, not_(named.contains(deliveries.c.recipient_key)))
        case "larger":
            return messages.c.size > value
        case "smaller":
            return messages.c.size < value
        # Ids rise with time, and are the index.
        case "before":
            return deliveries.c.message < first_at(float(value))
    return deliveries.c.message >= first_at(float(value))  # after


# One message


@dataclass(frozen=True, slots=True)
class Kept:
    """The journal's records of one message. `message` is empty when it has none."""

    message: Mapping[str, Any]
    deliveries: Sequence[Mapping[str, Any]]
    events: Sequence[Event]


def story(engine: Engine, message: int) -> Kept:
    """Return everything about one message, events in their order."""
    with engine.connect() as connection:
        found = connection.execute(select(messages).where(messages.c.id == message)).mappings().first()
        to = connection.execute(select(deliveries).where(deliveries.c.message == message).order_by(deliveries.c.n))
        happened = connection.execute(select(events).where(events.c.message == message).order_by(events.c.seq))
        return Kept(
            dict(found) if found else {},
            [dict(row) for row in to.mappings()],
            [Event(e.seq, e.message, e.n, e.at, e.event, orjson.loads(e.data)) for e in happened],
        )


def prune(engine: Engine, *, before: float, most: int) -> int:
    """Delete messages that came before `before` (seconds since the epoch) or exceed `most`, with all their records.

    Deletes at most a thousand at once. Returns the number. Messages with deliveries that are not final stay.
    """
    with engine.begin() as connection:
        newest = select(messages.c.id).order_by(messages.c.id.desc()).limit(1).offset(most)
        too_many = connection.execute(newest).scalar() or 0
        alive = (
            select(deliveries.c.message)
            .where(deliveries.c.message == messages.c.id)
            .where(deliveries.c.state.in_(("accepted", "decided", "held", "quarantined")))
        )
        old = (
            select(messages.c.id)
            .where(or_(messages.c.id < first_at(before), messages.c.id <= too_many))
            .where(~alive.exists())
            .limit(PRUNED)
        )
        ids = [row[0] for row in connection.execute(old)]
        for column in (events.c.message, comparisons.c.message, deliveries.c.message, messages.c.id):
            connection.execute(delete(column.table).where(column.in_(ids)))
        if ids:
            _mark_pruned(connection, max(ids))
        # Of mail that was refused for now there is a comparison and no message.
        connection.execute(delete(comparisons).where(comparisons.c.message < first_at(before)))
        return len(ids)


def _mark_pruned(connection: Connection, newest: int) -> None:
    here = marks.c.name == "pruned"
    before = connection.execute(select(marks.c.value).where(here)).scalar()
    if before is None:
        connection.execute(insert(marks).values(name="pruned", value=newest))
    elif newest > before:
        connection.execute(update(marks).where(here).values(value=newest))


def pruned_to(connection: Connection) -> int:
    """Return the newest message that was pruned, 0 for none. Older messages may be missing."""
    return int(connection.execute(select(marks.c.value).where(marks.c.name == "pruned")).scalar() or 0)


# Candidates


def agreement(engine: Engine, owner: str, version: int) -> list[tuple[str, str, bool, int]]:
    """Return each pair of answers, the live one and the candidate's, with whether they differ and the number of
    messages.
    """
    table = comparisons.c
    query = (
        select(table.was, table.now, table.differs, func.count())
        .where(table.owner_key == key(owner), table.version == version)
        .group_by(table.was, table.now, table.differs)
        .order_by(table.differs, func.count().desc())
    )
    with engine.connect() as connection:
        return [(was, now, bool(differs), int(count)) for was, now, differs, count in connection.execute(query)]


def disagreements(engine: Engine, owner: str, version: int, limit: int) -> list[Mapping[str, Any]]:
    """Return the messages that a candidate would have treated differently, the newest first, with sender and
    subject.
    """
    here = comparisons.outerjoin(messages, messages.c.id == comparisons.c.message).outerjoin(
        deliveries, and_(deliveries.c.message == comparisons.c.message, deliveries.c.n == comparisons.c.n)
    )
    query = (
        select(comparisons, messages.c.sender, messages.c.subject, deliveries.c.recipient)
        .select_from(here)
        .where(comparisons.c.owner_key == key(owner), comparisons.c.version == version, comparisons.c.differs)
        .order_by(comparisons.c.message.desc(), comparisons.c.n)
        .limit(limit)
    )
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
