"""Use cases about users: whose mail has a pipeline, and who may log in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sendswitch.accounts import passwords, users, workers
from sendswitch.admin import rabbitmq
from sendswitch.admin.base import Actor, Installation, at, use_case


@dataclass(frozen=True, slots=True)
class UserSummary:
    """A user as listed. `pipeline` is the version of the live pipeline, None without one."""

    address: str
    pipeline: int | None
    login: bool
    since: datetime


@dataclass(frozen=True, slots=True)
class RemovedUser:
    """A removal that can be undone."""

    address: str
    removed: datetime
    author: str


@use_case("GET", "/users")
def list_users(installation: Installation, actor: Actor) -> tuple[UserSummary, ...]:
    """List all users by address."""
    found = users.list_users(installation.database())
    return tuple(UserSummary(one.address, one.version or None, bool(one.login), at(one.created)) for one in found)


@use_case("GET", "/users:removed")
def list_removed(installation: Installation, actor: Actor) -> tuple[RemovedUser, ...]:
    """List the users that `restore` can bring back, the newest removal first."""
    found = users.list_removed(installation.database())
    return tuple(RemovedUser(one.address, at(one.removed), one.author) for one in found)


@use_case("POST", "/users")
def add(installation: Installation, actor: Actor, *, address: str) -> None:
    """Add a user, or `@domain` for a whole domain. Mail is delivered as before until there is a pipeline."""
    users.add_user(installation.database(create=True), address)
    installation.changed()


@use_case("POST", "/users/{address}:remove")
def remove(installation: Installation, actor: Actor, *, address: str) -> None:
    """Remove a user and the pipeline. The user's mail is delivered unfiltered from then on.

    What the user's own workers have in RabbitMQ is removed first: nobody who gets the address later shares it.
    """
    engine = installation.database(create=True)
    if workers.of(engine, address)[0] == "own-rabbitmq" and installation.config.broker.urls:
        rabbitmq.uninstall(installation.config, address)
    users.remove_user(engine, address, author=actor.name)
    installation.changed()


@use_case("POST", "/users/{address}:restore")
def restore(installation: Installation, actor: Actor, *, address: str) -> int:
    """Bring back a removed user. Return the version of the live pipeline, 0 without one."""
    version = users.restore_user(installation.database(create=True), address)
    installation.changed()
    return version


@use_case("POST", "/users/{address}:password")
def set_password(installation: Installation, actor: Actor, *, address: str, password: str | None = None) -> str:
    """Set the password of a user, '' for no login. Without `password` a new one is made. Return the password."""
    new = passwords.generate() if password is None else password
    passwords.set_password(installation.database(create=True), address, new)
    return new
