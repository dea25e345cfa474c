"""Alembic's environment: it runs migrations over the connection from `db.connect`."""

from __future__ import annotations

from alembic import context

from sendswitch.db.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
