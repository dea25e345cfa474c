"""Passwords of users, in the database as Argon2id hashes (RFC 9106) and nowhere else."""

from __future__ import annotations

import asyncio
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from sendswitch.db import users
from sendswitch.errors import Temporary

# One check takes 64 MiB and a core for some ten milliseconds, on purpose: few at once, and not many who wait.
AT_ONCE, MOST_WAITING = 2, 50
# Bytes of a password; hashing has no use for more.
LONGEST = 1024
# Octets of chance in a generated password: nobody guesses 16.
CHANCE = 18

_hasher = PasswordHasher()


def generate() -> str:
    """A new password."""
    return secrets.token_urlsafe(CHANCE)


def set_password(engine: Engine, address: str, password: str) -> None:
    """Give a user a password, or take it away with ''. Raises NotFound, ValueError for one that cannot be."""
    if not address.rpartition("@")[0]:
        raise ValueError(f"{address} is a domain; only somebody with a mailbox can log in")
    if len(password.encode()) > LONGEST or "\0" in password:
        raise ValueError(f"a password has at most {LONGEST} bytes and no NUL")
    users.set_password(engine, address, _hasher.hash(password) if password else "")


class Passwords:
    """Checks them. A wrong one, no user and a user without one take the same time and look the same."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def check(self, user: str, password: str) -> str:
        """The address of the user whose password this is, '' for nobody. Raises Temporary: ask again later."""
        if self._waiting >= MOST_WAITING:
            raise Temporary("too many log in at once")
        self._waiting += 1
        try:
            async with self._places:
                return await asyncio.to_thread(self._check, user, password)
        finally:
            self._waiting -= 1

    def _check(self, user: str, password: str) -> str:
        try:
            address, hashed = users.password(self._engine, user)
        except SQLAlchemyError as error:
            raise Temporary(f"passwords cannot be read: {error}") from error
        try:
            _hasher.verify(hashed or _nobodys(), password)
        except (VerificationError, InvalidHashError):
            return ""
        return address


def _nobodys() -> str:
    """The hash of a password that nobody has."""
    global _nobody
    _nobody = _nobody or _hasher.hash(generate())
    return _nobody


_nobody = ""
