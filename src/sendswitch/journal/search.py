"""The words people search with: `from:alice subject:invoice -state:delivered larger:1MB "exact words"`.

A word is looked for in sender, recipient and subject. `-` or `!` before a word asks for mail where it is not so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sendswitch.conditions.fields import FIELDS, How
from sendswitch.config.units import COMPARE, comparison, duration, size
from sendswitch.errors import InvalidSearch
from sendswitch.mail.address import key
from sendswitch.mail.ids import first_at, from_text

# What can be searched by. `text` is a word without a name.
NAMES = (
    *("from", "to", "addressed", "user", "subject", "message-id", "queue-id", "ip", "helo"),
    *("cc", "bcc", "reply-to", "has", "is", "rule", "score"),
    *("state", "verdict", "tag", "processor", "before", "after", "larger", "smaller", "id", "text"),
)

# What a spool knows of mail without the journal, and what is known of it on its way through the switch.
OF_SPOOLED = tuple(name for name in NAMES if name != "processor")
# What stands in the message is not known there, and a bare word would be looked for in the subject too.
_IN_THE_MESSAGE = ("subject", "message-id", "text", "cc", "bcc", "reply-to", "has")
OF_MOVING = tuple(name for name in OF_SPOOLED if name not in _IN_THE_MESSAGE)

# What `has:` and `is:` can ask for.
PARTS = ("attachment", "inline")
KINDS = ("tagged",)

# What `state:` and `verdict:` can ask for: the states of a delivery, and the actions of a pipeline.
STATES = (
    *("accepted", "decided", "held", "quarantined", "delivered", "forwarded"),
    *("rejected", "refused", "bounced", "discarded", "failed"),
)
ACTIONS = ("pass", "deny", "forward", "quarantine", "pending")
_KNOWN = {"state": STATES, "verdict": ACTIONS, "has": PARTS, "is": KINDS}

_WORD = re.compile(r'([-!]?)(?:([a-z-]+):)?(?:"([^"]*)"?|(\S+))', re.I)


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: a text to be found or equalled, or a number of seconds, bytes or of a message; `how` a score is
    compared with it."""

    name: str
    value: str | float
    negated: bool = False
    how: str = "="


@dataclass(frozen=True, slots=True)
class SearchFacts:
    """The facts of one delivery that a search tests. `message` is the id as a number, which rises with time."""

    message: int
    sender: str
    recipient: str
    size: int
    state: str
    subject: str = ""
    message_id: str = ""
    address: str = ""
    helo: str = ""
    client_name: str = ""
    queue_id: str = ""
    action: str = ""
    tags: tuple[str, ...] = ()
    reason: str = ""
    header_to: str = ""
    header_cc: str = ""
    reply_to: str = ""
    parts: tuple[str, ...] = ()
    score: float | None = None

    @property
    def user(self) -> str:
        """Return the recipient in the form in which addresses are compared."""
        return key(self.recipient)


def matches(terms: Sequence[Term], facts: SearchFacts) -> bool:
    """Return whether every condition holds, as the journal would find it."""
    return all(_holds(term, facts) is not term.negated for term in terms)


def _holds(term: Term, facts: SearchFacts) -> bool:
    field, value = FIELDS.get(term.name), term.value
    if field is not None:
        found = [getattr(facts, name) for name in field.facts]
        if field.how is How.EQUALS:
            return value in found
        return any(str(value).lower() in text.lower() for text in found)
    if term.name == "score":
        return facts.score is not None and bool(COMPARE[term.how](facts.score, value))
    if isinstance(value, str):
        return _TEXTS[term.name](facts, value)
    return _NUMBERS[term.name](facts, value)


def _blind_copy(facts: SearchFacts, value: str) -> bool:
    named = f"{facts.header_to} {facts.header_cc}".lower()
    return value.lower() in facts.recipient.lower() and facts.user not in named


_TEXTS: Mapping[str, Callable[[SearchFacts, str], bool]] = {
    "tag": lambda facts, value: value.lower() in [tag.lower() for tag in facts.tags],
    "has": lambda facts, value: value in facts.parts,
    "is": lambda facts, value: bool(facts.tags),
    "bcc": _blind_copy,
}
_NUMBERS: Mapping[str, Callable[[SearchFacts, float], bool]] = {
    "larger": lambda facts, value: facts.size > value,
    "smaller": lambda facts, value: facts.size < value,
    "before": lambda facts, value: facts.message < first_at(value),
    "after": lambda facts, value: facts.message >= first_at(value),
}


def parse(text: str, now: float, known: Sequence[str] = NAMES) -> list[Term]:
    """Return the conditions, all of which must hold.

    Raises InvalidSearch with the wrong word and the known ones.
    """
    terms = []
    for sign, name, quoted, bare in _WORD.findall(text):
        value = quoted or bare
        name = name.lower() or "text"
        if name not in known:
            what = f"{name}: is nothing to search by here" if name != "text" else f"{value!r}: say where to look for it"
            raise InvalidSearch(f"{what}; known are {', '.join(n for n in known if n != 'text')}")
        terms.append(_score(value, bool(sign)) if name == "score" else Term(name, _value(name, value, now), bool(sign)))
    return terms


def _score(value: str, negated: bool) -> Term:
    try:
        how, bound = comparison(value)
    except ValueError as error:
        raise InvalidSearch(f"score:{value}: {error}") from error
    return Term("score", bound, negated, how)


def _value(name: str, value: str, now: float) -> str | float:
    try:
        match name:
            case "larger" | "smaller":
                return float(size(value))
            case "before" | "after":
                return moment(value, now)
            case "user":
                return key(value)
            case "state" | "verdict" | "has" | "is":
                return _one_of(_KNOWN[name], value)
            case "id":
                return from_text(value.partition(".")[0])
    except ValueError as error:
        raise InvalidSearch(f"{name}:{value}: {error}") from error
    return value


def _one_of(known: Sequence[str], value: str) -> str:
    if value.lower() not in known:
        raise ValueError(f"known are {', '.join(known)}")
    return value.lower()


def moment(value: str, now: float) -> float:
    """Return seconds since 1970: a date (local), `today`, `yesterday`, or how long ago (`2h`, `7d`).

    Raises ValueError.
    """
    days = {"today": 0, "yesterday": 1}.get(value.lower())
    if days is not None:
        midnight = datetime.fromtimestamp(now, UTC).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        return (midnight - timedelta(days=days)).timestamp()
    if value[:4].isdigit() and "-" in value:
        return datetime.fromisoformat(value).timestamp()
    return now - duration(value)
