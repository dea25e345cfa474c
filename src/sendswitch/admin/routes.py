"""Use cases about routes: whose workers run a user's pipeline, and what happens to mail while none of them is there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from sendswitch.accounts import users, workers
from sendswitch.accounts.workers import RunBy, WhenOffline
from sendswitch.admin import rabbitmq
from sendswitch.admin.base import Actor, Installation, use_case
from sendswitch.conditions.pipeline import check_own, read_pipeline
from sendswitch.errors import NotFound, Refused


@dataclass(frozen=True, slots=True)
class RouteSummary:
    """A user's route: whose workers run the pipeline, and its live version, None without one."""

    address: str
    run_by: RunBy
    when_offline: str
    pipeline: int | None


@dataclass(frozen=True, slots=True)
class InstalledRoute:
    """A route over RabbitMQ. `url` is how the user's workers connect, with the password that nothing shows again, ''
    where no account was made.
    """

    address: str
    when_offline: str
    url: str


@use_case("GET", "/routes")
def list_routes(installation: Installation, actor: Actor) -> tuple[RouteSummary, ...]:
    """List the routes of all users by address."""
    told = {one.address: one for one in workers.all_workers(installation.database())}
    found = users.list_users(installation.database())
    return tuple(_summary(told.get(user.address, workers.site(user.address)), user.version) for user in found)


@use_case("POST", "/routes/{address}:set")
def set_route(
    installation: Installation,
    actor: Actor,
    *,
    address: str,
    run_by: RunBy,
    when_offline: WhenOffline | None = None,
) -> RouteSummary:
    """Have a user's pipeline run by workers of the site or of the user's own.

    `when_offline` is what happens to mail while none of them is there; by default `pass` for a user's own workers, and
    `defer` for the site's.
    """
    if run_by == "own-rabbitmq":
        raise Refused(f"over RabbitMQ they need a queue and an account: sendswitch route install {address}")
    version = _checked(installation, address, run_by, when_offline)
    told = workers.set_workers(installation.database(), address, run_by=run_by, when_offline=when_offline or "")
    installation.changed()
    return _summary(told, version)


@use_case("POST", "/routes/{address}:install")
def install(
    installation: Installation,
    actor: Actor,
    *,
    address: str,
    account: bool = True,
    new_password: bool = False,
    when_offline: WhenOffline | None = None,
) -> InstalledRoute:
    """Have a user's pipeline run by the user's own workers over RabbitMQ, with what they need there: a queue and, if
    asked, an account. An account that this route has already keeps its password, unless a new one is asked for; one
    that was there for something else gets a new one.
    """
    _checked(installation, address, "own-rabbitmq", when_offline)
    run_by, kept = workers.of(installation.database(), address)
    already = run_by == "own-rabbitmq"
    rabbitmq.install_queue(installation.config, address)
    url = ""
    if account and (new_password or not already or not rabbitmq.has_account(installation.config, address)):
        url = rabbitmq.make_account(installation.config, address)
    told = workers.set_workers(
        installation.database(),
        address,
        run_by="own-rabbitmq",
        when_offline=when_offline or (kept if already else ""),
    )
    installation.changed()
    return InstalledRoute(address, told.when_offline, url)


@use_case("POST", "/routes/{address}:uninstall")
def uninstall(installation: Installation, actor: Actor, *, address: str) -> None:
    """Have a user's pipeline run by the site's workers again, and remove the account and the queue in RabbitMQ. They
    are also removed where there is no such user any more. Raises ValueError for what is no address.
    """
    if not users.is_owner(address):
        raise ValueError(f"{address!r} is no mail address")
    engine = installation.database(create=True)
    with suppress(NotFound):
        if workers.of(engine, address)[0] == "own-rabbitmq":
            workers.set_workers(engine, address, run_by="site")
            installation.changed()
    rabbitmq.uninstall(installation.config, address)


def _checked(installation: Installation, address: str, run_by: RunBy, when_offline: WhenOffline | None) -> int:
    """Return the version of the user's live pipeline, 0 without one. Raises InvalidConfiguration or ValueError where it
    cannot be run so, NotFound for no such user.
    """
    engine = installation.database(create=True)
    workers.of(engine, address)
    try:
        stored = users.get_pipeline(engine, address)
        version = stored.version
        if run_by != "site":
            check_own(read_pipeline(stored.text, f"the pipeline of {address}"), f"the pipeline of {address}")
    except NotFound:
        version = 0
    workers.check(address, when_offline or "", run_by=run_by, pipeline=version > 0)
    return version


def _summary(told: workers.WorkersOf, version: int) -> RouteSummary:
    return RouteSummary(told.address, told.run_by, told.when_offline, version or None)
