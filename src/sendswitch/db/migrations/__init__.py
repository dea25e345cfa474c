"""Alembic's scripts: how each version of the tables becomes the next."""
