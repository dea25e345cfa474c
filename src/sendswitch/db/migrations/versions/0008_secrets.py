"""secrets: what the nodes of one database share"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.table(
        "secrets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.String(64), nullable=False),
    )


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_table("secrets")
