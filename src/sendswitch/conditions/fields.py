"""The fields of searches and conditions, and the facts that each one is about.

Searches in the journal, searches in the spool and conditions of pipelines read the same table, so that a word means the
same everywhere. Words with a meaning of their own (`tag:`, `score:`, `larger:` …) are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class How(Enum):
    """The way a value is looked for."""

    CONTAINS = auto()
    EQUALS = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """One field: the way, and the names of the facts, of which one must be so."""

    how: How
    facts: tuple[str, ...]


FIELDS: Mapping[str, Field] = {
    "from": Field(How.CONTAINS, ("sender",)),
    "to": Field(How.CONTAINS, ("recipient",)),
    "addressed": Field(How.CONTAINS, ("sender", "recipient")),
    "subject": Field(How.CONTAINS, ("subject",)),
    "text": Field(How.CONTAINS, ("sender", "recipient", "subject")),
    "helo": Field(How.CONTAINS, ("helo", "client_name")),
    "message-id": Field(How.CONTAINS, ("message_id",)),
    "cc": Field(How.CONTAINS, ("header_cc",)),
    "reply-to": Field(How.CONTAINS, ("reply_to",)),
    "rule": Field(How.CONTAINS, ("reason",)),
    "user": Field(How.EQUALS, ("user",)),
    "state": Field(How.EQUALS, ("state",)),
    "verdict": Field(How.EQUALS, ("action",)),
    "processor": Field(How.EQUALS, ("processor",)),
    "queue-id": Field(How.EQUALS, ("queue_id",)),
    "ip": Field(How.EQUALS, ("address",)),
    "id": Field(How.EQUALS, ("message",)),
}
