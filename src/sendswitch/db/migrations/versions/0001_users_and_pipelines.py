"""users and pipelines"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("address", sa.String(320), nullable=False),
        sa.Column("key", sa.String(320), nullable=False, unique=True),
        sa.Column("created", sa.Double, nullable=False),
    )
    steps.table(
        "pipelines",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.UniqueConstraint("user_id", "version"),
    )
    steps.index("ix_pipelines_user_id", "pipelines", "user_id")


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_table("pipelines")
    op.drop_table("users")
