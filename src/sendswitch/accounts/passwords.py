"""Passwords of users. The database keeps their Argon2id hashes (RFC 9106), and nothing else keeps a password."""

from __future__ import annotations

import asyncio
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from sendswitch.accounts import users
from sendswitch.db.connect import in_thread
from sendswitch.errors import Temporary

# One check takes a core for some ten milliseconds, on purpose: few at once, and not many who wait.
AT_ONCE, MOST_WAITING = 2, 50
# Seconds for the database to answer.
LIMIT = 10.0
# Bytes of a password; hashing has no use for more.
LONGEST = 1024
# Octets of chance in a generated password: nobody guesses 16.
CHANCE = 18

# OWASP's parameters for Argon2id: 19 MiB and two passes.
hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def generate() -> str:
    """Return a new password."""
    return secrets.token_urlsafe(CHANCE)


def set_password(engine: Engine, address: str, password: str) -> None:
    """Set a user's password, or with '' remove it. Raises NotFound, and ValueError for a password that is not
    allowed.
    """
    if not address.rpartition("@")[0]:
        raise ValueError(f"{address} is a domain; only a user with a mailbox can log in")
    if len(password.encode()) > LONGEST or "\0" in password:
        raise ValueError(f"a password has at most {LONGEST} bytes and no NUL")
    users.set_password(engine, address, hasher.hash(password) if password else "")


class Passwords:
    """The check of passwords. A wrong password, an unknown user and a user without one take the same time and look the
    same.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places = asyncio.Semaphore(AT_ONCE)
        self.waiting = 0
        self._nobodys = hasher.hash(generate())  # the hash of a password that nobody has

    async def check(self, user: str, password: str) -> str:
        """Return the address of the user with this password, '' when there is none. Raises Temporary."""
        if self.waiting >= MOST_WAITING:
            raise Temporary("too many log in at once")
        self.waiting += 1
        try:
            async with asyncio.timeout(LIMIT), self._places:
                return await in_thread(self._check, user, password)
        except TimeoutError as error:
            raise Temporary(f"nobody said within {LIMIT:g} s who {user[:100]!r} is") from error
        finally:
            self.waiting -= 1

    def _check(self, user: str, password: str) -> str:
        try:
            address, hashed = users.password(self._engine, user)
        except SQLAlchemyError as error:
            raise Temporary(f"passwords cannot be read: {error}") from error
        try:
            hasher.verify(hashed or self._nobodys, password)
        except (VerifyMismatchError, InvalidHashError):
            return ""
        except Argon2Error as error:  # no memory, say: that proves nothing about the password
            raise Temporary(f"a password cannot be checked: {error}") from error
        return address
