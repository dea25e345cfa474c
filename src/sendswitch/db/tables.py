"""The tables. Alembic's migrations make them; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, MetaData, String, Table, Text, UniqueConstraint

metadata = MetaData()

# 320 is the longest address we take. The key is what addresses are compared by.
users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("address", String(320), nullable=False),
    Column("key", String(320), nullable=False, unique=True),
    Column("created", Float, nullable=False),
)

# Every version stays: a message on its way is judged by the version it was offered to, and history has diffs.
pipelines = Table(
    "pipelines",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", Integer, nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("user_id", "version"),
)
