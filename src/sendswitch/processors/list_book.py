"""Read the allow and deny lists that are kept in the database."""

from __future__ import annotations

from sqlalchemy import Engine

from sendswitch.db import lists
from sendswitch.processors.list_entries import Book, Entry


def read_book(engine: Engine, delimiters: str) -> Book:
    """Return every entry of the database as one book. `delimiters` are those of address extensions. Blocks."""
    return Book([(e.scope, e.list, Entry(e.entry, e.expires, e.reason)) for e in lists.entries(engine)], delimiters)
