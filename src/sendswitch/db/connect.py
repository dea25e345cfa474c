"""Open the database and bring its tables up to date."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sendswitch import durable, logs
from sendswitch.errors import InvalidConfiguration, Refused, Temporary, in_words

P = ParamSpec("P")
T = TypeVar("T")

HEAD = "0013"

# Threads for what asks the database. It may hang with every one of them, and the mail path has others.
THREADS = 8

# What nodes that change tables lock in PostgreSQL, and for how many seconds they wait for each other elsewhere.
MIGRATION_LOCK, MIGRATION_WAIT = 7466, 60


_threads = ThreadPoolExecutor(THREADS, "database")


async def in_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function that blocks on the database, in a thread. Raises what the function raises."""
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(function, *arguments, **named))


def shown(url: URL) -> str:
    """Return the address of a database without its password and its query, which may be secret."""
    return url.set(query={}).render_as_string(hide_password=True)


def open_database(url: str, *, migrate: bool = True) -> Engine:
    """Return the database with its tables at this program's version. Without `migrate` an old or missing one is an
    error.

    Raises Temporary when it cannot be opened, InvalidConfiguration for a wrong URL, and Refused when a newer program
    made the tables.
    """
    try:
        address = make_url(url)
        # A connection that the server closed meanwhile is noticed before it is used. Parameters may be secret, and are
        # never part of an error.
        # MariaDB and MySQL by themselves would show a transaction all rows as they were at its first query, and so
        # older than what it changes.
        level = {"isolation_level": "READ COMMITTED"} if address.get_backend_name() in ("mysql", "mariadb") else {}
        engine = create_engine(address, pool_pre_ping=True, pool_recycle=3600, hide_parameters=True, **level)
    except ArgumentError as error:
        raise InvalidConfiguration([f"database.url: {error}"]) from error
    except ModuleNotFoundError as error:
        extra = "postgresql" if error.name == "psycopg" else "mysql" if error.name == "pymysql" else ""
        hint = f"pip install 'sendswitch[{extra}]'" if extra else "use postgresql+psycopg, mysql+pymysql or sqlite"
        raise InvalidConfiguration([f"database.url needs {error.name}, which is not installed; {hint}"]) from error
    if address.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _sqlite_settings)
    try:
        if address.database and address.get_backend_name() == "sqlite":
            if not migrate and not Path(address.database).exists():
                raise Temporary(f"the database {shown(address)} is not there yet; the node makes it at its start")
            with _made_for_its_owner(Path(address.database)):
                _migrate(engine, migrate=migrate)
        else:
            _migrate(engine, migrate=migrate)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, SQLAlchemyError | OSError):
            raise Temporary(f"the database {shown(address)} cannot be opened: {in_words(error)}") from error
        raise
    return engine


@contextmanager
def _made_for_its_owner(file: Path) -> Iterator[None]:
    """Make the folders of a database's file, and give what root makes to the owner of the folder around it.

    A node that does not run as root could not write it otherwise.
    """
    new = [path for path in (file, *file.parents) if not path.exists()]
    owner = next(path for path in file.parents if path.exists()).stat()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not file.exists():
        file.touch(mode=0o600)
    yield
    if new and os.geteuid() == 0:
        for path in (*new, *file.parent.glob(f"{file.name}-*")):
            with suppress(FileNotFoundError):
                os.chown(path, owner.st_uid, owner.st_gid)


def _sqlite_settings(connection: object, record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined] # a DBAPI connection
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _migrate(engine: Engine, *, migrate: bool) -> None:
    with engine.connect() as connection:
        # Asked directly first: Alembic is only worth its import when there is something to do.
        if _current(connection):
            return
        before = _version(connection)
    if not migrate:
        raise Temporary(f"the database {shown(engine.url)} is of another version; the node brings it up at its start")
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with alone(engine) as connection:
        if not _current(connection):  # the node that we waited for may have done it, and be newer
            copy = _copy(engine, before) if before else None
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if before:
                logs.database_upgraded(before=before, after=HEAD, copy=str(copy or ""))


def _current(connection: Connection) -> bool:
    """Return whether the tables are at this program's version. Raises Refused when they are a newer one's."""
    version = _version(connection)
    if version > HEAD:
        raise Refused(
            f"the database {shown(connection.engine.url)} was made by a newer SendSwitch: it has version {version},"
            f" this program knows {HEAD}; install the newer one, or restore a backup from before"
        )
    return version == HEAD


def _version(connection: Connection) -> str:
    """Return the version of the tables, '' when there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")


def _copy(engine: Engine, version: str) -> Path | None:
    """Copy an SQLite database durably to a name that ends in its version. Return the copy, None for other databases.

    A program of that version runs again when the copy replaces the database.
    """
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return None
    file = Path(engine.url.database)
    copy, part = (file.with_name(f"{file.name}.{version}{end}") for end in ("", ".part"))
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(part)) as target:
        source.backup(target)
    owner = file.stat()
    if os.geteuid() == 0:
        os.chown(part, owner.st_uid, owner.st_gid)
    durable.sync(part)
    durable.publish(part, copy)
    return copy


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """Begin a transaction in which no other process changes the tables. Of two nodes that start at once, one waits.

    The locks end with the connection, so that a node which is killed leaves none.
    """
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # Python's driver would begin none for statements that change tables.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
        return
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            yield connection
        return
    # The lock is a connection's, and must outlive the transaction: who gets it next reads what was committed.
    with engine.connect() as keeper:
        lock = f"sendswitch {engine.url.database}"[:64]  # it holds for the whole server, and no longer name is taken
        if not keeper.execute(select(func.get_lock(lock, MIGRATION_WAIT))).scalar():
            raise Temporary(f"another node has been changing the database's tables for {MIGRATION_WAIT} seconds")
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            keeper.execute(select(func.release_lock(lock)))
