"""The content of messages in the spool, read in one place: its length and its SHA-256 are checked each time.

Content up to 256 KiB is in the database, larger content in a file (`spool.body` writes both).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from sendswitch.errors import ContentDamaged
from sendswitch.mail.content import Content, Damaged, InFile, InMemory, verify
from sendswitch.mail.ids import to_text
from sendswitch.spool.schema import content_file


@dataclass(frozen=True, slots=True)
class Stored:
    """The spool's record of a message's content. `small` is None where it is in a file, or gone.

    `digest` is None for content of before digests were kept.
    """

    message: int
    size: int
    digest: bytes | None
    in_file: bool
    small: bytes | None


# The columns of a Stored, in a query over `message m LEFT JOIN content c ON c.message = m.id`.
STORED = "m.id, m.size, m.digest, m.in_file, c.bytes"


def open_content(files: Path, stored: Stored) -> Content:
    """Return content that is what was stored. `files` is the spool's folder of large content. Blocks.

    Raises FileNotFoundError when the spool has it no more, another OSError when it cannot be read, and ContentDamaged.
    """
    found: Content
    if stored.in_file:
        path = content_file(files, stored.message)
        found = InFile(path, path.stat().st_size)
    elif stored.small is not None:
        found = InMemory(stored.small)
    else:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), to_text(stored.message))
    try:
        return verify(found, stored.size, stored.digest)
    except Damaged as error:
        text = to_text(stored.message)
        raise ContentDamaged(f"the content of {text} in the spool is damaged: {error}") from error
