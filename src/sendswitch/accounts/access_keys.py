"""Keys of programs: each belongs to a user, has one scope, and is kept as its hash only.

A key is random, so that nobody guesses it, and a plain hash (SHA-256) keeps it as well as a slow one would.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Engine, delete, insert, select, update

from sendswitch.db import marks
from sendswitch.db.tables import access_keys, users
from sendswitch.errors import NotFound, Refused
from sendswitch.mail.address import key

# What a key may be used for. `work`: to run the user's pipeline on another machine.
SCOPES = ("work",)
# The beginning of each key, by which people and programs know it for what it is, and its bytes of chance.
PREFIX, CHANCE = "ssk_", 32
# Most keys of a user. Seconds after which the last use is written again.
MOST, USE_WRITTEN = 50, 60.0


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key as listed. `created` and `used` are seconds since the epoch; None for a key that was never used."""

    id: int
    address: str
    scope: str
    name: str
    created: float
    used: float | None


def add_key(engine: Engine, address: str, scope: str, name: str) -> tuple[int, str]:
    """Make a key. Return its number, and the key itself, which nothing shows again. Raises NotFound, ValueError;
    Refused for too many.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
    made = PREFIX + secrets.token_urlsafe(CHANCE)
    with engine.begin() as connection:
        user = connection.execute(select(users.c.id).where(users.c.key == key(address))).scalar()
        if user is None:
            raise NotFound(f"there is no user {address}; `sendswitch user add {address}` adds one")
        if len(connection.execute(select(access_keys.c.id).where(access_keys.c.user_id == user)).all()) >= MOST:
            raise Refused(f"{address} has {MOST} keys already; `sendswitch key rm` removes one")
        values = {"user_id": user, "scope": scope, "name": name[:100], "hash": _hash(made), "created": time.time()}
        added = connection.execute(insert(access_keys).values(**values))
        assert added.inserted_primary_key is not None
        return int(added.inserted_primary_key[0]), made


def list_keys(engine: Engine) -> list[AccessKey]:
    """Return all keys by user, without the keys themselves."""
    shown = (access_keys.c.scope, access_keys.c.name, access_keys.c.created, access_keys.c.used)
    query = select(access_keys.c.id, users.c.address, *shown).join(users, users.c.id == access_keys.c.user_id)
    with engine.connect() as connection:
        return [AccessKey(*row) for row in connection.execute(query.order_by(users.c.address, access_keys.c.id))]


def remove_key(engine: Engine, number: int) -> None:
    """Remove a key. Raises NotFound."""
    with engine.begin() as connection:
        marks.count(connection, marks.KEYS)
        if not connection.execute(delete(access_keys).where(access_keys.c.id == number)).rowcount:
            raise NotFound(f"there is no key {number}; `sendswitch key list` shows all")


def user_of(engine: Engine, given: str, scope: str) -> tuple[int, str] | None:
    """Return the number of a key and its user's address, None when it is no key of this scope."""
    query = select(access_keys.c.id, access_keys.c.used, users.c.address)
    query = query.join(users, users.c.id == access_keys.c.user_id)
    query = query.where(access_keys.c.hash == _hash(given), access_keys.c.scope == scope)
    with engine.begin() as connection:
        found = connection.execute(query).first()
        if found is None:
            return None
        if (now := time.time()) - (found.used or 0.0) > USE_WRITTEN:
            connection.execute(update(access_keys).where(access_keys.c.id == found.id).values(used=now))
    return int(found.id), str(found.address)


def valid_keys(engine: Engine, scope: str) -> frozenset[tuple[int, str]]:
    """Return all keys of a scope: their numbers, which come again after a removal, with their users' addresses."""
    query = select(access_keys.c.id, users.c.address).join(users, users.c.id == access_keys.c.user_id)
    with engine.connect() as connection:
        rows = connection.execute(query.where(access_keys.c.scope == scope))
        return frozenset((int(row.id), str(row.address)) for row in rows)


def _hash(given: str) -> str:
    return hashlib.sha256(given.encode()).hexdigest()
