"""Why another program sees what we do not, in each case that is left: reasons that are checked, not believed.

docs/differences.md tells them; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.mail.mime import transfer
from sendswitch.mail.mime.names import spellings
from sendswitch.mail.mime.words import decoded
from tests.differential import seen
from tests.differential.seen import digest

_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]*")


def _undecoded_name(mail: Mail, name: str, content: str) -> bool:
    """Return whether the name is one of ours when its encoded words are decoded."""
    return "=?" in name and bool(spellings(decoded(name)) & seen.names(mail))


def _undecoded_content(mail: Mail, name: str, content: str) -> bool:
    """Return whether the content is Base64 as it stands in the message: nothing but letters of its alphabet."""
    coded = (part.source[part.body : part.end] for part in mail.parts)
    return content in {digest(data) for data in coded if _BASE64.fullmatch(data)}


def _beyond(mail: Mail, name: str, content: str) -> bool:
    """Return whether the content is one of ours and all that follows it in the message."""
    return content in {
        digest(data)
        for part in mail.parts
        for encoding in ("", *part.encodings)
        for data in transfer.decodings(part.source[part.body :], encoding)
    }


def _repaired(mail: Mail, name: str, content: str) -> bool:
    """Return whether the content is one of ours with bytes replaced that are no UTF-8."""
    return content in {digest(data.decode("utf-8", "replace").encode()) for data in seen.contents(mail)}


EXPLAINED: dict[str, Callable[[Mail, str, str], bool]] = {
    "A name is shown undecoded": _undecoded_name,
    "Base64 is shown undecoded": _undecoded_content,
    "Content goes on behind its multipart": _beyond,
    "Bytes that are no UTF-8 are replaced": _repaired,
}


def why(raw: bytes, name: str, content: str) -> str:
    """Return the reason for which a name or content is shown that we do not see, '' for none."""
    mail = Mail(InMemory(raw))
    return next((reason for reason, holds in EXPLAINED.items() if holds(mail, name, content)), "")
