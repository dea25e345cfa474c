"""Transfer encodings (RFC 2045 section 6): which ones a field names, and content decoded from each.

Readers disagree about a field that is repeated, misspelled or has comments in odd places, and about junk in the
content. So `encodings` returns every encoding that a reader could take, and `decodings` every result.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Sequence

from sendswitch.mail.mime.base64 import unpacked
from sendswitch.mail.mime.lexer import without_comments
from sendswitch.mail.mime.words import decoded

IDENTITY = ""
BASE64, QUOTED, UUENCODE = "base64", "quoted-printable", "uuencode"
_NAMES = {
    "7bit": IDENTITY,
    "8bit": IDENTITY,
    "binary": IDENTITY,
    "base64": BASE64,
    "quoted-printable": QUOTED,
    "uuencode": UUENCODE,
    "x-uuencode": UUENCODE,
    "x-uue": UUENCODE,
    "uue": UUENCODE,
    "x-uu": UUENCODE,
}
# What sloppy programs write for "not encoded".
_HARMLESS = frozenset(("8-bit", "7-bit", "7bits", "8bits", "none", "utf-8", "us-ascii", "iso-8859-1", "bit7", "8 bit"))
_LOOSE = ((BASE64, re.compile(r"base.{0,3}64", re.S)), (QUOTED, re.compile("quoted")), (UUENCODE, re.compile("uu")))
_JUNK = re.compile(r"[^a-z0-9-]+")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/ \t\r\n"
_PADDING = re.compile(rb"=+")


def encodings(values: Sequence[str]) -> tuple[list[str], str]:
    """Return the encodings that readers could take, the most likely first, and why they may differ, '' if they agree.

    `values` are those of all Content-Transfer-Encoding fields, as written.
    """
    if not values:
        return [IDENTITY], ""
    named: dict[str, None] = {}
    beside: dict[str, None] = {}
    doubt = ""
    for value in values:
        token = without_comments(value).strip().lower()
        if token in _NAMES:
            named[_NAMES[token]] = None
            if value.removeprefix(" ").lower() != token:
                beside[IDENTITY] = None  # some know no encoding with blanks, a fold or a comment
            if token not in value.lower():
                doubt = f"the transfer encoding {value.strip()[:60]!r} has a comment inside a word"
            continue
        if token in _HARMLESS or not value.strip():
            named[IDENTITY] = None
            continue
        loose = _loosely(value)
        if loose or not token:
            doubt = f"the transfer encoding {value.strip()[:60]!r} can be read as {' and as '.join(loose) or 'none'}"
        named.update(dict.fromkeys(loose))
        named.update(dict.fromkeys((IDENTITY, BASE64, QUOTED)))
    if len(values) > 1 and len(named) > 1 and not doubt:
        doubt = "there are several transfer encodings"
    if len(named) > 1 and doubt:
        named.setdefault(IDENTITY)
    return list(named | beside), doubt


def _loosely(value: str) -> list[str]:
    text = decoded(value).lower()
    bare = _JUNK.sub("", text)
    return [name for name, pattern in _LOOSE if pattern.search(text) or pattern.search(bare)]


def decodings(data: bytes, encoding: str) -> Iterator[bytes]:
    """Yield the decodings of `data`, the usual reading first. Lenient, and linear in its length."""
    match encoding:
        case "base64":
            whole = data.rstrip(b"= \t\r\n")
            if b"=" not in whole:
                yield unpacked(whole)
            else:
                pieces = _PADDING.split(whole)
                yield b"".join(map(unpacked, pieces))
                yield unpacked(pieces[0])  # a reader that stops at the padding
                yield unpacked(b"".join(pieces))
            if whole.translate(None, _BASE64):
                yield data  # a reader that takes it for no Base64 at all
        case "quoted-printable":
            yield binascii.a2b_qp(data)
        case "uuencode":
            yield from (found for _, found in uuencoded(data))
            yield data  # not every reader knows it
        case _:
            yield data


_UU_BEGIN = re.compile(rb"^[ \t]*begin(-base64)?[ \t]+[0-7]{3,6}[ \t]+([^\r\n]+)", re.M | re.I)
_UU_END = re.compile(rb"\s*(?:`[ \t]*\r?\n)?end\b", re.I)
_LINE = re.compile(rb"[^\r\n]*(?:\r?\n|\Z)")


def uuencoded(data: bytes, most: int = 100) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file in `data` that is written by uuencode (POSIX), with `most` files at most."""
    at = 0
    for _ in range(most):
        begin = _UU_BEGIN.search(data, at)
        if begin is None:
            return
        name = begin[2].strip().decode("utf-8", "replace")
        at = begin.end()
        if begin[1]:
            end = data.find(b"====", at)
            end = len(data) if end < 0 else end
            yield name, unpacked(data[at:end])
            at = end
            continue
        start = data.find(b"\n", at) + 1 or len(data)
        content, at = _lines(data, _behind_blank(data, start))
        if content or _UU_END.match(data, start) is not None:  # else the line is a sentence
            yield name, content


def _behind_blank(data: bytes, at: int) -> int:
    """Return where the first line that is not empty begins."""
    while data[at : at + 1] in (b"\r", b"\n"):
        at += 1
    return at


def _lines(data: bytes, at: int) -> tuple[bytes, int]:
    """Decode lines until one that is not uuencoded; return the content and where that line begins."""
    out: list[bytes] = []
    while at < len(data):
        found = _LINE.match(data, at)
        assert found is not None
        line = found[0].rstrip(b"\r\n")
        if not line or line.lower().startswith(b"end") or not 32 <= line[0] <= 96:
            break
        count = (line[0] - 32) & 63
        if count == 0:
            break
        try:
            out.append(binascii.a2b_uu(line))
        except binascii.Error:
            wanted = (count * 4 + 5) // 3
            try:
                out.append(binascii.a2b_uu(line[:wanted]))
            except binascii.Error:
                break
        at = found.end()
    return b"".join(out), at
