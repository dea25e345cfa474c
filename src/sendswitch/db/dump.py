"""The database as lines of JSON, whatever kind it is, and back into an empty one of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, func, insert, select
from sqlalchemy import Table as SqlTable

from sendswitch.db.connect import HEAD
from sendswitch.db.tables import metadata
from sendswitch.errors import Permanent, Refused

# Rows read or written at once.
PIECE = 1000


def dump(engine: Engine) -> Iterator[bytes]:
    """Yield every row of every table as one line, from one moment. Raises SQLAlchemyError."""
    level = "SERIALIZABLE" if engine.dialect.name == "sqlite" else "REPEATABLE READ"
    yield orjson.dumps({"version": HEAD}) + b"\n"
    with engine.connect().execution_options(isolation_level=level, yield_per=PIECE) as connection:
        for table in metadata.sorted_tables:
            names = [str(column.name) for column in table.columns]
            for row in connection.execute(select(table)):
                yield orjson.dumps([str(table.name), dict(zip(names, row, strict=True))]) + b"\n"


def require_empty(engine: Engine) -> None:
    """Raise Refused when there is anything in the database."""
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            if connection.execute(select(func.count()).select_from(table)).scalar():
                raise Refused(f"the database has rows in {table.name}; restore into an empty one")


def load(engine: Engine, lines: Iterable[bytes]) -> int:
    """Fill an empty database, all or nothing. Return the number of rows. Raises Refused, and Permanent for a file that
    is no dump.
    """
    require_empty(engine)
    lines = iter(lines)
    head = orjson.loads(next(lines, b"{}"))
    if head.get("version") != HEAD:
        raise Permanent(f"the backup's database has version {head.get('version')}, this program knows {HEAD}")
    count = 0
    with engine.begin() as connection:
        waiting: list[dict[str, Any]] = []
        table: SqlTable | None = None
        for line in lines:
            name, row = orjson.loads(line)
            if table is None or name != table.name or len(waiting) == PIECE:
                if waiting and table is not None:
                    connection.execute(insert(table), waiting)
                table, waiting = metadata.tables[name], []
            waiting.append(row)
            count += 1
        if waiting and table is not None:
            connection.execute(insert(table), waiting)
        if engine.dialect.name == "postgresql":
            _go_on_counting(connection)
    return count


def _go_on_counting(connection: Connection) -> None:
    """Set counters behind the highest number in use: PostgreSQL counts apart from the rows."""
    for table in metadata.sorted_tables:
        if "id" in table.columns and table.c.id.autoincrement is not False:
            newest = connection.execute(select(func.max(table.c.id))).scalar()
            if newest is not None:
                connection.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), newest)))
