"""The workers that run a user's pipeline: the site's, or those of the user's own on other machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, Engine, select, update

from sendswitch.db.tables import users
from sendswitch.errors import NotFound
from sendswitch.mail.address import key

# The values of when_offline: what happens to mail while no worker is there.
WhenOffline = Literal["pass", "defer", "hold", "quarantine", "pool"]
# The defaults for the site's workers and for a user's own. A mailbox without its own filter is better than none, as in
# the older systems; the site's filter must not be left out.
SITE_DEFAULT, OWN_DEFAULT = "defer", "pass"


@dataclass(frozen=True, slots=True)
class WorkersOf:
    """The workers that run the pipeline of a user, and what happens to mail while none of them is there."""

    address: str
    own: bool
    when_offline: str


def site(address: str) -> WorkersOf:
    """Return what holds for a user about whom nothing else is known."""
    return WorkersOf(address, False, SITE_DEFAULT)


def check(when_offline: str, *, own: bool, pipeline: bool) -> None:
    """Raise ValueError for a value that makes no sense. `pipeline` says whether the site has one for the user."""
    if when_offline == "pool" and not own:
        raise ValueError("when_offline: pool means the site's workers, and this mail is theirs already")
    if when_offline == "pool" and not pipeline:
        raise ValueError("when_offline: pool means the site's workers, and they have no pipeline to run; set one first")


def set_workers(engine: Engine, address: str, *, own: bool, when_offline: str = "") -> WorkersOf:
    """Have a user's pipeline run by workers of the user's own or by the site's. Without `when_offline` the default
    holds. It must have been checked. Raises NotFound.
    """
    with engine.begin() as connection:
        change(connection, address, own=own, when_offline=when_offline)
    return _told(address, own, when_offline)


def change(connection: Connection, address: str, *, own: bool, when_offline: str) -> None:
    """Set a user's workers inside the caller's transaction. Raises NotFound."""
    values = {"workers": "own" if own else "site", "when_offline": when_offline}
    if not connection.execute(update(users).where(users.c.key == key(address)).values(**values)).rowcount:
        raise NotFound(f"there is no user {address}; `sendswitch user add {address}` adds one")


def given(engine: Engine) -> dict[str, tuple[bool, str]]:
    """Return by address, for users with something else than all others, whether they have workers of their own, and
    their `when_offline` as it was given.
    """
    query = select(users.c.address, users.c.workers, users.c.when_offline).order_by(users.c.address)
    query = query.where((users.c.workers != "site") | (users.c.when_offline != ""))
    with engine.connect() as connection:
        return {row.address: (row.workers == "own", row.when_offline) for row in connection.execute(query)}


def all_workers(engine: Engine) -> list[WorkersOf]:
    """Return the users for whom something else holds than for all others, by address."""
    return [_told(address, own, when_offline) for address, (own, when_offline) in given(engine).items()]


def _told(address: str, own: bool, when_offline: str) -> WorkersOf:
    return WorkersOf(address, own, when_offline or (OWN_DEFAULT if own else SITE_DEFAULT))
