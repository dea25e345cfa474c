"""A courier to Maildirs on this machine: one folder a recipient, for the demo and for small sites without an MTA.

Durable as maildir(5) asks: written under tmp/, fsynced, renamed into new/, the folder fsynced. A crash before the
rename leaves nothing in new/; after it the message is there once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from sendswitch.durable import publish, write_new
from sendswitch.mail.address import key
from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope
from sendswitch.reply import Reply, printable
from sendswitch.smtp.client import Delivered
from sendswitch.smtp.protocol.client import Outcome

_STORED = Reply(250, "2.0.0", "Ok: stored in Maildir")


def folder_name(address: str) -> str:
    """Return the folder of an address: its key, percent-encoded where it could leave the root; no two addresses share
    one.
    """
    name = quote(key(address), safe="@+")
    return "%2E" + name[1:] if name.startswith(".") else name


class MaildirCourier:
    """Stores into `root/<address>/new`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._host = socket.gethostname().replace("/", "_").replace(":", "_")
        self._count = itertools.count()

    async def deliver(self, envelope: Envelope, content: Content, *, unanimous: bool = False) -> Delivered:
        """Store one file for each recipient; a folder that cannot be written is a 451."""
        return await asyncio.to_thread(self._deliver, envelope, content, unanimous)

    async def check(self) -> Reply | None:
        """Return why folders cannot be made here, None when they can."""
        try:
            await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            return Reply(451, "4.3.0", printable(f"Cannot create {self._root}: {error.strerror}"))
        return None

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def _deliver(self, envelope: Envelope, content: Content, unanimous: bool) -> Delivered:
        written = [self._write(envelope, recipient.address, content) for recipient in envelope.recipients]
        if unanimous and any(isinstance(path, Reply) for path in written):
            for path in written:
                if isinstance(path, Path):
                    path.unlink(missing_ok=True)
            return Delivered(tuple(Outcome(path if isinstance(path, Reply) else None) for path in written))
        outcomes = tuple(Outcome(path if isinstance(path, Reply) else _show(path)) for path in written)
        return Delivered(outcomes, final=True)

    def _write(self, envelope: Envelope, address: str, content: Content) -> Path | Reply:
        """Return a complete, durable file under tmp/."""
        folder = self._root / folder_name(address)
        temporary = folder / "tmp" / f"{time.time():.6f}.P{os.getpid()}Q{next(self._count)}.{self._host}"
        try:
            for part in ("tmp", "new", "cur"):
                (folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
            head = f"Return-Path: <{envelope.sender}>\r\nDelivered-To: {address}\r\n".encode()
            write_new(temporary, chain([head], content.chunks()))
        except OSError as error:
            return _failed(folder, error)
        return temporary


def _show(temporary: Path) -> Reply:
    """Move a complete file into new/, where readers see it."""
    new = temporary.parent.parent / "new"
    try:
        publish(temporary, new / temporary.name)
    except OSError as error:
        return _failed(new, error)
    return _STORED


def _failed(folder: Path, error: OSError) -> Reply:
    return Reply(451, "4.3.0", printable(f"Cannot store in {folder}: {error.strerror}"))
