"""Use cases about users, pipelines and lists as one file: export it, plan its changes, and apply them."""

from __future__ import annotations

from dataclasses import dataclass

from sendswitch.admin import desired_state as declared
from sendswitch.admin.base import Actor, Installation, use_case
from sendswitch.processors import registry
from sendswitch.processors.list_entries import checked
from sendswitch.processors.masks import masked


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One change: `of` names the user or the list, `what` is add, change or remove. Secrets in `diff` are masked."""

    of: str
    what: str
    diff: tuple[str, ...]


@use_case("GET", "/configuration")
def export(installation: Installation, actor: Actor, *, secrets: bool = False) -> str:
    """Return users, live pipelines and lists as TOML. Secrets are masked unless `secrets`."""
    return declared.export(installation.database(), show=str if secrets else masked)


@use_case("POST", "/configuration:plan")
def plan(
    installation: Installation, actor: Actor, *, text: str, name: str = "file", prune: bool = False
) -> tuple[PlannedChange, ...]:
    """Return the changes that `apply` would make. With `prune` users and entries that the file lacks are removed."""
    return tuple(map(_planned, _steps(installation, text, name, prune)))


@use_case("POST", "/configuration:apply")
def apply(
    installation: Installation, actor: Actor, *, text: str, name: str = "file", prune: bool = False
) -> tuple[PlannedChange, ...]:
    """Make users, pipelines and lists as the file says: all changes or none. Return the changes."""
    steps = _steps(installation, text, name, prune)
    declared.apply(installation.database(create=True), steps, author=actor.name)
    if steps:
        installation.changed()
    return tuple(map(_planned, steps))


def _steps(installation: Installation, text: str, name: str, prune: bool) -> list[declared.Change]:
    config = installation.config

    def check(pipeline: str, place: str) -> object:
        return registry.check(pipeline, place, config.pipelines.deadline)

    wanted = declared.read(text, name, check, checked)
    return declared.plan(installation.database(create=True), wanted, prune=prune)


def _planned(step: declared.Change) -> PlannedChange:
    return PlannedChange(step.of, step.what, tuple(step.diff(masked)))
