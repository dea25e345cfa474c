"""A Sieve script (RFC 5228) as a step.

keep goes on with the next step; fileinto tags the mail and names the folder in a header field for the mailbox server;
redirect forwards; reject denies; discard discards and records it in the journal; vacation answers (RFC 5230). A script
with more comparisons than allowed fails, and `on_error` decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from email.header import Header
from typing import Any, ClassVar

from pydantic import Field, field_validator

from sendswitch.errors import Refused, Temporary
from sendswitch.mail.edits import AddHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import FOLDER, MAX_FORWARD, MAX_TAG, MAX_TAGS, Action, Denial, Verdict
from sendswitch.mail.verdict_checks import checked_tags
from sendswitch.processors import base
from sendswitch.processors.reply import ReplyOptions, answer
from sendswitch.reply import Reply, printable
from sendswitch.sieve.grammar import LONGEST, SieveError, TooMuch
from sendswitch.sieve.run import ScriptOutcome, Vacation
from sendswitch.sieve.script import Script

_NO_TAG = re.compile(r"[^A-Za-z0-9_-]+")


class SieveOptions(base.Options):
    """Options of `sieve`."""

    script: str = Field(min_length=1, max_length=LONGEST, description="The script.")
    folders: dict[str, str] = Field(
        default_factory=dict, description="Tag by folder; without one the tag is the folder's name."
    )
    redirects: int = Field(4, ge=0, le=MAX_FORWARD, description="Most addresses that one mail is redirected to.")
    delimiter: str = Field("+", max_length=1, description="What :user and :detail of an address stand on each side of.")

    @field_validator("folders")
    @classmethod
    def _tags(cls, value: dict[str, str]) -> dict[str, str]:
        checked_tags(tuple(value.values()))
        return value


class Sieve:
    """The step that carries out a script."""

    Options: ClassVar[type[base.Options]] = SieveOptions
    use: ClassVar[str] = "sieve"
    waits_for_names: ClassVar[bool] = False
    version = "1"

    def __init__(self, options: SieveOptions) -> None:
        """Read the script. Raises SieveError with the line that is wrong."""
        self.options = options
        self._script = Script(options.script, delimiter=options.delimiter)
        self._auto_replies: base.AutoReplySender | None = None
        self._readers: base.Readers = base.Services().readers

    def setup(self, services: base.Services) -> None:
        """Take the sender of replies, and the readers of content."""
        self._auto_replies, self._readers = services.auto_replies, services.readers

    def options_json(self) -> Mapping[str, Any]:
        """Return the options."""
        return self.options.model_dump(mode="json", exclude_unset=True)

    def read(self, mail: Mail, context: base.Context) -> Any:
        """Return the actions of the script, or the reason why it failed. Raises Temporary for too much work."""
        try:
            out = self._script.run(mail, context.sender, context.recipient.address)
        except TooMuch as error:
            raise Temporary(str(error)) from error
        except SieveError as error:
            return {"failed": str(error)}
        return asdict(out)

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the verdict of the script. Raises the errors of `processors.reply.answer`."""
        read = await self._readers.read(self, mail, context)
        try:
            if "failed" in read:
                raise Refused(read["failed"])
            vacation = read.pop("vacation")
            out = ScriptOutcome(**read, vacation=None if vacation is None else Vacation(**vacation))
            verdict = verdict_of(out, self.options)
        except Refused as error:
            # Asked again it would fail again, and RFC 5228 2.10.6 has such mail kept.
            return Verdict(reason=f"the script failed, so the mail is kept: {error}")
        if out.vacation is not None:
            context.notes.append(await answer(self._auto_replies, mail, context, _letter(out.vacation)))
        return verdict


def verdict_of(out: ScriptOutcome, options: SieveOptions) -> Verdict | None:
    """Return the verdict that carries out a script's actions. Raises Refused when nothing can."""
    did = "; ".join(out.did)
    if out.rejected is not None:
        if out.kept or out.folders or out.redirects or out.vacation is not None:
            raise Refused(f"the script rejects the mail and does something else with it, too ({did})")
        text = printable(" ".join(out.rejected.split())) or "Message refused by the recipient's filter"
        return Verdict(Action.DENY, reason=did, reply=Reply(550, "5.7.1", text))
    if len(out.redirects) > options.redirects:
        raise Refused(
            f"the script redirects to {len(out.redirects)} addresses; at most {options.redirects} are allowed"
        )
    if len(out.folders) > MAX_TAGS:
        raise Refused(f"the script files into {len(out.folders)} folders; at most {MAX_TAGS} are allowed")
    folders = tuple(AddHeader(FOLDER, _in_header(folder)) for folder in out.folders)
    if out.redirects:
        # Without tags, which others would see.
        to = tuple(out.redirects)
        return Verdict(Action.FORWARD, edits=folders, forward=to, keep_copy=out.delivered, reason=did)
    if not out.delivered:
        return Verdict(Action.DENY, reason=did, denial=Denial.DISCARD)
    tags = tuple(dict.fromkeys(options.folders.get(folder) or _tag(folder) for folder in out.folders))
    return Verdict(tags=tags, edits=folders, reason=did) if did else None


def _in_header(folder: str) -> str:
    """Return a folder's name as a header field has it (RFC 2047)."""
    return folder if folder.isascii() else Header(folder, "utf-8").encode()


def _tag(folder: str) -> str:
    return _NO_TAG.sub("-", folder).strip("-")[:MAX_TAG] or "FOLDER"


def _letter(vacation: Vacation) -> ReplyOptions:
    return ReplyOptions(
        text=vacation.reason[:20_000] or " ",
        subject=vacation.subject[:500] or "Auto: {subject}",
        addresses=vacation.addresses[:50],
        again=f"{vacation.days}d",
    )
