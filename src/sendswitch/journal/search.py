"""The words people search with: `from:alice subject:invoice -state:delivered larger:1MB "exact words"`.

A word is looked for in sender, recipient and subject. `-` or `!` before a word asks for mail where it is not so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sendswitch.config.units import duration, size
from sendswitch.errors import InvalidSearch
from sendswitch.mail.address import key

# What can be searched by. `text` is a word without a name.
NAMES = (
    *("from", "to", "addressed", "user", "subject", "message-id", "queue-id", "ip", "helo"),
    *("state", "verdict", "tag", "processor", "before", "after", "larger", "smaller", "id", "text"),
)

_WORD = re.compile(r'([-!]?)(?:([a-z-]+):)?(?:"([^"]*)"?|(\S+))', re.I)


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: a text to be found or equalled, or a number of seconds or bytes."""

    name: str
    value: str | float
    negated: bool = False


def parse(text: str, now: float) -> list[Term]:
    """The conditions, all of which must hold. Raises InvalidSearch that says which word is wrong and what is known."""
    terms = []
    for sign, name, quoted, bare in _WORD.findall(text):
        value = quoted or bare
        name = name.lower() or "text"
        if name not in NAMES:
            raise InvalidSearch(f"{name}: is nothing to search by; known are {', '.join(NAMES[:-1])}")
        terms.append(Term(name, _value(name, value, now), bool(sign)))
    return terms


def _value(name: str, value: str, now: float) -> str | float:
    try:
        match name:
            case "larger" | "smaller":
                return float(size(value))
            case "before" | "after":
                return moment(value, now)
            case "user":
                return key(value)
            case "state" | "verdict":
                return value.lower()
    except ValueError as error:
        raise InvalidSearch(f"{name}:{value}: {error}") from error
    return value


def moment(value: str, now: float) -> float:
    """Seconds since 1970: a date (local), `today`, `yesterday`, or how long ago (`2h`, `7d`). Raises ValueError."""
    days = {"today": 0, "yesterday": 1}.get(value.lower())
    if days is not None:
        midnight = datetime.fromtimestamp(now, UTC).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        return (midnight - timedelta(days=days)).timestamp()
    if value[:4].isdigit() and "-" in value:
        return datetime.fromisoformat(value).timestamp()
    return now - duration(value)
