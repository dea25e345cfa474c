"""Conditions: `when = "tag:SPAM and size > 1MB and not from:*@partner.example"`.

One small language of the words people search with. A condition is read once, when a pipeline is saved, and then asked
about each message; it never raises for what a message contains.

    condition   any of them: A or B; all of them: A and B, or just A B; the opposite: not A, -A, !A; ( A )
    from: to: addressed: subject: helo: message-id:    this text is in it; with * or ? it is like all of it
    user: queue-id:                                     exactly this recipient, this queue id of Postfix
    ip:192.0.2.7  ip:192.0.2.0/24                       the client, or its network
    tag:SPAM                                            an earlier step has set it
    score > 5  score:>5                                 an earlier step gave it such a score; without one nothing holds
    size > 1MB  size <= 20kB  larger:1MB  smaller:20kB  bytes of the whole message
    header:X-Spam-Flag  header:X-Spam-Flag=YES          the field is there; this text is in it, or it is like it
    has:attachment  has:inline                          a part says so, in the first 256 KiB
    is:ambiguous  is:unreadable  is:encrypted  is:too-large    programs read it in different ways, or nobody can
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import translate
from ipaddress import ip_address, ip_network
from itertools import chain

from sendswitch.conditions.fields import FIELDS
from sendswitch.config.units import COMPARE, comparison, size
from sendswitch.mail.address import key, spellings
from sendswitch.mail.envelope import Client
from sendswitch.mail.headers import valid_name
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.findings import Kind

# Characters of a condition, and parentheses in each other: more than anybody reads.
LONGEST, DEEPEST = 1000, 20

_TOKEN = re.compile(
    r"\s*(?:(?P<bracket>[()])"
    r"|(?P<number>size|score)\s*(?P<how>>=|<=|>|<|=)\s*(?P<than>[^\s()]+)"
    r"|(?P<not>[-!](?=\S)|not\b(?!:))"
    r"|(?P<join>and|or)\b(?!:)"
    r'|(?P<name>[a-z-]+):(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s()"]+)(?:(?<==)"(?P<rest>[^"]*)")?))',
    re.I,
)


@dataclass(frozen=True, slots=True)
class ConditionFacts:
    """The facts that a condition can test: the message, its envelope for one recipient, and the results of earlier
    steps.
    """

    mail: Mail
    sender: str
    recipient: str
    client: Client
    tags: tuple[str, ...] = ()
    score: float | None = None


Test = Callable[[ConditionFacts], bool]


class Condition:
    """One condition. Raises ValueError with the place of an error and the words that are allowed there."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > LONGEST:
            raise ValueError(f"a condition has at most {LONGEST} characters")
        reader = _Reader(text)
        self.holds: Test = reader.condition()
        # Whether it asks for what only reading the whole message shows.
        self.reads_content = reader.reads_content


class _Reader:
    """Reads a condition from left to right."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth, self.reads_content = text, 0, 0, False
        self._next: re.Match[str] | None = None
        self._advance()

    def _advance(self) -> None:
        end = self._next.end() if self._next else 0
        self._at, self._next = end, _TOKEN.match(self._text, end)
        if self._next is None and self._text[end:].strip():
            word = re.match(r"\s*([a-z-]+):\s", self._text[end:], re.I)
            raise self._wrong(f"no space stands behind {word[1]}:" if word else "this is nothing to ask about")

    def _wrong(self, what: str) -> ValueError:
        rest = self._text[self._at :].strip()
        where = f"at {rest[:30]!r}: " if rest else "at its end: "
        return ValueError(
            f"the condition is wrong {where}{what}; write it like"
            f" 'tag:SPAM and size > 1MB and not from:*@partner.example' with the words {', '.join(sorted(_WORDS))}"
        )

    def condition(self) -> Test:
        """Return the whole."""
        test = self._any()
        if self._next is not None:
            raise self._wrong("there is no ( for this")
        return test

    def _any(self) -> Test:
        tests = [self._all()]
        while self._next is not None and (self._next["join"] or "").lower() == "or":
            self._advance()
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda facts: any(test(facts) for test in tests)

    def _all(self) -> Test:
        tests = [self._one()]
        while self._next is not None and self._next["bracket"] != ")" and (self._next["join"] or "").lower() != "or":
            if self._next["join"]:
                self._advance()
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda facts: all(test(facts) for test in tests)

    def _one(self) -> Test:
        token = self._next
        if token is None or token["join"] or token["bracket"] == ")":
            raise self._wrong("a word is missing")
        if token["not"] or token["bracket"]:
            self._depth += 1
            if self._depth > DEEPEST:
                raise self._wrong(f"more than {DEEPEST} parentheses and negations")
            self._advance()
            inner = self._one() if token["not"] else self._any()
            if token["bracket"]:
                if self._next is None or self._next["bracket"] != ")":
                    raise self._wrong("a ) is missing")
                self._advance()
            self._depth -= 1
            return (lambda facts: not inner(facts)) if token["not"] else inner
        self.reads_content = self.reads_content or (token["name"] or "").lower() == "is"
        try:
            test = _number(token) if token["number"] else _word(token)
        except ValueError as error:
            raise self._wrong(str(error)) from error
        self._advance()
        return test


def _number(token: re.Match[str]) -> Test:
    if token["number"].lower() == "score":
        return _scored(token["how"] + token["than"])
    return _sized(token["how"], token["than"])


def _sized(how: str, value: str) -> Test:
    compare, bound = COMPARE[how], size(value)
    return lambda facts: bool(compare(facts.mail.size, bound))


def _scored(value: str) -> Test:
    how, bound = comparison(value)
    compare = COMPARE[how]
    return lambda facts: facts.score is not None and bool(compare(facts.score, bound))


def _word(token: re.Match[str]) -> Test:
    name = token["name"].lower()
    value = (token["bare"] or token["quoted"] or "") + (token["rest"] or "")
    make = _WORDS.get(name)
    if make is None:
        raise ValueError(f"{name}: is no word of a condition")
    if not value:
        raise ValueError(f"{name}: says nothing")
    return make(value)


def _text(of: Callable[[ConditionFacts], Iterable[str]]) -> Callable[[str], Test]:
    """Return a word that looks for a text, or with * and ? for a likeness."""

    def make(value: str) -> Test:
        like = _like(value)
        return lambda facts: any(like(text) for text in of(facts))

    return make


def _like(value: str) -> Callable[[str], bool]:
    wanted = value.lower()
    if "*" in wanted or "?" in wanted:
        # A bracket means itself here: nobody writes a set of characters in an address.
        matches = re.compile(translate(wanted.replace("[", "[[]"))).match
        return lambda text: matches(text.lower()) is not None
    return lambda text: wanted in text.lower()


def _ip(value: str) -> Test:
    network = ip_network(value, strict=False)

    def test(facts: ConditionFacts) -> bool:
        try:
            return ip_address(facts.client.address) in network
        except ValueError:  # a unix socket, or nothing is known
            return False

    return test


def _tag(value: str) -> Test:
    wanted = value.lower()
    return lambda facts: any(tag.lower() == wanted for tag in facts.tags)


def _header(value: str) -> Test:
    name, equals, wanted = value.partition("=")
    if not valid_name(name):
        raise ValueError(f"{name!r} is no name of a header field")
    if not equals:
        return lambda facts: bool(facts.mail.raw_headers(name))
    like = _like(wanted)
    return lambda facts: any(like(text) for text in facts.mail.headers(name))


def _has(value: str) -> Test:
    wanted = value.lower()
    if wanted not in ("attachment", "inline"):
        raise ValueError(f"has:{value} is nothing that can be asked; has:attachment and has:inline are")
    return lambda facts: wanted in facts.mail.dispositions


def _address(of: Callable[[ConditionFacts], Iterable[str]]) -> Callable[[str], Test]:
    """Return a word that looks for an address in any spelling."""

    def make(value: str) -> Test:
        like = _like(unicodedata.normalize("NFC", value.rstrip(".") or value))
        canonical = _like(key(value)) if "@" in value and not set("*?") & set(value) else like
        return lambda facts: any(like(text) or canonical(text) for one in of(facts) for text in (one, *spellings(one)))

    return make


def _is(value: str) -> Test:
    wanted = value.lower().replace("-", " ")
    if wanted not in set(Kind):
        raise ValueError(
            f"is:{value} is nothing that can be asked; {', '.join(f'is:{k}'.replace(' ', '-') for k in Kind)} are"
        )
    return lambda facts: any(finding.kind == wanted for finding in facts.mail.findings)


def _user(value: str) -> Test:
    wanted = key(value)
    return lambda facts: key(facts.recipient) == wanted


_FACTS: dict[str, Callable[[ConditionFacts], Iterable[str]]] = {
    "sender": lambda facts: (facts.sender,),
    "recipient": lambda facts: (facts.recipient,),
    "subject": lambda facts: (facts.mail.subject,),
    "helo": lambda facts: (facts.client.helo,),
    "client_name": lambda facts: (facts.client.name,),
    "message_id": lambda facts: facts.mail.headers("message-id"),
}


def _facts_of(name: str) -> Callable[[ConditionFacts], Iterable[str]]:
    """Return a function that returns the texts of a field."""
    found = [_FACTS[fact] for fact in FIELDS[name].facts]
    return lambda facts: chain.from_iterable(of(facts) for of in found)


_WORDS: dict[str, Callable[[str], Test]] = {
    **{name: _address(_facts_of(name)) for name in ("from", "to", "addressed")},
    **{name: _text(_facts_of(name)) for name in ("subject", "helo", "message-id")},
    "user": _user,
    "queue-id": lambda value: lambda facts: facts.client.ident == value,
    "ip": _ip,
    "tag": _tag,
    "score": _scored,
    "larger": lambda value: _sized(">", value),
    "smaller": lambda value: _sized("<", value),
    "header": _header,
    "has": _has,
    "is": _is,
}
