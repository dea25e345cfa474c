"""Use cases about routes: whose workers run a user's pipeline, and what happens to mail while none of them is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sendswitch.accounts import users, workers
from sendswitch.accounts.routes import read_pipeline
from sendswitch.accounts.workers import WhenOffline
from sendswitch.admin.base import Actor, Installation, use_case
from sendswitch.conditions.pipeline import check_own
from sendswitch.errors import NotFound

Whose = Literal["site", "own"]


@dataclass(frozen=True, slots=True)
class RouteSummary:
    """A user's route: whose workers run the pipeline, and its live version, None without one."""

    address: str
    run_by: Whose
    when_offline: str
    pipeline: int | None


@use_case("GET", "/routes")
def list_routes(installation: Installation, actor: Actor) -> tuple[RouteSummary, ...]:
    """List the routes of all users by address."""
    told = {one.address: one for one in workers.all_workers(installation.database())}
    found = users.list_users(installation.database())
    return tuple(_summary(told.get(user.address, workers.site(user.address)), user.version) for user in found)


@use_case("POST", "/routes/{address}")
def set_route(
    installation: Installation,
    actor: Actor,
    *,
    address: str,
    run_by: Whose,
    when_offline: WhenOffline | None = None,
) -> RouteSummary:
    """Have a user's pipeline run by workers of the site or of the user's own.

    `when_offline` is what happens to mail while none of them is there; by default `pass` for a user's own workers, and
    `defer` for the site's.
    """
    engine = installation.database(create=True)
    try:
        stored = users.get_pipeline(engine, address)
        version = stored.version
        if run_by == "own":
            check_own(read_pipeline(stored.text, f"the pipeline of {address}"), f"the pipeline of {address}")
    except NotFound:
        version = 0
    if when_offline is not None:
        workers.check(when_offline, own=run_by == "own", pipeline=version > 0)
    told = workers.set_workers(engine, address, own=run_by == "own", when_offline=when_offline or "")
    installation.changed()
    return _summary(told, version)


def _summary(told: workers.WorkersOf, version: int) -> RouteSummary:
    return RouteSummary(told.address, "own" if told.own else "site", told.when_offline, version or None)
