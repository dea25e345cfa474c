"""The steps migrations are made of. Each looks first whether it is done.

MariaDB and MySQL commit after each statement that changes a table, so a node that is killed there leaves a migration
done half. The next start does the other half.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

# On MySQL and MariaDB, whatever the server's default: all of Unicode, compared as the other databases do.
_TABLE: dict[str, Any] = {
    f"{kind}_{key}": value
    for kind in ("mysql", "mariadb")
    for key, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def table(name: str, *what: sa.schema.SchemaItem) -> None:
    """Make a table of these columns and constraints."""
    if not _seen().has_table(name):
        op.create_table(name, *what, **_TABLE)


def index(name: str, table: str, *columns: str) -> None:
    """Make an index."""
    if name not in {found["name"] for found in _seen().get_indexes(table)}:
        op.create_index(name, table, list(columns))


def column(table: str, added: sa.Column[Any]) -> None:
    """Add a column."""
    if added.name not in {found["name"] for found in _seen().get_columns(table)}:
        op.add_column(table, added)


def _seen() -> sa.Inspector:
    return sa.inspect(op.get_bind())
