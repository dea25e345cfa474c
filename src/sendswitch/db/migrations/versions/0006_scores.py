"""scores: how much a delivery's mail looked like spam, so that it can be found by that"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.column("deliveries", sa.Column("score", sa.Double))


def downgrade() -> None:
    """Downgrade to the version before."""
    op.drop_column("deliveries", "score")
