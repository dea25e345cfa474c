"""workers of users: whose workers run a pipeline, keys for programs, and versions that never come twice"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.column("users", sa.Column("last_version", sa.Integer, nullable=False, server_default="0"))
    steps.column("users", sa.Column("workers", sa.String(16), nullable=False, server_default="site"))
    steps.column("users", sa.Column("when_offline", sa.String(16), nullable=False, server_default=""))
    steps.table(
        "access_keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("used", sa.Double),
    )
    steps.index("ix_access_keys_user_id", "access_keys", "user_id")


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_table("access_keys")
    op.drop_column("users", "when_offline")
    op.drop_column("users", "workers")
    op.drop_column("users", "last_version")
