"""File names in every spelling that a program may use for the file that it writes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from sendswitch.mail.mime.words import decoded
from sendswitch.mail.text import storable

LONGEST_NAME = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u00ad]")
_UNSAFE_END = " \t\r\n\0.\u00a0\u3000\"'/\\;,:?*<>|\u2026"
_SPACES = re.compile(r"\s+")
_VERSION = re.compile(r";\d*\Z")


def readable(values: Iterable[str]) -> tuple[str, ...]:
    """Return names as people read them: encoded words decoded, folding undone, each once."""
    out: dict[str, None] = {}
    for value in values:
        value = value[:LONGEST_NAME].replace("\r\n", "")
        if "\0" in value:  # a program in C stops there
            out[storable(decoded(value.partition("\0")[0]), LONGEST_NAME)] = None
        text = decoded(value)
        if '"' in text:
            out[storable(decoded(text.replace('" "', "")).replace('"', ""), LONGEST_NAME)] = None
        out[storable(text, LONGEST_NAME)] = None
        if "=" in value and "?" not in value and re.search("=[0-9A-Fa-f]{2}", value):
            plain = re.sub(r"=([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), value)
            out[storable(plain, LONGEST_NAME)] = None
    out.pop("", None)
    return tuple(out)


def spellings(name: str) -> set[str]:
    """Return a name as programs may write it to disk, in lower case.

    Without its folders in either notation; without what systems drop at its end (dots, spaces, slashes); up to a NUL, a
    line end or another control character, and without them; without the version of VMS and the stream of NTFS.
    """
    found: set[str] = set()
    name = name[:LONGEST_NAME]
    for text in (name, name.partition("\0")[0], re.split(r"[\r\n]", name, maxsplit=1)[0], _CONTROL.sub("", name)):
        for one in (text, _CONTROL.split(text, maxsplit=1)[0]):
            for inside in (one, one.partition("::")[0], _VERSION.sub("", one), unicodedata.normalize("NFKC", one)):
                bare = inside.rstrip(_UNSAFE_END)
                pieces = [piece for piece in re.split(r"[/\\]", bare) if piece.strip(_UNSAFE_END)]
                last = pieces[-1] if pieces else bare
                for spelled in (last, last.rpartition(":")[2], last.strip("\"' "), last.partition(";")[0]):
                    found.add(_SPACES.sub(" ", spelled).lower().rstrip(_UNSAFE_END).lstrip(" \"'"))
                found.add(inside.lower())
    found.discard("")
    return found
