"""Use cases about users' pipelines: versions, the candidate beside the live one, and how the two compare."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field

from sendswitch.accounts import users
from sendswitch.admin.base import Actor, Installation, at, use_case
from sendswitch.conditions.pipeline import PipelineConfig
from sendswitch.db import journal
from sendswitch.errors import NotFound
from sendswitch.mail.ids import to_text
from sendswitch.processors import registry
from sendswitch.processors.masks import masked


@dataclass(frozen=True, slots=True)
class PipelineVersion:
    """One version of a pipeline. `role` is live, earlier, candidate or retired; `steps` are the processors in order."""

    address: str
    version: int
    role: str
    created: datetime
    author: str
    steps: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """The difference of two versions as a unified diff. `same` is False when masked secrets alone differ."""

    old: int
    new: int
    diff: tuple[str, ...]
    same: bool


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version that was stored, and the processors of its steps."""

    version: int
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A version that became live again or from a candidate, and the number it has now."""

    was: int
    version: int


@dataclass(frozen=True, slots=True)
class ActionCount:
    """A pair of actions, the live pipeline's and the candidate's, and the number of messages with it."""

    was: str
    now: str
    differs: bool
    messages: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One delivery that the candidate would have treated differently."""

    id: str
    sender: str
    recipient: str
    subject: str
    was: str
    now: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside the live pipeline: messages compared, messages with the same verdict, and the differences."""

    version: int
    total: int
    agreed: int
    actions: tuple[ActionCount, ...]
    differences: tuple[Disagreement, ...]


@use_case("GET", "/users/{address}/pipeline")
def show(
    installation: Installation, actor: Actor, *, address: str, version: int | None = None, secrets: bool = False
) -> PipelineVersion:
    """Show a user's pipeline, by default the live one. Secrets in it are masked unless `secrets`."""
    return _version(users.get_pipeline(installation.database(), address, version), secrets=secrets)


@use_case("GET", "/users/{address}/pipeline/versions")
def history(
    installation: Installation, actor: Actor, *, address: str, secrets: bool = False
) -> tuple[PipelineVersion, ...]:
    """List every version of a user's pipeline, the newest first."""
    stored = users.history(installation.database(), address)
    live = next((one.version for one in stored if one.role == "live"), 0)
    return tuple(_version(one, live=live, secrets=secrets) for one in stored)


def _version(stored: users.StoredPipeline, *, secrets: bool, live: int = 0) -> PipelineVersion:
    role = "earlier" if stored.role == "live" and live not in (0, stored.version) else stored.role
    text = stored.text if secrets else masked(stored.text)
    steps = steps_of(PipelineConfig(**tomllib.loads(stored.text)))
    return PipelineVersion(stored.owner, stored.version, role, at(stored.created), stored.author, steps, text)


def steps_of(config: PipelineConfig) -> tuple[str, ...]:
    """Return the processors of a pipeline in their order."""
    return tuple(step.use for step in config.step)


@use_case("GET", "/users/{address}/pipeline:diff")
def diff(
    installation: Installation,
    actor: Actor,
    *,
    address: str,
    old: int | None = None,
    new: int | None = None,
    secrets: bool = False,
) -> VersionDiff:
    """Compare two versions of a user's pipeline, by default the live one and the one before it. Raises NotFound."""
    engine = installation.database()
    live = [stored.version for stored in users.history(engine, address) if stored.role == "live"]
    if old is None and new is None and len(live) < 2:
        raise NotFound(f"{address} has had no other pipeline")
    numbers = (live[1] if old is None else old, live[0] if new is None else new)
    before, after = (users.get_pipeline(engine, address, number) for number in numbers)
    was, now = ((one.text if secrets else masked(one.text)).splitlines() for one in (before, after))
    names = f"version {before.version}", f"version {after.version}"
    lines = tuple(difflib.unified_diff(was, now, *names, lineterm=""))
    return VersionDiff(before.version, after.version, lines, before.text == after.text)


@use_case("POST", "/pipelines:check")
def check(installation: Installation, actor: Actor, *, text: str, name: str = "pipeline") -> tuple[str, ...]:
    """Check the text of a pipeline. Return its processors. Raises InvalidConfiguration with every error."""
    return steps_of(registry.check(text, name, installation.config.pipelines.deadline))


@use_case("POST", "/users/{address}/pipeline")
def set_live(
    installation: Installation, actor: Actor, *, address: str, text: str, name: str = "pipeline"
) -> StoredVersion:
    """Check a pipeline and make it the user's. It applies from now on, to deferred mail too."""
    steps = check(installation, actor, text=text, name=name)
    version = users.set_pipeline(installation.database(create=True), address, text, author=actor.name)
    installation.changed()
    return StoredVersion(version, steps)


@use_case("POST", "/users/{address}/pipeline/candidate")
def set_candidate(
    installation: Installation, actor: Actor, *, address: str, text: str, name: str = "pipeline"
) -> StoredVersion:
    """Check a pipeline and run it beside the live one, without effect. Raises NotFound without a live one."""
    steps = check(installation, actor, text=text, name=name)
    engine = installation.database(create=True)
    users.get_pipeline(engine, address)
    version = users.set_pipeline(engine, address, text, author=actor.name, role="candidate")
    installation.changed()
    return StoredVersion(version, steps)


@use_case("GET", "/users/{address}/pipeline/candidate")
def compare(
    installation: Installation,
    actor: Actor,
    *,
    address: str,
    version: int | None = None,
    limit: Annotated[int, Field(ge=1, le=10_000)] = 100,
) -> Comparison:
    """Compare a candidate, by default the present one, with the live pipeline over the mail that both saw."""
    engine = installation.database()
    if version is None:
        version = next((one.version for one in users.history(engine, address) if one.role == "candidate"), None)
    if version is None:
        raise NotFound(f"{address} has no candidate; `sendswitch pipeline history {address}` shows earlier ones")
    counts = tuple(ActionCount(*row) for row in journal.agreement(engine, address, version))
    differences = tuple(
        Disagreement(
            id=f"{to_text(row['message'])}.{row['n']}",
            sender=row["sender"] or "",
            recipient=row["recipient"] or "",
            subject=row["subject"] or "",
            was=row["told_was"],
            now=row["told_now"],
            reason=row["reason"],
        )
        for row in journal.disagreements(engine, address, version, limit)
    )
    agreed = sum(count.messages for count in counts if not count.differs)
    return Comparison(version, sum(count.messages for count in counts), agreed, counts, differences)


@use_case("POST", "/users/{address}/pipeline/candidate:promote")
def promote(installation: Installation, actor: Actor, *, address: str) -> Replaced:
    """Make the candidate the live pipeline, as a new version."""
    was, version = users.promote(installation.database(create=True), address, author=actor.name)
    installation.changed()
    return Replaced(was, version)


@use_case("POST", "/users/{address}/pipeline/candidate:withdraw")
def withdraw(installation: Installation, actor: Actor, *, address: str) -> None:
    """Stop running the candidate. Keeps its comparison."""
    users.withdraw(installation.database(create=True), address)
    installation.changed()


@use_case("POST", "/users/{address}/pipeline:rollback")
def roll_back(installation: Installation, actor: Actor, *, address: str, version: int | None = None) -> Replaced:
    """Make an earlier version live again, as a new one. By default it is the last one that was different."""
    old, new = users.roll_back(installation.database(create=True), address, version, author=actor.name)
    installation.changed()
    return Replaced(old, new)
