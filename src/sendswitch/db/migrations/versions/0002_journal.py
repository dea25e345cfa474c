"""the journal"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import MEDIUMTEXT

from sendswitch.db.migrations import steps

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade to this version."""
    steps.table(
        "messages",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("sender", sa.String(320), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("via", sa.String(16), nullable=False),
        sa.Column("client_address", sa.String(64), nullable=False),
        sa.Column("client_name", sa.String(255), nullable=False),
        sa.Column("helo", sa.String(255), nullable=False),
        sa.Column("queue_id", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(500), nullable=False),
        sa.Column("message_id", sa.String(500), nullable=False),
    )
    steps.table(
        "deliveries",
        sa.Column("message", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("recipient", sa.String(320), nullable=False),
        sa.Column("recipient_key", sa.String(320), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("tags", sa.String(2000), nullable=False),
        sa.Column("processor", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("reply", sa.String(500), nullable=False),
    )
    steps.index("deliveries_of_recipient", "deliveries", "recipient_key", "message")
    steps.table(
        "events",
        sa.Column("message", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("data", sa.Text().with_variant(MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
    )


def downgrade() -> None:
    """Downgrade to the version before."""
    for table in ("events", "deliveries", "messages"):
        op.drop_table(table)
