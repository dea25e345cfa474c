"""What other programs answered, and whether the filter saw all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.archives import look
from sendswitch.mail.mime.archives.base import Budget, Unreadable
from sendswitch.mail.mime.names import spellings
from tests.differential import seen
from tests.differential.explained import why
from tests.differential.seen import digest

RECORDED = Path(__file__).with_name("recorded.jsonl")

Shown = frozenset[tuple[str, str]]
"""What a program shows of an input: names of files ('' for none) with the digests of their content."""


def seen_in_mail(raw: bytes) -> tuple[set[str], set[str], list[str]]:
    """Return the names, the digests of content, and the findings that we have for a message."""
    mail = Mail(InMemory(raw))
    return seen.names(mail), set(map(digest, seen.contents(mail))), [str(finding) for finding in mail.findings]


def seen_in_zip(data: bytes) -> tuple[set[str], set[str], list[str]]:
    """Return the names, the digests of content, and the findings that we have for an archive."""
    names: set[str] = set()
    contents: set[str] = set()
    findings: list[str] = []
    try:
        for member in look.members(data, "a.zip", Budget()):
            names |= {spelled for name in member.names for spelled in spellings(name)}
            contents.add(digest(member.data or b""))
            findings += [str(finding) for finding in member.findings]
    except Unreadable as error:
        findings.append(str(error.finding))
    return names, contents, findings


@dataclass(slots=True)
class Difference:
    """Something that a program shows of an input and that we do not see; `reason` explains it, '' for none."""

    key: str
    who: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.who} sees {self.what}"


def differences(key: str, raw: bytes, of_input: Mapping[str, Shown]) -> Iterator[Difference]:
    """Yield what programs show of an input and we do not see; a finding sees everything."""
    names, contents, findings = seen_in_zip(raw) if key.startswith("zip") else seen_in_mail(raw)
    if findings:
        return
    for who, shown in of_input.items():
        for name, content in sorted(shown):
            if name and not spellings(name) & names:
                yield Difference(key, who, f"the name {name!r}", why(raw, name, ""))
            if content and content not in contents:
                yield Difference(key, who, f"the content of {name or 'a part without a name'!r}", why(raw, "", content))


def recorded() -> Mapping[tuple[str, str], Mapping[str, Shown]]:
    """Return the answers on disk: what each program shows of an input, which has a key and a digest."""
    out: dict[tuple[str, str], dict[str, Shown]] = {}
    for line in RECORDED.read_text("utf-8").splitlines():
        key, input_, *answers = json.loads(line)
        out[key, input_] = {who: frozenset((n, c) for n, c in shown) for programs, shown in answers for who in programs}
    return out


def record(answers: Mapping[tuple[str, str], Mapping[str, Shown]]) -> None:
    """Write answers, a line for each input; programs that answered the same stand together."""
    lines = []
    for key, of_input in answers.items():
        groups: dict[Shown, list[str]] = {}
        for who, shown in of_input.items():
            groups.setdefault(shown, []).append(who)
        said = [[programs, sorted(map(list, shown))] for shown, programs in groups.items()]
        lines.append(json.dumps([*key, *said], ensure_ascii=True, separators=(",", ":")) + "\n")
    RECORDED.write_text("".join(lines), "utf-8")
