"""Why another program sees what we do not, in each case that is left: reasons that are checked, not believed.

docs/differences.md tells them; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.mime import transfer
from sendswitch.mail.mime.names import spellings
from sendswitch.mail.mime.words import decoded
from tests.differential.digests import digest


def _undecoded_name(raw: bytes, name: str, content: str) -> bool:
    return "=?" in name and bool(spellings(decoded(name)) & _names(raw))


def _names(raw: bytes) -> set[str]:
    return {spelled for part in Mail(InMemory(raw)).parts for name in part.names for spelled in spellings(name)}


def _undecoded_content(raw: bytes, name: str, content: str) -> bool:
    """What is shown is Base64 as it stands in the message: nothing but letters of its alphabet."""
    for part in Mail(InMemory(raw)).parts:
        coded = part.source[part.body : part.end]
        if re.fullmatch(rb"[A-Za-z0-9+/=\s]*", coded) and digest(coded) == content:
            return True
    return False


def _beyond(raw: bytes, name: str, content: str) -> bool:
    """What is shown is what we see and what follows in the message, to its end."""
    return content in {
        digest(data)
        for part in Mail(InMemory(raw)).parts
        for encoding in ("", *part.encodings)
        for data in transfer.decodings(part.source[part.body :], encoding)
    }


def _repaired(raw: bytes, name: str, content: str) -> bool:
    """What is shown is what we see, with bytes replaced that are no UTF-8."""
    return content in {digest(data.decode("utf-8", "replace").encode()) for data in _contents(raw)}


def _contents(raw: bytes) -> Iterator[bytes]:
    for part in Mail(InMemory(raw)).parts:
        yield from part.contents()


EXPLAINED: dict[str, Callable[[bytes, str, str], bool]] = {
    "A name is shown undecoded": _undecoded_name,
    "Base64 is shown undecoded": _undecoded_content,
    "Content goes on behind its multipart": _beyond,
    "Bytes that are no UTF-8 are replaced": _repaired,
}


def why(raw: bytes, name: str, content: str) -> str:
    """Return the reason for which a name or content is shown that we do not see, '' for none."""
    return next((reason for reason, holds in EXPLAINED.items() if holds(raw, name, content)), "")
