"""The contents of a node, for the tests of all its ways to a worker."""

from __future__ import annotations

from pathlib import Path

from sendswitch.broker.base import ReadContent
from sendswitch.errors import Temporary
from sendswitch.mail.content import Content, InFile, InMemory
from sendswitch.mail.task import Reference

SMALL = b"Subject: small\r\n\r\nText\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"x" * 70 * 50_000


def reading(file: Path) -> ReadContent:
    """Read LARGE from a file, which is made, when its size is asked for; nothing of message 404; else SMALL."""
    file.write_bytes(LARGE)

    async def read(reference: Reference) -> Content:
        if reference.size == len(LARGE):
            return InFile(file, len(LARGE))
        if reference.message == 404:
            raise Temporary("the disk is away")
        return InMemory(SMALL)

    return read
