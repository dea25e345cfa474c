"""Search words on the command line, and what the journal finds by them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sendswitch.config.model import Config
from sendswitch.errors import Temporary, in_words
from sendswitch.journal.search import NAMES, Term, parse

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sendswitch.db.journal import Found


def read_terms(words: Iterable[str], known: Sequence[str] = NAMES) -> list[Term]:
    """Return the conditions that these words say. Raises InvalidSearch."""
    now = time.time()
    return [term for word in words for term in parse(_quoted(word), now, known)]


def joined(words: Iterable[str]) -> str:
    """Return the words as one text with the same meaning."""
    return " ".join(map(_quoted, words))


def search(config: Config, terms: Sequence[Term], limit: int) -> list[Found]:
    """Return what the journal finds, the newest first. Raises Temporary when it cannot be read."""
    from sendswitch.db.connect import open_database

    return search_in(open_database(config.database_url, migrate=False), terms, limit)


def search_in(engine: Engine, terms: Sequence[Term], limit: int) -> list[Found]:
    """Return what the journal in a database finds, the newest first. Raises Temporary when it cannot be read."""
    from sqlalchemy.exc import SQLAlchemyError

    from sendswitch.db import journal

    try:
        return journal.find(engine, terms, limit=limit)
    except SQLAlchemyError as error:
        raise Temporary(f"the journal cannot be read: {in_words(error)}") from error


def _quoted(word: str) -> str:
    """Return a word with the quotes that the shell took away: `subject:two words` is one condition."""
    name, colon, value = word.partition(":")
    return f'{name}:"{value}"' if colon and " " in value and '"' not in value else word
