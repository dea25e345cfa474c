"""The tables in the code and those the migrations make are the same."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from sendswitch.db.connect import open_database
from sendswitch.db.tables import metadata


def test_migrations_make_the_tables(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    engine.dispose()
    again = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    again.dispose()
