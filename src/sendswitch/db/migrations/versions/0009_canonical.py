"""canonical: addresses are looked up by one form, with A-labels and without quoting"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import IntegrityError

from sendswitch.mail.address import domain_key, key

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Write the new form of each key. Can be run again."""
    connection = op.get_bind()
    users = sa.table("users", sa.column("id"), sa.column("address"), sa.column("key"))
    rows = connection.execute(sa.select(users.c.id, users.c.address, users.c.key)).all()
    taken = {row.key for row in rows}
    for row in rows:
        # Two users with two spellings of one address keep their pipelines; the first one's is asked.
        if (new := key(row.address)) != row.key and new not in taken:
            connection.execute(sa.update(users).where(users.c.id == row.id).values(key=new))
            taken.add(new)
    _rekey(connection, "list_entries", "scope")
    for table, column in (("deliveries", "recipient_key"), ("comparisons", "owner_key")):
        _rekey(connection, table, column)


def _rekey(connection: sa.Connection, name: str, column: str) -> None:
    """Write the new form of the keys in a column that are not ASCII; few are."""
    of: sa.ColumnClause[str] = sa.column(column, sa.String)
    table = sa.table(name, of)
    if connection.dialect.name == "sqlite":
        wide = sa.func.length(sa.cast(of, sa.LargeBinary)) != sa.func.length(of)
    else:
        wide = sa.func.octet_length(of) != sa.func.char_length(of)
    found = connection.execute(sa.select(of).select_from(table).where(wide).distinct())
    for (old,) in found.all():
        new = key(old) if "@" in old else domain_key(old)
        try:
            with connection.begin_nested():
                connection.execute(sa.update(table).where(of == old).values({column: new}))
        except IntegrityError:
            continue  # the entry is there under both forms


def downgrade() -> None:
    """Leave the keys: a version before finds all but those that are not ASCII."""
