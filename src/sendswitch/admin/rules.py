"""Use cases about administrators' rules: suspend, bounce, quarantine or drop mail that a search finds, for a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from sendswitch.admin.base import Actor, At, Installation, at, use_case
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


def _each_once(answers: Sequence[tuple[RuleSummary, ...]], given: Mapping[str, Any]) -> tuple[RuleSummary, ...]:
    """Merge the rules of several nodes. A rule has the same number on each."""
    by = {rule.id: rule for answer in answers for rule in answer}
    return tuple(by[id_] for id_ in sorted(by))


@use_case("GET", "/rules", At.EVERY, merge=_each_once)
def list_rules(installation: Installation, actor: Actor) -> tuple[RuleSummary, ...]:
    """List the rules that apply now, the oldest first."""
    with installation.spool() as connection:
        return tuple(map(_summary, rules.active(connection, time.time())))


@use_case("GET", "/rules:newest", At.EVERY, merge=lambda answers, given: max(answers))
def newest(installation: Installation, actor: Actor) -> int:
    """Return the number of the newest rule that there ever was, 0 for none."""
    with installation.spool() as connection:
        return rules.newest(connection)


def _one_number(ask: Callable[..., Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**given, "number": ask(newest) + 1}


def _added(answers: Sequence[AddedRule], given: Mapping[str, Any]) -> AddedRule:
    return AddedRule(answers[0].rule, sum(one.deliveries for one in answers))


@use_case("POST", "/rules", At.EVERY, merge=_added, widen=_one_number)
def add(
    installation: Installation,
    actor: Actor,
    *,
    kind: Kind,
    search: str = "",
    reason: str = "",
    seconds: Seconds,
    number: int | None = None,
) -> AddedRule:
    """Add a rule. It applies to mail in the queue, and for `seconds` to mail that comes.

    It has the next number, or `number`, so that it has one on several nodes. Raises Refused for a rule other than a
    suspension without a search, and for a number that there was.
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
            number=number,
        )
        installation.changed()
        if kind is not Kind.SUSPEND:
            # Mail that waits for its next attempt would meet the rule only then.
            admin.flush(connection, here, now)
            installation.changed()
    return AddedRule(_summary(rule), len(here))


def _cancelled(answers: Sequence[CancelledRules], given: Mapping[str, Any]) -> CancelledRules:
    return CancelledRules(_each_once([one.rules for one in answers], given), sum(one.resumed for one in answers))


@use_case("POST", "/rules/{id}:cancel", At.EVERY, merge=_cancelled)
def cancel(installation: Installation, actor: Actor, *, id: int) -> CancelledRules:
    """Cancel a rule. Resumes mail that it suspended."""
    return _cancel(installation, [id])


@use_case("POST", "/rules:resume", At.EVERY, merge=_cancelled)
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
