"""The database: tables, lists and the journal (SQLAlchemy Core, Alembic). Knows no mail on its way."""
