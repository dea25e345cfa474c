"""Use cases about the quarantine."""

from __future__ import annotations

import sqlite3
import time

from sendswitch.admin.base import PAGE, Actor, At, Installation, Page, use_case
from sendswitch.admin.deliveries import DeliverySummary, Limit, Results, each, page
from sendswitch.admin.merging import pages, results
from sendswitch.spool import admin
from sendswitch.spool.states import State


@use_case("GET", "/quarantine", At.EVERY, merge=pages)
def list_quarantine(
    installation: Installation, actor: Actor, *, search: str = "", limit: Limit = PAGE, after: str = ""
) -> Page[DeliverySummary]:
    """List the quarantine, the oldest first."""
    return page(installation, (State.QUARANTINED,), search, limit, after)


@use_case("POST", "/quarantine:release", At.EVERY, merge=results)
def release(
    installation: Installation, actor: Actor, *, ids: tuple[str, ...] = (), search: str = "", after: str = ""
) -> Results:
    """Deliver quarantined mail to its recipients without filtering it again; a second release is refused."""

    def act(connection: sqlite3.Connection, id_: str) -> None:
        admin.release(connection, id_, time.time(), by=actor.name)

    return each(installation, State.QUARANTINED, ids, search, after, act)


@use_case("POST", "/quarantine:delete", At.EVERY, merge=results)
def delete(
    installation: Installation, actor: Actor, *, ids: tuple[str, ...] = (), search: str = "", after: str = ""
) -> Results:
    """Delete quarantined mail. Until its record goes, `requeue` brings it back."""

    def act(connection: sqlite3.Connection, id_: str) -> None:
        admin.delete(connection, id_, time.time(), by=actor.name)

    return each(installation, State.QUARANTINED, ids, search, after, act)
