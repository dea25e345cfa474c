"""Use cases about administrators' rules: suspend, bounce, quarantine or drop mail that a search finds, for a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field

from sendswitch.admin.base import Actor, Installation, at, use_case
from sendswitch.admin.deliveries import ALL, MOVING, reason_of, terms_of
from sendswitch.journal.search import OF_MOVING
from sendswitch.spool import admin, rules
from sendswitch.spool.rules import AdminRule, Kind

Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400)]


@dataclass(frozen=True, slots=True)
class RuleSummary:
    """A rule as listed. `search` is '' for all mail."""

    id: int
    kind: Kind
    search: str
    reason: str
    author: str
    created: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class AddedRule:
    """A rule that was added, and the number of deliveries in the queue that it applies to now."""

    rule: RuleSummary
    deliveries: int


@dataclass(frozen=True, slots=True)
class CancelledRules:
    """The rules that were cancelled, and the number of deliveries that go on."""

    rules: tuple[RuleSummary, ...]
    resumed: int


def _summary(rule: AdminRule) -> RuleSummary:
    times = at(rule.created), at(rule.expires)
    return RuleSummary(rule.id, rule.kind, rule.words, rule.reason, rule.author, *times)


@use_case("GET", "/rules")
def list_rules(installation: Installation, actor: Actor) -> tuple[RuleSummary, ...]:
    """List the rules that apply now, the oldest first."""
    with installation.spool() as connection:
        return tuple(map(_summary, rules.active(connection, time.time())))


@use_case("POST", "/rules")
def add(
    installation: Installation, actor: Actor, *, kind: Kind, search: str = "", reason: str = "", seconds: Seconds
) -> AddedRule:
    """Add a rule. It applies to mail in the queue, and for `seconds` to mail that comes.

    Raises Refused for a rule other than a suspension without a search.
    """
    now = time.time()
    with installation.spool() as connection:
        here = [row.id for row in admin.rows(connection, MOVING, terms=terms_of(search, OF_MOVING), limit=ALL)]
        rule = rules.add(
            connection,
            kind,
            search,
            reason=reason_of(reason),
            author=actor.name,
            now=now,
            time=seconds,
            here=here,
        )
        installation.changed()
        if kind is not Kind.SUSPEND:
            # Mail that waits for its next attempt would meet the rule only then.
            admin.flush(connection, here, now)
            installation.changed()
    return AddedRule(_summary(rule), len(here))


@use_case("POST", "/rules/{id}:cancel")
def cancel(installation: Installation, actor: Actor, *, id: int) -> CancelledRules:
    """Cancel a rule. Resumes mail that it suspended."""
    return _cancel(installation, [id])


@use_case("POST", "/rules:resume")
def resume(installation: Installation, actor: Actor) -> CancelledRules:
    """Cancel every suspension."""
    with installation.spool() as connection:
        found = rules.active(connection, time.time())
    return _cancel(installation, [rule.id for rule in found if rule.kind is Kind.SUSPEND])


def _cancel(installation: Installation, ids: list[int]) -> CancelledRules:
    with installation.spool() as connection:
        done = [rules.cancel(connection, id_, time.time()) for id_ in ids]
    installation.changed()
    return CancelledRules(tuple(_summary(rule) for rule, _ in done), sum(count for _, count in done))
