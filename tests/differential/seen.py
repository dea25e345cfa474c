"""The names and the content that the filter sees in an input, as answers are compared with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from sendswitch.mail.message import Mail
from sendswitch.mail.mime.names import spellings


def digest(content: bytes) -> str:
    """Return a short digest that line ends and blanks at the end do not change, '' for no content."""
    bare = content.replace(b"\r", b"").strip()
    return hashlib.sha256(bare).hexdigest()[:8] if bare else ""


def names(mail: Mail) -> set[str]:
    """Return the names of all parts, in every spelling."""
    return {spelled for part in mail.parts for name in part.names for spelled in spellings(name)}


def contents(mail: Mail) -> Iterator[bytes]:
    """Yield the content of each part, in every reading."""
    for part in mail.parts:
        yield from part.contents()
