"""File names in every spelling that a program may use for the file that it writes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote

from sendswitch.mail.mime.words import readings
from sendswitch.mail.text import storable

# Characters of a name at its beginning and at its end that are looked at; no system takes longer ones.
LONGEST_NAME = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u00ad]")
_UNSAFE_END = " \t\r\n\0.\u00a0\u3000\"'/\\;,:?*<>|\u2026"
_SPACES = re.compile(r"\s+")
_VERSION = re.compile(r";\d*\Z")
_NO_WORD_AT_END = re.compile(r"[^\w]+\Z")
_QUOTED = re.compile("=([0-9A-Fa-f]{2})")
# Names about which all programs agree.
_PLAIN = re.compile(r"[A-Za-z0-9_ -]+(?:\.[A-Za-z0-9_-]+)*\Z")


def readable(values: Iterable[str]) -> tuple[str, ...]:
    """Return names as people read them: encoded words decoded, folding undone, each once."""
    out: dict[str, None] = {}
    for value in values:
        value = value.replace("\r\n", "")
        texts = readings(value)
        if "\0" in value:  # a program in C stops there
            texts[:0] = readings(value.partition("\0")[0])
        if '"' in texts[-1]:
            texts += [text.replace('"', "") for text in readings(value.replace('" "', ""))]
        if "=" in value and "?" not in value and _QUOTED.search(value):
            texts.append(_QUOTED.sub(lambda found: chr(int(found[1], 16)), value))
        for text in texts:
            for cut in _ends(text):
                out[storable(cut, len(cut))] = None
    out.pop("", None)
    return tuple(out)


def _ends(name: str) -> tuple[str, ...]:
    """Return a name, or of a long one its beginning and its end."""
    if len(name) <= LONGEST_NAME:
        return (name,)
    return name[:LONGEST_NAME], name[-LONGEST_NAME:], name.strip()[-LONGEST_NAME:]


def spellings(name: str) -> set[str]:
    """Return the names under which programs may write a file to disk, in lower case.

    They are: without folders in either notation; without the characters that systems drop at the end (dots, spaces,
    slashes); cut at a NUL, a line end or another control character, and without these; without VMS's version and NTFS's
    stream; and with percent signs decoded, as browsers do.
    """
    if _PLAIN.match(name):
        return {name.lower()}
    return {spelled for end in _ends(name) for spelled in _spellings(end)} - {""}


def _spellings(name: str) -> set[str]:
    found: set[str] = set()
    for text in {
        name,
        unquote(name),
        name.partition("\0")[0],
        re.split(r"[\r\n]", name, maxsplit=1)[0],
        _CONTROL.sub("", name),
    }:
        for one in {text, _CONTROL.split(text, maxsplit=1)[0]}:
            for inside in {one, one.partition("::")[0], _VERSION.sub("", one), unicodedata.normalize("NFKC", one)}:
                bare = inside.rstrip(_UNSAFE_END)
                pieces = [piece for piece in re.split(r"[/\\]", bare) if piece.strip(_UNSAFE_END)]
                last = pieces[-1] if pieces else bare
                for spelled in (last, last.rpartition(":")[2], last.strip("\"' "), last.partition(";")[0]):
                    found.add(_SPACES.sub(" ", spelled).lower().rstrip(_UNSAFE_END).lstrip(" \"'"))
                found.add(_NO_WORD_AT_END.sub("", last).lower())
                found.add(inside.lower())
    return found
