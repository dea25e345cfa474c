"""Administrators' rules: suspend, bounce, quarantine or drop mail that a search finds, for a limited time.

Rules are in the spool, so that they outlive a restart. The node applies a rule at the place where it would have gone on
with a delivery, so that a rule and an attempt can never both happen. Every rule but a suspension also names the
deliveries that were in the spool when it was added, and applies to those however long their turn takes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sendswitch.errors import NotFound, Refused
from sendswitch.journal.search import OF_MOVING, Term, matches, parse
from sendswitch.spool.admin import parse_id
from sendswitch.spool.connection import scalar, transaction
from sendswitch.spool.records import Delivery, Message, facts_of

# The beginning of the last answer of every suspended delivery.
SUSPENDED = "suspended by rule"


class Kind(StrEnum):
    """The effect of a rule."""

    SUSPEND = "suspend"
    BOUNCE = "bounce"
    DROP = "drop"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class AdminRule:
    """One rule. Times are seconds since the epoch; `words` is the search, '' for all mail; `named` are the deliveries
    that the rule applies to at any time."""

    id: int
    kind: Kind
    words: str
    reason: str
    author: str
    created: float
    expires: float
    terms: tuple[Term, ...] = field(default=(), repr=False)
    named: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)

    @property
    def mark(self) -> str:
        """Return the beginning of the last answer of a delivery that this rule suspended."""
        return f"{SUSPENDED} {self.id}:"


def add(
    connection: sqlite3.Connection,
    kind: Kind,
    words: str,
    *,
    reason: str,
    author: str,
    now: float,
    time: float,
    here: Sequence[str] = (),
    number: int | None = None,
) -> AdminRule:
    """Store a rule that applies for `time` seconds, and to the deliveries with the ids `here`.

    Without a number it gets the next one. Raises InvalidSearch, and Refused for a rule that would end all mail or a
    number that another one has.
    """
    if not parse(words, now, OF_MOVING) and kind is not Kind.SUSPEND:
        raise Refused(f"{kind} needs a search: it would be about all mail")
    row = (kind.value, words, reason, author, now, now + time)
    with transaction(connection):
        if number is not None and number <= newest(connection):
            raise Refused(f"there was a rule {number} already: another one was added at the same time; try again")
        cursor = connection.execute(
            "INSERT INTO rule (id, kind, words, reason, author, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, *row),
        )
        id_ = cursor.lastrowid or 0
        if kind is not Kind.SUSPEND:
            named = [(id_, *parse_id(one)) for one in here]
            connection.executemany("INSERT OR IGNORE INTO rule_delivery VALUES (?, ?, ?)", named)
    return _rule(connection, id_, *row)


def copy(connection: sqlite3.Connection, source: sqlite3.Connection, now: float) -> None:
    """Take the rules of another node, with their numbers, as long as they apply to mail that comes."""
    found = [rule for rule in active(source, now) if rule.expires > now]
    columns = "id, kind, words, reason, author, created, expires"
    with transaction(connection):
        connection.executemany(
            f"INSERT OR IGNORE INTO rule ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(one.id, one.kind.value, one.words, one.reason, one.author, one.created, one.expires) for one in found],
        )


def renumber(connection: sqlite3.Connection, above: int) -> None:
    """Give each rule a number above `above`: a spool comes to nodes whose rules have these numbers."""
    with transaction(connection):
        for (id_,) in connection.execute("SELECT id FROM rule ORDER BY id DESC").fetchall():
            connection.execute("UPDATE rule SET id = ? WHERE id = ?", (id_ + above, id_))
            connection.execute("UPDATE rule_delivery SET id = ? WHERE id = ?", (id_ + above, id_))
            connection.execute(
                "UPDATE delivery SET reply = replace(reply, ?, ?) WHERE reply LIKE ? || '%'",
                (f"{SUSPENDED} {id_}:", f"{SUSPENDED} {id_ + above}:", f"{SUSPENDED} {id_}:"),
            )


def newest(connection: sqlite3.Connection) -> int:
    """Return the number of the newest rule that there ever was, 0 for none."""
    return int(scalar(connection, "SELECT seq FROM sqlite_sequence WHERE name = 'rule'") or 0)


_NAMED = (
    "SELECT o.message, o.n FROM rule_delivery o JOIN delivery d ON d.message = o.message AND d.n = o.n"
    " AND d.due IS NOT NULL AND d.state IN ('accepted', 'decided') WHERE o.id = {id}"
)


def active(connection: sqlite3.Connection, now: float) -> list[AdminRule]:
    """Return the rules that apply now, the oldest first."""
    query = (
        "SELECT id, kind, words, reason, author, created, expires FROM rule"
        f" WHERE ended IS NULL AND (expires > ? OR EXISTS ({_NAMED.format(id='rule.id')})) ORDER BY id"
    )
    return [_rule(connection, *row) for row in connection.execute(query, (now,)).fetchall()]


def in_force(connection: sqlite3.Connection, id_: int) -> bool:
    """Return whether a rule has not been cancelled."""
    return bool(scalar(connection, "SELECT count(*) FROM rule WHERE id = ? AND ended IS NULL", id_))


def let_go_since(connection: sqlite3.Connection, id_: int, message: int, n: int) -> bool:
    """Return whether a person released or answered a delivery after the rule was added: the newer decision counts."""
    query = (
        "SELECT 1 FROM outbox WHERE message = ? AND n = ? AND event IN ('released', 'answered')"
        " AND at >= (SELECT created FROM rule WHERE id = ?)"
    )
    return scalar(connection, query, message, n, id_) is not None


def cancel(connection: sqlite3.Connection, id_: int, now: float) -> tuple[AdminRule, int]:
    """Cancel a rule and make the mail it suspended due now. Return the rule and the number of those deliveries.

    Raises NotFound.
    """
    with transaction(connection):
        found = next((rule for rule in active(connection, now) if rule.id == id_), None)
        if found is None:
            raise NotFound(f"no rule {id_} applies now; `sendswitch queue rules` shows all")
        connection.execute("UPDATE rule SET ended = ? WHERE id = ?", (now, id_))
        resumed = connection.execute(
            "UPDATE delivery SET due = ? WHERE due > ? AND state IN ('accepted', 'decided') AND reply LIKE ? || '%'",
            (now, now, found.mark),
        ).rowcount
    return found, resumed


def _rule(
    connection: sqlite3.Connection,
    id_: int,
    kind: str,
    words: str,
    reason: str,
    author: str,
    created: float,
    expires: float,
) -> AdminRule:
    terms = tuple(parse(words, created, OF_MOVING))
    named = frozenset((message, n) for message, n in connection.execute(_NAMED.format(id="?"), (id_,)))
    return AdminRule(id_, Kind(kind), words, reason, author, created, expires, terms, named)


def first_for(rules: Sequence[AdminRule], message: Message, delivery: Delivery, now: float) -> AdminRule | None:
    """Return the oldest rule that applies to this delivery now, None without one."""
    facts = None
    for rule in rules:
        if delivery.key in rule.named:
            return rule
        if rule.expires > now:
            facts = facts or facts_of(message, delivery)
            if matches(rule.terms, facts):
                return rule
    return None
