"""candidates: pipelines that run beside the live ones, and how they compare; marks: how far the journal was pruned"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.column("pipelines", sa.Column("role", sa.String(16), nullable=False, server_default="live"))
    steps.column("pipelines", sa.Column("author", sa.String(64), nullable=False, server_default=""))
    steps.table(
        "comparisons",
        sa.Column("message", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner_key", sa.String(320), nullable=False),
        sa.Column("was", sa.String(16), nullable=False),
        sa.Column("now", sa.String(16), nullable=False),
        sa.Column("differs", sa.Boolean, nullable=False),
        sa.Column("told_was", sa.String(500), nullable=False),
        sa.Column("told_now", sa.String(500), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
    )
    steps.index("comparisons_of_owner", "comparisons", "owner_key", "version")
    steps.table(
        "marks",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_table("marks")
    op.drop_table("comparisons")
    op.drop_column("pipelines", "author")
    op.drop_column("pipelines", "role")
