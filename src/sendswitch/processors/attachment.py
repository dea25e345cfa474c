"""Rules about attachments: by file name, by type, by size, and by the names of an archive's members.

Names are matched in every spelling and every reading (see `mail.mime`). Archives are zip, tar, gzip, bzip2, xz and
lzma, with archives and mail in them, within the limits `DEEPEST`, `MOST_NAMES` and `MOST_BYTES`. Content that a reader
may show differently, and content that cannot be read, matches unless an option says otherwise: the sender may have
meant it so.

`strip` cuts the part out and puts a note in its place; every other byte of the message stays. Where the fault is not in
a part but in the structure of the message, the message goes to quarantine instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import translate
from quopri import encodestring
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sendswitch.config.units import Size
from sendswitch.mail import results
from sendswitch.mail.edits import AddHeader, Cut, Edit, RemoveHeader, SetHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.mime import reader
from sendswitch.mail.mime.archives import look
from sendswitch.mail.mime.archives.base import DEEPEST, MOST_BYTES, MOST_NAMES, Budget, Unreadable
from sendswitch.mail.mime.findings import Finding, Kind
from sendswitch.mail.mime.names import spellings
from sendswitch.mail.mime.reader import Part, Reading
from sendswitch.mail.verdict import MAX_EDITS, Action, Verdict, parse_refusal
from sendswitch.mail.verdict_json import verdict_from_json
from sendswitch.processors import base

__all__ = ("DEEPEST", "MOST_BYTES", "MOST_NAMES", "Attachment", "AttachmentOptions")

# What later hops may ask for (draft-chen-email-mime-ambiguity-defense), in the form of Authentication-Results.
FIELD = "MIME-Ambiguity-Results"
MOST_WRITTEN = 5

# How content begins that mail programs open as mail.
_MAIL = re.compile(
    rb"\s*(?:(?:return-path|received|from|to|subject|date|message-id|mime-version|delivered-to|content-type|sender|cc"
    rb"|reply-to|dkim-signature|x-[a-z0-9-]{1,60})[ \t]*:|from )",
    re.I,
)


class AttachmentOptions(base.Options):
    """Options of `attachment`."""

    names: tuple[str, ...] = Field((), description="File names, with * and ?; in archives, too.")
    types: tuple[str, ...] = Field((), description="Media types, such as 'application/x-msdownload' or 'video/*'.")
    larger: Size | None = Field(None, description="Attachments with more bytes than this.")
    encrypted: bool = Field(True, description="Match what is encrypted: archives with a password, S/MIME, OpenPGP.")
    unreadable: bool = Field(True, description="Match what cannot be looked into.")
    ambiguous: bool = Field(True, description="Match mail and archives that programs read in different ways.")
    too_large: bool = Field(True, description="Match what has more parts, names or bytes than are looked at.")
    results: bool = Field(
        False, description=f"Write what was found into the field {FIELD} for those who read the mail later."
    )
    action: Literal["strip", "tag", "quarantine", "deny"] = Field("quarantine", description="What a match means.")
    tag: base.Tag = Field("ATTACHMENT", description="The tag that a match sets in any case.")
    note: str = Field(
        "The attachment {name} was removed: {why}.",
        max_length=2000,
        description="What stands in place of a stripped part.",
    )
    reply: base.Refusal = Field(
        "550 5.7.1 Message refused for what is attached", description="What a denied sender is told."
    )

    @model_validator(mode="after")
    def _something(self) -> AttachmentOptions:
        findings = {"encrypted", "unreadable", "ambiguous", "too_large"}
        if not (self.names or self.types or self.larger is not None or findings & self.model_fields_set):
            raise ValueError(
                "say what to look for: names, types, larger, encrypted, unreadable, ambiguous or too_large"
            )
        return self


class Attachment:
    """Looks for attachments of some kind; has no opinion on mail without one."""

    Options: ClassVar[type[base.Options]] = AttachmentOptions
    use: ClassVar[str] = "attachment"
    waits_for_names: ClassVar[bool] = False
    version = "2"

    def __init__(self, options: AttachmentOptions) -> None:
        self._options, self._readers, self._host = options, base.Services().readers, "localhost"
        self._names = _any_of(options.names)
        self._types = _any_of(options.types)
        wanted = {
            Kind.ENCRYPTED: options.encrypted,
            Kind.UNREADABLE: options.unreadable,
            Kind.AMBIGUOUS: options.ambiguous,
            Kind.TOO_LARGE: options.too_large,
        }
        self._kinds = frozenset(kind for kind, counts in wanted.items() if counts)

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the configured action for the findings."""
        answer, findings = await self._readers.read(self, mail, context)
        verdict = None if answer is None else verdict_from_json(answer)
        if not self._options.results:
            return verdict
        verdict = verdict or Verdict()
        return replace(verdict, edits=(*verdict.edits, *self._written(findings)))

    def setup(self, services: base.Services) -> None:
        """Take the readers of content, and our name."""
        self._readers, self._host = services.readers, services.host or "localhost"

    def options_json(self) -> Mapping[str, Any]:
        """Return the options."""
        return self._options.model_dump(mode="json", exclude_unset=True)

    def read(self, mail: Mail, context: base.Context) -> Any:
        """Return the verdict as JSON, None for none, and the message's findings, each with its kind and its text."""
        verdict = self._judge(mail)
        return None if verdict is None else verdict.to_json(), [[one.kind.value, one.text] for one in mail.findings]

    def _written(self, found: Sequence[Sequence[str]]) -> tuple[Edit, ...]:
        """Return the edits that write the field with the findings and remove a stranger's."""
        said = [("mime", kind.replace(" ", "-"), {"reason": text[:150]}) for kind, text in found[:MOST_WRITTEN]]
        value = results.written(self._host, said or [("mime", "none", {})])
        return RemoveHeader(FIELD), AddHeader(FIELD, value)

    def _judge(self, mail: Mail) -> Verdict | None:
        budget = Budget()
        found = [(part, why) for part in mail.parts if (why := self._why(part, budget))]
        whole = self._counted(mail.findings)
        if not found and not whole:
            return None
        options = self._options
        told = [f"the message is {finding}" for finding in whole[:3]]
        same = {f"is {finding}" for finding in whole}
        told += [f"{_named(part)} {why}" for part, why in found[:5] if why not in same]
        reason = "; ".join(dict.fromkeys(told)) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        match options.action:
            case "strip" if not whole and len(found) * 4 < MAX_EDITS and not any(part.inside for part, _ in found):
                edits = tuple(edit for part, why in found for edit in self._stripped(part, why, mail.size))
                return Verdict(tags=(options.tag,), edits=edits, reason=reason)
            case "tag":
                return Verdict(tags=(options.tag,), reason=reason)
            case "deny":
                return Verdict(Action.DENY, tags=(options.tag,), reason=reason, reply=parse_refusal(options.reply))
        return Verdict(Action.QUARANTINE, tags=(options.tag,), reason=reason)

    def _counted(self, findings: tuple[Finding, ...]) -> list[Finding]:
        return [finding for finding in findings if finding.kind in self._kinds]

    def _why(self, part: Part, budget: Budget) -> str:
        """Return why this part matches, '' when it does not. A text matches by a name and as an archive only."""
        options = self._options
        if why := self._by_name(part):
            return why
        if part.attached and self._types and any(self._types.match(type_) for type_ in part.types):
            return f"is {part.type}"
        for finding in self._counted(part.findings):
            return f"is {finding}"
        if part.attached and options.larger is not None and (size := len(part.data)) > options.larger:
            return f"has {size} bytes"
        if self._names is None and not self._kinds:
            return ""
        try:
            for data in part.contents():
                if why := self._inside(data, part.name, budget, 0, opened=part.opened or not part.attached):
                    return why
        except Unreadable as error:
            return self._finding(error.finding)
        return ""

    def _inside(self, data: bytes, name: str, budget: Budget, depth: int, *, opened: bool = False) -> str:
        """Return the reason why a member of an archive, or attached mail, matches."""
        if depth > DEEPEST:
            return self._finding(Finding(Kind.TOO_LARGE, f"archives are nested more than {DEEPEST} deep"))
        as_mail = not opened and (reader.MESSAGE_NAME.search(name) or _MAIL.match(data[:200]))
        if as_mail and (why := self._in_mail(data, budget, depth)):
            return why
        try:
            for member in look.members(data, name, budget):
                for one in member.names:
                    if self._matching(one):
                        return f"has {one!r} in it"
                for finding in self._counted(member.findings):
                    return f"has something in it that is {finding}" if member.names else f"is {finding}"
                if member.data and (
                    why := self._inside(member.data, member.names[0] if member.names else "", budget, depth + 1)
                ):
                    return why
        except Unreadable as error:
            if error.finding.kind is Kind.TOO_LARGE:
                raise
            return self._finding(error.finding)
        return ""

    def _in_mail(self, data: bytes, budget: Budget, depth: int) -> str:
        for message in reader.with_line_ends(data):
            budget.take(1, len(message))
            if why := self._in_reading(reader.read(message), budget, depth):
                return why
        return ""

    def _in_reading(self, reading: Reading, budget: Budget, depth: int) -> str:
        for finding in self._counted(reading.findings):
            return f"has mail in it that is {finding}"
        for part in reading.parts:
            if not _whole(part, reading) and (why := self._why_deep(part, budget, depth)):
                return f"has {_named(part)} in it, which {why}"
        return ""

    def _why_deep(self, part: Part, budget: Budget, depth: int) -> str:
        if why := self._by_name(part):
            return why
        if part.attached and self._types and any(self._types.match(type_) for type_ in part.types):
            return f"is {part.type}"
        for data in part.contents():
            if why := self._inside(data, part.name, budget, depth + 1, opened=not part.attached):
                return why
        return ""

    def _by_name(self, part: Part) -> str:
        """Return how a name of this part matches, '' when none does."""
        for name in (*part.names, *part.labels):
            if matching := self._matching(name):
                return "has such a name" if matching == part.name.lower() else f"may be shown as {matching[:100]!r}"
        return ""

    def _matching(self, name: str) -> str:
        """Return the spelling of a name that matches, '' for none."""
        if self._names is None:
            return ""
        return next((spelled for spelled in sorted(spellings(name)) if self._names.match(spelled)), "")

    def _finding(self, finding: Finding) -> str:
        return f"is {finding}" if finding.kind in self._kinds else ""

    def _stripped(self, part: Part, why: str, size: int) -> Iterator[Edit]:
        note = self._options.note.replace("{name}", _named(part)).replace("{why}", why)
        text = encodestring(note.encode("utf-8", "replace")).decode("ascii")
        how = {"Content-Type": "text/plain; charset=utf-8", "Content-Transfer-Encoding": "quoted-printable"}
        if part.start:
            head = "".join(f"{name}: {value}\n" for name, value in how.items())
            yield Cut(part.start, part.end, f"{head}\n{text}\n"[:9000])
            return
        # The whole message is the attachment, and its header says so.
        yield RemoveHeader("Content-Disposition")
        for name, value in how.items():
            yield SetHeader(name, value)
        if part.body < size:
            yield Cut(part.body, size, f"{text}\n"[:9000])


def _whole(part: Part, reading_: reader.Reading) -> bool:
    """Return whether a part is all of the data it was read from, and no mail: it was checked already."""
    return len(reading_.parts) == 1 and part.start == 0 and not part.names


def _named(part: Part) -> str:
    return repr(part.name[:100]) if part.name else f"a part without a name ({part.type})"


def _any_of(globs: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(translate(glob.lower()) for glob in globs)) if globs else None
