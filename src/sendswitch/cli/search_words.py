"""Words of a search on the command line."""

from __future__ import annotations

from collections.abc import Iterable


def joined(words: Iterable[str]) -> str:
    """Return the words as one search with the same meaning."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """Return a word with the quotes that the shell took away: `subject:two words` is one condition."""
    name, colon, value = word.partition(":")
    return f'{name}:"{value}"' if colon and " " in value and '"' not in value else word
