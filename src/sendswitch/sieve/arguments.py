"""The arguments of a command or test, checked as they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sendswitch.mail.address import valid
from sendswitch.mail.headers import valid_name
from sendswitch.sieve.grammar import Argument, Command, SieveError, Strings, Tag
from sendswitch.sieve.match import COMPARATORS, LARGEST_SCRIPT, LEAST, MAKING, RELATIONS, Match
from sendswitch.sieve.run import Ask, Run
from sendswitch.sieve.strings import MODIFIERS, Text, text_of

EXTENSIONS = (
    "body",
    "comparator-i;ascii-casemap",
    "comparator-i;ascii-numeric",
    "comparator-i;octet",
    "copy",
    "encoded-character",
    "envelope",
    "ereject",
    "fileinto",
    "regex",
    "reject",
    "relational",
    "subaddress",
    "vacation",
    "variables",
)
# What a tag asks a script to require.
_NEEDED = {
    "copy": "copy",
    "regex": "regex",
    "count": "relational",
    "value": "relational",
    "user": "subaddress",
    "detail": "subaddress",
}
_MATCH = ("is", "contains", "matches", "regex", "count", "value")
_PART = ("all", "localpart", "domain", "user", "detail")
# Tags behind which a value stands.
_VALUED = frozenset(("count", "value", "comparator", "content", "days", "subject", "addresses"))
_TAGS = frozenset((*_MATCH, *_PART, *_VALUED, *MODIFIERS, "copy", "over", "under", "raw", "text"))


@dataclass(slots=True)
class Known:
    """The facts about a script while it is read: the required extensions, the characters that begin the detail of an
    address, whether it reads more than the header, and the number of instructions in its patterns.
    """

    delimiter: str
    required: set[str] = field(default_factory=set)
    reads_body: bool = False
    size: int = 0


class Given:
    """The arguments of a command: tags with their values, and the others in order."""

    def __init__(self, command: Command, known: Known) -> None:
        self.command, self.known = command, known
        self.positional: list[Argument] = []
        self._tags: dict[str, Argument | None] = {}
        self._asked: set[str] = set()
        waiting = iter(command.arguments)
        for argument in waiting:
            if not isinstance(argument, Tag):
                self.positional.append(argument)
                continue
            if argument.name not in _TAGS:
                raise self.wrong(f"{command.name} does not know :{argument.name}")
            if self.positional:
                raise self.wrong(f":{argument.name} stands before all that has no colon")
            if argument.name in self._tags:
                raise self.wrong(f":{argument.name} stands there twice")
            if argument.name in _NEEDED:
                self.need(_NEEDED[argument.name], f":{argument.name}")
            value = next(waiting, None) if argument.name in _VALUED else None
            if argument.name in _VALUED and (value is None or isinstance(value, Tag)):
                raise self.wrong(f"the value of :{argument.name} is missing")
            self._tags[argument.name] = value

    def need(self, extension: str, what: str) -> None:
        """Raise SieveError when the script does not require an extension."""
        if extension not in self.known.required:
            raise self.wrong(f'{what} needs require "{extension}"; at the beginning')

    def wrong(self, text: str) -> SieveError:
        """Return an error with its line."""
        return SieveError(self.command.line, text)

    def alone(self) -> None:
        """Raise SieveError when there is a block or a test."""
        if self.command.block is not None or self.command.tests:
            raise self.wrong(f"{self.command.name} has no block and no tests; is a ; missing behind it?")

    def told(self, what: str) -> str:
        """Return the sentence about an action, with its line."""
        return f"line {self.command.line}: {what}"

    def flag(self, name: str) -> bool:
        """Return whether `:name` stands there."""
        self._asked.add(name)
        return name in self._tags

    def tagged(self, name: str) -> list[Text]:
        """Return the strings behind `:name`."""
        if not self.flag(name):
            return []
        value = self._tags[name]
        if not isinstance(value, Strings):
            raise self.wrong(f"behind :{name} stands a string")
        return [self._text(one) for one in value.values]

    def _single(self, name: str) -> str:
        """Return the one string behind `:name`, in lower case."""
        found = self.tagged(name)
        if len(found) != 1 or not found[0].fixed:
            raise self.wrong(f"behind :{name} stands one string without variables")
        return found[0].text.lower()

    def number(self, name: str, default: int) -> int:
        """Return the number behind `:name`."""
        if not self.flag(name):
            return default
        value = self._tags[name]
        if not isinstance(value, int):
            raise self.wrong(f"behind :{name} stands a number")
        return value

    def strings(self, n: int) -> list[Text]:
        """Return the strings at place `n`."""
        value = self.positional[n] if n < len(self.positional) else None
        if not isinstance(value, Strings):
            raise self.wrong(f"{self.command.name} misses a string")
        return [self._text(one) for one in value.values]

    def string(self, n: int) -> Text:
        """Return the one string at place `n`."""
        found = self.strings(n)
        if len(found) != 1:
            raise self.wrong(f"{self.command.name} has one string there, not a list")
        return found[0]

    def names(self, n: int) -> list[Text]:
        """Return the names of header fields at place `n`."""
        found = self.strings(n)
        for name in found:
            if name.fixed and not valid_name(name.text):
                raise self.wrong(f"{name.text!r} is no name of a header field")
        return found

    def each(self, run: Run, names: Sequence[Text]) -> list[str]:
        """Return the names for this message, in lower case, each once."""
        return list(dict.fromkeys(name.value(run.variables).lower() for name in names))

    def constants(self, n: int) -> list[str]:
        """Return the strings at place `n` that do not depend on the message."""
        found = self.strings(n)
        for text in found:
            if not text.fixed:
                raise self.wrong(f"{text.text!r} cannot have variables")
        return [text.text for text in found]

    def _text(self, written: str) -> Text:
        try:
            return text_of(written, self.known.required)
        except ValueError as error:
            raise self.wrong(str(error)) from error

    def address(self, text: str) -> str:
        """Return an address that mail can go to. Raises SieveError."""
        if "@" not in text or not valid(text):
            raise self.wrong(f"{text[:100]!r} is no mail address")
        return text

    def end(self, count: int) -> None:
        """Raise SieveError when there is more or less than was asked for."""
        for name in self._tags:
            if name not in self._asked:
                known = ", ".join(f":{one}" for one in sorted(self._asked)) or "no tags"
                raise self.wrong(f"{self.command.name} does not know :{name}; it knows {known}")
        if len(self.positional) != count:
            raise self.wrong(f"{self.command.name} has {len(self.positional)} arguments, not {count}")

    def _one_of(self, names: Sequence[str], default: str) -> str:
        chosen = [name for name in names if self.flag(name)]
        if len(chosen) > 1:
            raise self.wrong(f":{chosen[0]} and :{chosen[1]} exclude each other")
        return chosen[0] if chosen else default

    def part(self) -> str:
        """Return which part of an address is meant."""
        return self._one_of(_PART, "all")

    def match(self) -> Match:
        """Return how values are compared."""
        kind = self._one_of(_MATCH, "is")
        relation = ""
        if kind in ("count", "value"):
            relation = self._single(kind)
            if relation not in RELATIONS:
                raise self.wrong(f"{relation!r} is none of {', '.join(RELATIONS)}")
        name = self._single("comparator") if self.flag("comparator") else COMPARATORS[0]
        if name not in COMPARATORS:
            raise self.wrong(f"there is no comparator {name!r}; there are {', '.join(COMPARATORS)}")
        if name == "i;ascii-numeric":
            self.need(f"comparator-{name}", name)
            if kind in ("contains", "matches", "regex"):
                raise self.wrong(f":{kind} cannot compare numbers")
        return Match(kind, name, relation)

    def compared(
        self, keys: Sequence[Text], values: Callable[[Run], Sequence[str]], *, remembers: bool = True, at: int = 1
    ) -> Ask:
        """Return a test of values against keys, which stand at place `at`.

        What matched is remembered, if the script has variables.
        """
        match = self.match()
        self.end(at + 1)
        fixed: dict[str, Any] = {}
        for one in keys:
            if one.fixed:
                made = fixed[one.text] = self._key(match, one.text)
                self.known.size += made.size if match.patterned else 0
            if self.known.size > LARGEST_SCRIPT:
                raise self.wrong("these are more patterns than a script may have; use keys without wildcards")
        remembers = remembers and match.patterned and "variables" in self.known.required

        def ask(run: Run) -> bool:
            wanted = [one.value(run.variables) for one in keys]
            have = values(run)
            if match.kind == "count":
                return any(match.counts(len(have), one) for one in wanted)
            ready = [self._key_of(run, match, one, fixed) for one in wanted]
            for text in have:
                value = run.ready(match, text)
                for key in ready:
                    run.spend(match.cost(value, key, remembers=remembers))
                    if match.holds(value, key):
                        if remembers:
                            run.variables.matched = match.groups(text, value, key)
                        return True
            return False

        return ask

    def _key_of(self, run: Run, match: Match, text: str, fixed: Mapping[str, Any]) -> Any:
        """Return a key, made now if it depends on the message."""
        if text in fixed:
            return fixed[text]
        made = self._key(match, text)
        run.spend(MAKING * made.size if match.patterned else LEAST + len(text))
        return made

    def _key(self, match: Match, text: str) -> Any:
        try:
            return match.key(text)
        except ValueError as error:
            raise self.wrong(str(error)) from error
