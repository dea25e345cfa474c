"""Save a copy of each message into a folder: as it came, with its envelope as JSON, or into a Maildir.

A file is complete when it has its name: it is written under another one, synced, and renamed. Its name is made of the
message's id and the recipient, so that a message which is offered again is saved once. In a try or a replay nothing
is saved.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, field_validator

from sendswitch.durable import replace
from sendswitch.mail.ids import from_text, received
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base
from sendswitch.processors.hosting.threads import reading


class SaveOptions(base.Options):
    """Options of `save`."""

    folder: Path = Field(description="Where to; absolute. It is made when it is not there, its parent must be.")
    format: Literal["eml", "json", "maildir"] = Field(
        "eml", description="The message as it came; with envelope, header and text as JSON; or a Maildir."
    )

    @field_validator("folder")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute() or ".." in value.parts:
            raise ValueError(f"{value} must be an absolute path without '..'")
        return value


class Save:
    """Saves the message and has no opinion."""

    Options: ClassVar[type[base.Options]] = SaveOptions
    version = "1"

    def __init__(self, options: SaveOptions) -> None:
        self._options = options
        self._readers = base.Services().readers

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return nothing but where it is. Raises OSError that names the file."""
        if context.rehearsal:
            return Verdict(reason="nothing is saved in a rehearsal")
        told = None
        if self._options.format == "json":
            told = await self._readers.described(mail, context, thin=False)
        path = await reading(self._save, mail, context, told)
        return Verdict(reason=f"saved as {path}")

    def setup(self, services: base.Services) -> None:
        """Take the readers of content."""
        self._readers = services.readers

    def _save(self, mail: Mail, context: base.Context, told: dict[str, Any] | None) -> Path:
        folder, format_ = self._options.folder, self._options.format
        folder.mkdir(mode=0o700, exist_ok=True)
        whose = hashlib.sha256(context.recipient.address.encode("utf-8", "replace")).hexdigest()[:8]
        name = f"{context.message}-{whose}"
        if format_ == "maildir":
            for part in ("tmp", "new", "cur"):
                (folder / part).mkdir(mode=0o700, exist_ok=True)
            # Maildir's own names: the time, what is unique, and the machine.
            unique = f"{received(from_text(context.message)):.0f}.{name}.{_host()}"
            target, beside = folder / "new" / unique, folder / "tmp" / unique
            if any((folder / "cur").glob(f"{unique}:*")):
                return target  # read already
        else:
            target, beside = folder / f"{name}.{format_}", folder / f".{name}.{format_}.part"
        if not target.exists():
            replace(target, mail.content.chunks() if told is None else _json(told), beside)
        return target


def _host() -> str:
    return socket.gethostname().replace("/", "_").replace(":", "_")


def _json(told: dict[str, Any]) -> Iterable[bytes]:
    yield orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
