"""Use cases about held mail, which waits for a decision."""

from __future__ import annotations

import sqlite3
import time
from enum import StrEnum

from sendswitch.admin.base import PAGE, Actor, At, Installation, Page, use_case
from sendswitch.admin.deliveries import DeliverySummary, Limit, Results, each, page, reason_of
from sendswitch.admin.merging import pages, results
from sendswitch.spool import admin
from sendswitch.spool.states import State


class HeldAnswer(StrEnum):
    """The decision about held mail, as `spool.admin.ANSWERS` knows it."""

    PASS = "pass"  # noqa: S105 - a decision
    DENY = "deny"
    QUARANTINE = "quarantine"
    DISCARD = "discard"


@use_case("GET", "/held", At.EVERY, merge=pages)
def list_held(
    installation: Installation, actor: Actor, *, search: str = "", limit: Limit = PAGE, after: str = ""
) -> Page[DeliverySummary]:
    """List held mail, the oldest first."""
    return page(installation, (State.HELD,), search, limit, after)


@use_case("POST", "/held:answer", At.EVERY, merge=results)
def answer(
    installation: Installation,
    actor: Actor,
    *,
    answer: HeldAnswer,
    reason: str = "",
    ids: tuple[str, ...] = (),
    search: str = "",
    after: str = "",
) -> Results:
    """Decide about held mail. It is not filtered again; a second answer is refused."""
    why = reason_of(reason)

    def act(connection: sqlite3.Connection, id_: str) -> None:
        admin.answer(connection, id_, answer.value, time.time(), by=actor.name, reason=why)

    return each(installation, State.HELD, ids, search, after, act)
