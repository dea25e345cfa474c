"""The database: users and their pipelines (SQLAlchemy Core, Alembic). Knows no mail on its way."""
