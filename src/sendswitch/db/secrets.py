"""Secrets that all nodes of one database share. Each is made when it is first asked for, and stays."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import IntegrityError

from sendswitch.db import tables

# Bytes of one: what HMAC-SHA256 can use.
LENGTH = 32


def secret(engine: Engine, name: str) -> bytes:
    """Return the secret with this name. All nodes of a database get the same. Blocks."""
    with engine.connect() as connection:
        found = _find(connection, name)
    if found is None:
        made = b64encode(secrets.token_bytes(LENGTH)).decode()
        try:
            with engine.begin() as connection:
                connection.execute(insert(tables.secrets).values(name=name, value=made))
        except IntegrityError:  # another node was quicker
            with engine.connect() as connection:
                made = _find(connection, name) or made
        found = made
    return b64decode(found)


def _find(connection: Connection, name: str) -> str | None:
    value: str | None = connection.execute(select(tables.secrets.c.value).where(tables.secrets.c.name == name)).scalar()
    return value
