"""Message content on the wire: the end of data, dot-stuffing (RFC 5321 4.5.2) and line ends, both ways.

Rules:
1. Data ends at CRLF.CRLF, where the first CRLF may be the one before the content, and nowhere else.
2. A bare LF becomes CRLF and a bare CR a space as content comes in, before anybody reads or stores it. So content
   is clean everywhere inside, and no reader behind us can see an end of data or a header where the pipeline saw
   none (SMTP smuggling: CVE-2023-51764 and its kin). These are the choices of Postfix
   (smtpd_forbid_bare_newline = normalize, cleanup_replace_stray_cr_lf).
3. Everything else is the same, byte for byte.

Danger: pieces may be cut anywhere. Each class keeps the few bytes whose meaning the next piece decides.
"""

from __future__ import annotations

import re

END = b"\r\n.\r\n"

_STRAY = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def clean(data: bytes) -> bytes:
    """Return `data` with rule 2 applied. It must not begin or end between a CR and its LF."""
    rest = data.replace(b"\r\n", b"")  # four times as fast as counting each, with 80 characters a line
    if b"\n" not in rest and b"\r" not in rest:
        return data
    return _STRAY.sub(lambda found: b" " if found[0] == b"\r" else b"\r\n", data)


class DotDecoder:
    """The decoder of content after DATA. Feed it until `rest` is bytes: the bytes behind the end of data."""

    __slots__ = ("_held", "_skip", "rest")

    def __init__(self) -> None:
        self._held = b"\r\n"  # rule 1: the CRLF that ended the DATA command line
        self._skip = 2
        self.rest: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the content that is certain now, unstuffed and clean."""
        work = self._held + data
        end = work.find(END)
        if end >= 0:
            self.rest = work[end + 5 :]
            piece = work[: end + 2]
        else:
            held = 0
            for length in (4, 3, 2, 1):
                if work.endswith(END[:length]):
                    held = length
                    break
            piece, self._held = (work[:-held], work[-held:]) if held else (work, b"")
        piece = piece.replace(b"\r\n.", b"\r\n")
        if self._skip and piece:
            piece, self._skip = piece[self._skip :], 0
        return clean(piece)


class ChunkDecoder:
    """Content of BDAT chunks (RFC 3030): nothing is stuffed, only rule 2 applies, across chunks too."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """Return the content that is certain now. `last` releases the bytes that were kept back."""
        work = self._held + data
        self._held = b""
        if not last and work.endswith(b"\r"):
            work, self._held = work[:-1], b"\r"
        return clean(work)


class DotEncoder:
    """Content for DATA, stuffed piece by piece. `end` closes it, with a CRLF first where the last line has none.

    The content must be clean, which everything in the spool is.
    """

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before = b"\r\n"

    def feed(self, data: bytes) -> bytes:
        """Return the next piece as it goes over the wire."""
        if not data:
            return b""
        work = self._before + data
        self._before = work[-2:]
        return work.replace(b"\r\n.", b"\r\n..")[2:]

    def end(self) -> bytes:
        """Return the end of data."""
        return b".\r\n" if self._before == b"\r\n" else b"\r\n.\r\n"


def stuffed(data: bytes) -> bytes:
    """Return a whole message, clean, as it goes over the wire after DATA, the end of data included."""
    if b"\r\n." in data:
        data = data.replace(b"\r\n.", b"\r\n..")
    if data[:1] == b".":
        data = b"." + data
    return data + (b".\r\n" if data[-2:] == b"\r\n" or not data else b"\r\n.\r\n")
