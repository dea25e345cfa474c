"""The workers that run a user's pipeline: the site's, or those of the user's own on other machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, Engine, select, update

from sendswitch.db import marks
from sendswitch.db.tables import users
from sendswitch.errors import NotFound
from sendswitch.mail.address import key
from sendswitch.routing import fits_rabbitmq

# The values of when_offline: what happens to mail while no worker is there.
WhenOffline = Literal["pass", "defer", "hold", "quarantine", "pool"]
# Whose workers run a pipeline: the site's, or those of the user's own, over the web port or over RabbitMQ.
RunBy = Literal["site", "own", "own-rabbitmq"]
# The defaults for the site's workers and for a user's own. A mailbox without its own filter is better than none, as in
# the older systems; the site's filter must not be left out.
SITE_DEFAULT, OWN_DEFAULT = "defer", "pass"


@dataclass(frozen=True, slots=True)
class WorkersOf:
    """The workers that run the pipeline of a user, and what happens to mail while none of them is there."""

    address: str
    run_by: RunBy
    when_offline: str

    @property
    def own(self) -> bool:
        """Return whether they are the user's own."""
        return self.run_by != "site"


def site(address: str) -> WorkersOf:
    """Return what holds for a user about whom nothing else is known."""
    return WorkersOf(address, "site", SITE_DEFAULT)


def check(address: str, when_offline: str, *, run_by: RunBy, pipeline: bool) -> None:
    """Raise ValueError for what makes no sense. `pipeline` says whether the site has one for the user."""
    if run_by == "own-rabbitmq" and not fits_rabbitmq(address):
        raise ValueError(
            f"{address:.100} cannot be a name in RabbitMQ, which allows letters, digits and . _ + - only; let the"
            " workers of this user come over the web port (own)"
        )
    if when_offline == "pool" and run_by == "site":
        raise ValueError("when_offline: pool means the site's workers, and this mail is theirs already")
    if when_offline == "pool" and not pipeline:
        raise ValueError("when_offline: pool means the site's workers, and they have no pipeline to run; set one first")


def set_workers(engine: Engine, address: str, *, run_by: RunBy, when_offline: str = "") -> WorkersOf:
    """Have a user's pipeline run by workers of the user's own or by the site's. Without `when_offline` the default
    holds. It must have been checked. Raises NotFound.
    """
    with engine.begin() as connection:
        change(connection, address, run_by=run_by, when_offline=when_offline)
    return with_default(address, run_by, when_offline)


def change(connection: Connection, address: str, *, run_by: RunBy, when_offline: str) -> None:
    """Set a user's workers inside the caller's transaction. Raises NotFound."""
    number = marks.count(connection, marks.USERS)
    values = {"workers": run_by, "when_offline": when_offline, "changed": number}
    if not connection.execute(update(users).where(users.c.key == key(address)).values(**values)).rowcount:
        raise _no_user(address)


def of(engine: Engine, address: str) -> tuple[RunBy, str]:
    """Return whose workers run a user's pipeline, and `when_offline` as it was given. Raises NotFound."""
    query = select(users.c.workers, users.c.when_offline).where(users.c.key == key(address))
    with engine.connect() as connection:
        found = connection.execute(query).first()
    if found is None:
        raise _no_user(address)
    return found.workers, found.when_offline


def _no_user(address: str) -> NotFound:
    return NotFound(f"there is no user {address}; `sendswitch user add {address}` adds one")


def given(engine: Engine) -> dict[str, tuple[RunBy, str]]:
    """Return by address, for users with something else than all others, whose workers run the pipeline, and
    `when_offline` as it was given.
    """
    query = select(users.c.address, users.c.workers, users.c.when_offline).order_by(users.c.address)
    query = query.where((users.c.workers != "site") | (users.c.when_offline != ""))
    with engine.connect() as connection:
        return {row.address: (row.workers, row.when_offline) for row in connection.execute(query)}


def all_workers(engine: Engine) -> list[WorkersOf]:
    """Return the users for whom something else holds than for all others, by address."""
    return [with_default(address, run_by, when_offline) for address, (run_by, when_offline) in given(engine).items()]


def with_default(address: str, run_by: RunBy, when_offline: str) -> WorkersOf:
    """Return what holds for a user. Without `when_offline` the default."""
    return WorkersOf(address, run_by, when_offline or (SITE_DEFAULT if run_by == "site" else OWN_DEFAULT))
