"""Text from strangers and from users' programs, made fit to be kept."""

from __future__ import annotations


def storable(text: object, limit: int) -> str:
    """Return `text` as JSON and every database can keep it, at most `limit` characters.

    Without NUL, which PostgreSQL refuses, and without half characters (lone surrogates), which are no UTF-8; both can
    come by mail: a Subject in UTF-7 decodes to anything.
    """
    if not text:
        return ""
    cut = str(text)[:limit]
    return cut if cut.isascii() and "\0" not in cut else cut.replace("\0", "").encode("utf-8", "replace").decode()
