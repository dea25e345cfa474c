"""Open the database and bring its tables up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sendswitch.errors import InvalidConfiguration, Refused, Temporary

HEAD = "0004"

# What nodes that change tables lock in PostgreSQL, and for how many seconds they wait for each other elsewhere.
MIGRATION_LOCK, MIGRATION_WAIT = 7466, 60


def shown(url: URL) -> str:
    """A database's address without what may be secret: no password, and nothing of the query."""
    return url.set(query={}).render_as_string(hide_password=True)


def open_database(url: str, *, migrate: bool = True) -> Engine:
    """The database with its tables at this program's version; without `migrate` as it is, or not at all.

    Raises Temporary when it cannot be opened, InvalidConfiguration when the URL means nothing here, Refused when the
    tables are a newer program's.
    """
    try:
        address = make_url(url)
        # A connection that the server closed meanwhile is noticed before it is used.
        engine = create_engine(address, pool_pre_ping=True, pool_recycle=3600)
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
            Path(address.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _migrate(engine, migrate=migrate)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, SQLAlchemyError | OSError):
            raise Temporary(f"the database {shown(address)} cannot be opened: {error}") from error
        raise
    return engine


def _sqlite_settings(connection: object, record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined] # a DBAPI connection
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _migrate(engine: Engine, *, migrate: bool) -> None:
    with engine.connect() as connection:
        # Asked directly first: Alembic is only worth its import when there is something to do.
        if inspect(connection).has_table("alembic_version"):
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            if version == HEAD:
                return
            if version is not None and version > HEAD:
                raise Refused(
                    f"the database {shown(engine.url)} was made by a newer SendSwitch: it has version {version}, this"
                    f" program knows {HEAD}; install the newer one, or restore a backup from before"
                )
    if not migrate:
        raise Temporary(f"the database {shown(engine.url)} is of another version; the node brings it up at its start")
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with _alone(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction in which nobody else changes the tables: of two nodes that start at once, one waits.

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
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            yield connection
            return
        lock = f"sendswitch {engine.url.database}"[:64]  # it holds for the whole server, and no longer name is taken
        if not connection.execute(select(func.get_lock(lock, MIGRATION_WAIT))).scalar():
            raise Temporary(f"another node has been changing the database's tables for {MIGRATION_WAIT} seconds")
        try:
            yield connection
        finally:
            connection.execute(select(func.release_lock(lock)))
