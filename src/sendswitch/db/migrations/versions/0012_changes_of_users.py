"""changes of users: numbered, so that nodes read those alone; and of each pipeline what a node must know of it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    for table in ("users", "removed_users"):
        steps.column(table, sa.Column("changed", sa.BigInteger, nullable=False, server_default="0"))
        steps.index(f"ix_{table}_changed", table, "changed")
    steps.column("pipelines", sa.Column("summary", sa.String(200), nullable=False, server_default=""))


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_column("pipelines", "summary")
    for table in ("users", "removed_users"):
        op.drop_index(f"ix_{table}_changed", table)
        op.drop_column(table, "changed")
