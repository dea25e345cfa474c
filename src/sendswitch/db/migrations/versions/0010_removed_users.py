"""removed users: what `user restore` needs"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import MEDIUMTEXT

from sendswitch.db.migrations import steps

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.table(
        "removed_users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("address", sa.String(320), nullable=False),
        sa.Column("key", sa.String(320), nullable=False),
        sa.Column("removed", sa.Double, nullable=False),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("data", sa.Text().with_variant(MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
    )


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_table("removed_users")
