"""Users and their pipelines. Each function is one transaction and blocks; the mail path never waits for one."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from sendswitch.db.tables import pipelines, users
from sendswitch.errors import NotFound, Refused
from sendswitch.mail.address import key, valid


@dataclass(frozen=True, slots=True)
class User:
    """A user as listed. `version` is the pipeline's, 0 without one."""

    address: str
    created: float
    version: int


@dataclass(frozen=True, slots=True)
class StoredPipeline:
    """One version of a user's pipeline."""

    owner: str
    version: int
    text: str
    created: float


def add_user(engine: Engine, address: str) -> None:
    """Add a user, or `@domain` for everybody in a domain. Raises Refused if there is one, ValueError for no address."""
    if not (valid(address) and "@" in address) and not (address.startswith("@") and valid("x" + address)):
        raise ValueError(f"{address!r} is no mail address; write user@domain, or @domain for all of a domain")
    with engine.begin() as connection:
        try:
            connection.execute(insert(users).values(address=address, key=key(address), created=time.time()))
        except IntegrityError as error:
            raise Refused(f"user {address} exists already") from error


def remove_user(engine: Engine, address: str) -> None:
    """Remove a user with all versions of the pipeline. Raises NotFound."""
    with engine.begin() as connection:
        user = _user_id(connection, address)
        connection.execute(delete(pipelines).where(pipelines.c.user_id == user))
        connection.execute(delete(users).where(users.c.id == user))


def list_users(engine: Engine) -> list[User]:
    """All users by address."""
    latest = select(pipelines.c.user_id, func.max(pipelines.c.version).label("v")).group_by(pipelines.c.user_id)
    last = latest.subquery()
    query = (
        select(users.c.address, users.c.created, func.coalesce(last.c.v, 0))
        .select_from(users.outerjoin(last, last.c.user_id == users.c.id))
        .order_by(users.c.address)
    )
    with engine.connect() as connection:
        return [User(*row) for row in connection.execute(query)]


def set_pipeline(engine: Engine, address: str, text: str) -> int:
    """Store a new version of a user's pipeline; gives its number. The text must have been checked. Raises NotFound."""
    with engine.begin() as connection:
        user = _user_id(connection, address)
        newest = select(func.max(pipelines.c.version)).where(pipelines.c.user_id == user)
        version = (connection.execute(newest).scalar() or 0) + 1
        connection.execute(insert(pipelines).values(user_id=user, version=version, text=text, created=time.time()))
        return version


def get_pipeline(engine: Engine, address: str, version: int | None = None) -> StoredPipeline:
    """A version of a user's pipeline, the newest by default. Raises NotFound."""
    query = (
        select(users.c.address, pipelines.c.version, pipelines.c.text, pipelines.c.created)
        .join(users, users.c.id == pipelines.c.user_id)
        .where(users.c.key == key(address))
        .order_by(pipelines.c.version.desc())
        .limit(1)
    )
    if version is not None:
        query = query.where(pipelines.c.version == version)
    with engine.connect() as connection:
        row = connection.execute(query).first()
    if row is None:
        raise NotFound(f"{address} has no pipeline{'' if version is None else f' of version {version}'}")
    return StoredPipeline(*row)


def all_pipelines(engine: Engine) -> list[StoredPipeline]:
    """The newest pipeline of every user who has one."""
    newest = select(pipelines.c.user_id, func.max(pipelines.c.version).label("v")).group_by(pipelines.c.user_id)
    last = newest.subquery()
    query = (
        select(users.c.address, pipelines.c.version, pipelines.c.text, pipelines.c.created)
        .join(users, users.c.id == pipelines.c.user_id)
        .join(last, (last.c.user_id == pipelines.c.user_id) & (last.c.v == pipelines.c.version))
    )
    with engine.connect() as connection:
        return [StoredPipeline(*row) for row in connection.execute(query)]


def _user_id(connection: Connection, address: str) -> int:
    found = connection.execute(select(users.c.id).where(users.c.key == key(address))).scalar()
    if found is None:
        raise NotFound(f"there is no user {address}; `sendswitch user list` shows all, `sendswitch user add` adds one")
    return int(found)
