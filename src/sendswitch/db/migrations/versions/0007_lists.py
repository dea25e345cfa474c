"""lists: allow and deny lists of users, domains and the site"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.table(
        "list_entries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("scope", sa.String(320), nullable=False),
        sa.Column("list", sa.String(16), nullable=False),
        sa.Column("entry", sa.String(320), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double),
        sa.UniqueConstraint("scope", "list", "entry"),
    )


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_table("list_entries")
