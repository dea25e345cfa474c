"""Recorded mail as cases: each message with its envelope and the verdict of a pipeline."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendswitch.journal.events import EventKind
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.mail.ids import to_text
from sendswitch.mail.verdict import Verdict
from sendswitch.mail.verdict_json import verdict_from_json
from sendswitch.spool.recorded_mail import Recorded, recorded
from sendswitch.spool.states import TERMINAL


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One recorded message for one recipient. `verdict` is the one that counted, None where no pipeline was asked; `at`
    is its time (seconds since the epoch), `attempt` the number of the offer, from 1.
    """

    message: int
    n: int
    recipient: Recipient
    envelope: Envelope
    content: Content
    subject: str
    at: float
    attempt: int = 1
    verdict: Verdict | None = None

    @property
    def id(self) -> str:
        """Return the delivery's id as people see it."""
        return f"{to_text(self.message)}.{self.n}"


def cases(connection: sqlite3.Connection, data: Path, after: int, before: int) -> Iterator[list[Case]]:
    """Yield the cases of each message that has its content, in the order of their ids, between `after` and `before`."""
    for message in recorded(connection, data, after, before):
        yield [] if message is None else _cases(message)


def case(connection: sqlite3.Connection, data: Path, message: int, n: int) -> Case | None:
    """Return the last time that this delivery got a verdict, None when it never did or its content is gone."""
    found = [one for cases_ in cases(connection, data, message - 1, message + 1) for one in cases_]
    return next((one for one in reversed(found) if one.n == n and one.verdict is not None), None)


def _cases(message: Recorded) -> list[Case]:
    to, subject = message.deliveries, ""
    found: list[Case] = []

    def add(n: int, at: float, attempt: int, verdict: Verdict | None) -> None:
        if n in to:
            recipient, content = to[n][0], message.content
            found.append(Case(message.id, n, recipient, message.envelope, content, subject, at, attempt, verdict))

    for n, at, event, told in message.events:
        if event == EventKind.VERDICT:
            attempt = int(told.pop("attempt", 1))
            told.pop("before", None)
            add(n, at, attempt, verdict_from_json(told))
        else:
            subject = str(told.get("subject", ""))
            for number, verdict in told.get("verdicts", {}).items():
                if verdict.get("pipeline"):
                    add(int(number), at, 1, verdict_from_json(verdict))
    judged = {one.n for one in found}
    for n, (_, state) in to.items():
        if n not in judged and state in TERMINAL:
            add(n, message.received, 1, None)
    return found
