"""Users and their pipelines. Each function is one transaction and blocks; the mail path never waits for one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from sendswitch.conditions.pipeline import read_pipeline
from sendswitch.db import marks
from sendswitch.db.tables import access_keys, pipelines, removed_users, users
from sendswitch.errors import InvalidConfiguration, NotFound, Refused, Temporary
from sendswitch.mail.address import key, valid


@dataclass(frozen=True, slots=True)
class User:
    """A user as listed. `version` is the pipeline's, 0 without one; `login` says whether there is a password."""

    address: str
    created: float
    version: int
    login: bool = False


@dataclass(frozen=True, slots=True)
class StoredPipeline:
    """One version of a user's pipeline. `role` is live, candidate or retired."""

    owner: str
    version: int
    text: str
    created: float
    role: str = "live"
    author: str = ""


@dataclass(frozen=True, slots=True)
class Removed:
    """The removal of a user. `removed` is seconds since the epoch."""

    address: str
    removed: float
    author: str


# Seconds that a removal can be undone.
REMOVED_KEPT = 30 * 86400.0


def is_owner(address: str) -> bool:
    """Return whether an address can own a pipeline: a mail address, or `@domain` for everybody in a domain."""
    return (valid(address) and "@" in address) or (address.startswith("@") and valid("x" + address))


def add_user(engine: Engine, address: str) -> None:
    """Add a user, or `@domain` for everybody in a domain. Raises Refused if there is one, ValueError for no address."""
    with engine.begin() as connection:
        add(connection, address)


def add(connection: Connection, address: str) -> None:
    """Add a user inside the caller's transaction. Raises Refused, ValueError.

    The versions of a pipeline go on where those of the last user with this address ended, as far as that one is known:
    a number never means two pipelines.
    """
    if not is_owner(address):
        raise ValueError(f"{address!r} is no mail address; write user@domain, or @domain for all of a domain")
    number = marks.count(connection, marks.USERS)
    if connection.execute(select(users.c.id).where(users.c.key == key(address))).scalar() is not None:
        raise Refused(f"user {address} exists already")
    try:
        last = _last_version(connection, address)
        values = {"address": address, "key": key(address), "created": time.time(), "last_version": last}
        connection.execute(insert(users).values(**values, changed=number))
    except IntegrityError as error:  # another request was quicker
        raise Temporary(f"user {address} could not be added, try again: {error.orig}") from error


def _last_version(connection: Connection, address: str) -> int:
    """Return the highest version that a removed user with this address had."""
    query = select(removed_users.c.data).where(removed_users.c.key == key(address))
    removed = [orjson.loads(data) for data in connection.execute(query).scalars()]
    versions = (int(one["version"]) for data in removed for one in data["pipelines"])
    return max((*versions, *(int(data["user"].get("last_version", 0)) for data in removed)), default=0)


def remove_user(engine: Engine, address: str, *, author: str = "") -> None:
    """Remove a user with all keys and all versions of the pipeline. `restore_user` brings back all but the keys.

    Raises NotFound.
    """
    with engine.begin() as connection:
        remove(connection, address, author=author)


def remove(connection: Connection, address: str, *, author: str = "") -> None:
    """Remove a user inside the caller's transaction. Raises NotFound."""
    number = marks.count(connection, marks.USERS)
    marks.count(connection, marks.KEYS)
    user, now = _user_id(connection, address), time.time()
    (row,) = _rows(connection, select(users).where(users.c.id == user))
    data = {"user": row, "pipelines": _rows(connection, select(pipelines).where(pipelines.c.user_id == user))}
    values = {"address": row["address"], "key": row["key"], "removed": now, "author": author[:64], "changed": number}
    connection.execute(insert(removed_users).values(**values, data=orjson.dumps(data).decode()))
    connection.execute(delete(pipelines).where(pipelines.c.user_id == user))
    connection.execute(delete(access_keys).where(access_keys.c.user_id == user))
    connection.execute(delete(users).where(users.c.id == user))


def _rows(connection: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    """Return rows with plain strings as names, so that they can become JSON."""
    return [{str(name): value for name, value in row._mapping.items()} for row in connection.execute(query)]


def restore_user(engine: Engine, address: str) -> int:
    """Undo the last removal of a user; return the version of the live pipeline, 0 without one.

    The password and every version of the pipeline are as they were. Raises NotFound when no removal is known, Refused
    when there is such a user again.
    """
    with engine.begin() as connection:
        number = marks.count(connection, marks.USERS)
        last = removed_users.c.key == key(address), removed_users.c.removed >= time.time() - REMOVED_KEPT
        query = select(removed_users).where(*last).order_by(removed_users.c.id.desc()).limit(1)
        found = connection.execute(query).first()
        if found is None:
            raise NotFound(f"no user {address} was removed; `sendswitch user list --removed` shows all")
        if connection.execute(select(users.c.id).where(users.c.key == found.key)).scalar() is not None:
            raise Refused(f"user {address} exists again; its removal cannot be undone")
        data = orjson.loads(found.data)
        del data["user"]["id"]
        connection.execute(insert(users).values(**data["user"] | {"changed": number}))
        user = _user_id(connection, found.address)
        for one in data["pipelines"]:
            del one["id"]
            connection.execute(insert(pipelines).values(**one | {"user_id": user}))
        connection.execute(delete(removed_users).where(removed_users.c.id == found.id))
        return max((one["version"] for one in data["pipelines"] if one["role"] == "live"), default=0)


def forget_removed(engine: Engine, now: float) -> int:
    """Delete the removals that can no longer be undone. Return their number."""
    with engine.begin() as connection:
        old = removed_users.c.removed < now - REMOVED_KEPT
        return connection.execute(delete(removed_users).where(old)).rowcount


def list_removed(engine: Engine) -> list[Removed]:
    """Return the removals that can be undone, the newest first."""
    query = select(removed_users.c.address, removed_users.c.removed, removed_users.c.author)
    query = query.where(removed_users.c.removed >= time.time() - REMOVED_KEPT)
    with engine.connect() as connection:
        return [Removed(*row) for row in connection.execute(query.order_by(removed_users.c.id.desc()))]


def list_users(engine: Engine) -> list[User]:
    """Return all users by address."""
    last = _live_versions().subquery()
    query = (
        select(users.c.address, users.c.created, func.coalesce(last.c.v, 0), users.c.password != "")
        .select_from(users.outerjoin(last, last.c.user_id == users.c.id))
        .order_by(users.c.address)
    )
    with engine.connect() as connection:
        return [User(*row) for row in connection.execute(query)]


def set_password(engine: Engine, address: str, hashed: str) -> None:
    """Keep the hash of a user's password, '' for none. Raises NotFound."""
    with engine.begin() as connection:
        user = _user_id(connection, address)
        connection.execute(update(users).where(users.c.id == user).values(password=hashed))


def password(engine: Engine, address: str) -> tuple[str, str]:
    """Return a user's address and the hash of the password, both '' when there is no such user."""
    with engine.connect() as connection:
        query = select(users.c.address, users.c.password).where(users.c.key == key(address))
        row = connection.execute(query).first()
    return (str(row.address), str(row.password)) if row is not None else ("", "")


def set_pipeline(engine: Engine, address: str, text: str, *, author: str = "", role: str = "live") -> int:
    """Store a new version of a user's pipeline. Return its number. The text must have been checked. Raises NotFound.

    As a `candidate` it takes the place of an earlier one.
    """
    with engine.begin() as connection:
        return store(connection, address, text, author=author, role=role)


def store(connection: Connection, address: str, text: str, *, author: str = "", role: str = "live") -> int:
    """Store a version inside the caller's transaction; see `set_pipeline`."""
    user = _changed(connection, address)
    if role == "candidate":
        _retire(connection, user)
    return _store(connection, user, text, author, role)


def promote(engine: Engine, address: str, *, author: str = "") -> tuple[int, int]:
    """Make the candidate live, as a new version. Return the candidate's number and the new one. Raises NotFound."""
    with engine.begin() as connection:
        user = _changed(connection, address)
        candidate = pipelines.c.user_id == user, pipelines.c.role == "candidate"
        row = connection.execute(select(pipelines.c.version, pipelines.c.text).where(*candidate)).first()
        if row is None:
            raise NotFound(f"{address} has no candidate; `sendswitch pipeline candidate {address} FILE` sets one")
        _retire(connection, user)
        return int(row.version), _store(connection, user, row.text, author, "live")


def withdraw(engine: Engine, address: str) -> None:
    """Stop running the candidate. Raises NotFound when there is none."""
    with engine.begin() as connection:
        if not _retire(connection, _changed(connection, address)):
            raise NotFound(f"{address} has no candidate")


def roll_back(engine: Engine, address: str, version: int | None, *, author: str = "") -> tuple[int, int]:
    """Make an earlier version live again, as a new one. Return both numbers. Raises NotFound.

    Without `version` it is the last live version whose text is another than the current one's.
    """
    past = [stored for stored in history(engine, address) if stored.role == "live"]
    current = past[0].text if past else ""
    wanted = [s for s in past if (s.text != current if version is None else s.version == version)]
    if not wanted:
        what = "no earlier version that differs" if version is None else f"no live version {version}"
        raise NotFound(f"{address} has {what}; `sendswitch pipeline history {address}` shows all")
    return wanted[0].version, set_pipeline(engine, address, wanted[0].text, author=author)


def _store(connection: Connection, user: int, text: str, author: str, role: str) -> int:
    newest = select(func.max(pipelines.c.version)).where(pipelines.c.user_id == user)
    before: int = connection.execute(select(users.c.last_version).where(users.c.id == user)).scalar_one()
    version = max(before, int(connection.execute(newest).scalar() or 0)) + 1
    values = {"user_id": user, "version": version, "text": text, "created": time.time(), "role": role}
    connection.execute(insert(pipelines).values(**values, author=author[:64], summary=summary_of(text)))
    return version


def summary_of(text: str) -> str:
    """Return what nodes must know of a pipeline, '' when it cannot be read."""
    try:
        return read_pipeline(text, "").summary.to_text()
    except InvalidConfiguration:
        return ""


def _retire(connection: Connection, user: int) -> int:
    candidate = (pipelines.c.user_id == user) & (pipelines.c.role == "candidate")
    return connection.execute(update(pipelines).where(candidate).values(role="retired")).rowcount


_STORED = select(
    users.c.address,
    pipelines.c.version,
    pipelines.c.text,
    pipelines.c.created,
    pipelines.c.role,
    pipelines.c.author,
).join(users, users.c.id == pipelines.c.user_id)


def get_pipeline(engine: Engine, address: str, version: int | None = None) -> StoredPipeline:
    """Return a version of a user's pipeline, by default the live one. Raises NotFound."""
    query = _STORED.where(users.c.key == key(address)).order_by(pipelines.c.version.desc()).limit(1)
    if version is not None:
        query = query.where(pipelines.c.version == version)
    else:
        query = query.where(pipelines.c.role == "live")
    with engine.connect() as connection:
        row = connection.execute(query).first()
    if row is None:
        raise NotFound(f"{address} has no pipeline{'' if version is None else f' of version {version}'}")
    return StoredPipeline(*row)


def history(engine: Engine, address: str) -> list[StoredPipeline]:
    """Return every version of a user's pipeline, the newest first. Raises NotFound when there is no such user."""
    with engine.connect() as connection:
        _user_id(connection, address)
        query = _STORED.where(users.c.key == key(address)).order_by(pipelines.c.version.desc())
        return [StoredPipeline(*row) for row in connection.execute(query)]


def all_pipelines(engine: Engine) -> list[StoredPipeline]:
    """Return the live pipelines of all users."""
    last = _live_versions().subquery()
    query = _STORED.join(last, (last.c.user_id == pipelines.c.user_id) & (last.c.v == pipelines.c.version))
    with engine.connect() as connection:
        return [StoredPipeline(*row) for row in connection.execute(query)]


def _live_versions() -> Select[tuple[int, int]]:
    live = select(pipelines.c.user_id, func.max(pipelines.c.version).label("v")).where(pipelines.c.role == "live")
    return live.group_by(pipelines.c.user_id)


def _changed(connection: Connection, address: str) -> int:
    """Mark a user as changed by this transaction; return the user's number. Raises NotFound."""
    number, user = marks.count(connection, marks.USERS), _user_id(connection, address)
    connection.execute(update(users).where(users.c.id == user).values(changed=number))
    return user


def _user_id(connection: Connection, address: str) -> int:
    found = connection.execute(select(users.c.id).where(users.c.key == key(address))).scalar()
    if found is None:
        raise NotFound(f"there is no user {address}; `sendswitch user list` shows all, `sendswitch user add` adds one")
    return int(found)
