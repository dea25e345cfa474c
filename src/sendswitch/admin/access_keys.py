"""Use cases about the keys of users' programs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from sendswitch.accounts import access_keys
from sendswitch.admin.base import Actor, Installation, at, moment, use_case

Scope = Literal["work"]


@dataclass(frozen=True, slots=True)
class KeySummary:
    """A key as listed, without the key itself. `used` is None for one that was never used."""

    id: int
    address: str
    scope: Scope
    name: str
    created: datetime
    used: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made. Nothing shows it again."""

    id: int
    key: str


@use_case("GET", "/keys")
def list_keys(installation: Installation, actor: Actor) -> tuple[KeySummary, ...]:
    """List the keys of all users."""
    found = access_keys.list_keys(installation.database())
    return tuple(KeySummary(one.id, one.address, "work", one.name, at(one.created), moment(one.used)) for one in found)


@use_case("POST", "/keys")
def add(
    installation: Installation,
    actor: Actor,
    *,
    address: str,
    scope: Scope = "work",
    name: Annotated[str, Field(max_length=100)] = "",
) -> NewKey:
    """Make a key of a user. With the scope `work` it lets the user's own workers in."""
    return NewKey(*access_keys.add_key(installation.database(create=True), address, scope, name))


@use_case("POST", "/keys/{number}:remove")
def remove(installation: Installation, actor: Actor, *, number: int) -> None:
    """Remove a key. A worker that has it is disconnected."""
    access_keys.remove_key(installation.database(create=True), number)
    installation.changed()
