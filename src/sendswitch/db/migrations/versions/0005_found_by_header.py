"""found by header: whom a message names as its readers, and what is attached, so that mail can be found by it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sendswitch.db.migrations import steps

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LENGTHS = {"header_to": 1000, "header_cc": 1000, "reply_to": 500, "parts": 32}


def upgrade() -> None:
    """Upgrade to this version."""
    for name, length in LENGTHS.items():
        steps.column("messages", sa.Column(name, sa.String(length), nullable=False, server_default=""))


def downgrade() -> None:
    """Downgrade to the version before."""
    for name in LENGTHS:
        op.drop_column("messages", name)
