"""The directory: it knows which user an address belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol


class Directory(Protocol):
    """The users of a site, wherever they are kept."""

    def lookup(self, key: str) -> str | asyncio.Future[str]:
        """Return the key of the user to whom an address belongs, '' for nobody, or a future of it. Must not block.

        `key` is the address in the form in which addresses are compared (`mail.address.key`). The future raises
        Temporary when the directory cannot be asked.
        """
        ...


class KnownUsers:
    """The users in the database, in memory."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = set(keys)

    def swap(self, keys: Iterable[str]) -> None:
        """Know these users instead."""
        self._keys = set(keys)

    def change(self, there: Iterable[str], gone: Iterable[str]) -> None:
        """Add users, and remove others."""
        self._keys.difference_update(gone)
        self._keys.update(there)

    def lookup(self, key: str) -> str:
        """Return the key itself when it is a user's, '' otherwise."""
        return key if key in self._keys else ""


NOBODY = KnownUsers()
