"""passwords: what users log in with"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.column("users", sa.Column("password", sa.String(255), nullable=False, server_default=""))


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_column("users", "password")
