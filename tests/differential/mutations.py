"""Messages and zip files that programs read in different ways: numbered, so that answers about them can be recorded.

Each is a good one with one to three faults, chosen by the digest of its number: the same on every machine.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from base64 import b64encode
from binascii import b2a_uu
from collections.abc import Sequence
from quopri import encodestring

MESSAGES, ZIPS = 3000, 400
SECRET = b"MZ This is what nobody may get past a filter.\r\n" * 3
NAME = "evil.exe"


class _Dice:
    """Choices that follow from a number."""

    def __init__(self, kind: str, number: int) -> None:
        self._left = int.from_bytes(hashlib.sha512(f"{kind} {number}".encode()).digest(), "big")

    def choose(self, options: Sequence[bytes]) -> bytes:
        return options[self.below(len(options))]

    def below(self, most: int) -> int:
        self._left, found = divmod(self._left, most)
        return found


# How the fields and lines of a message may be written; the first is the good one.
_TOP = (
    b'Content-Type: multipart/mixed; boundary="sep"',
    b"Content-Type: multipart/mixed; boundary=sep",
    b"content-type:multipart/mixed;boundary=sep",
    b"Content-Type: Multipart/X-Any#!; boundary=sep",
    b'Content-Type: multipart/mixed (a "comment"); boundary=sep (another)',
    b"Content-Type: multipart/mixed; boundary*=utf-8''sep",
    b'Content-Type: multipart/mixed; boundary*0=s; boundary*1="ep"',
    b"Content-Type: multipart/mixed; boundary=other; boundary=sep",
    b"Content-Type: multipart/mixed; boundary=sep; boundary=other",
    b'Content-Type: multipart/mixed;\r\n\tboundary=\r\n "sep"',
    b"Content-Type: multipart/mixed boundary=sep",
    b'Content-Type: multipart/mixed; boundary="sep',
    b"Content-Type: multipart/mixed; boundary='sep'",
    b'Content-Type: multipart/mixed; boundary="s\\ep"',
    b"Content-Type: multipart/mixed; boundary=sep;;; charset=x",
    b"Content-Type: multipart; boundary=sep",
    b"Content-Type: multipart/mixed/more; boundary=sep",
    b"Content-Type: =?utf-8?q?multipart/mixed?=; boundary=sep",
    b"Content-Type: text/plain\r\nContent-Type: multipart/mixed; boundary=sep",
    b"Content-Type: multipart/mixed; boundary=sep\r\nContent-Type: text/plain",
    b"Content-Type : multipart/mixed; boundary=sep",
    b"Content-Type:\r\n multipart/mixed; boundary=sep",
    b"Content-Type: multipart/mixed;\tboundary =\tsep",
    b"Content-Type: multipart/mixed; Boundary=SEP; boundary=sep",
    b"Content-Type: text/plain; boundary=sep",
    b"Content-Type: multipart/digest; boundary=sep",
    b"Content-Type: multipart/appledouble; boundary=sep",
    b"Content-Type: multipart/mixed; boundary=sep, charset=utf-8",
    b'Content-Type: multipart/mixed; boundary="sep"x',
    b"X-Odd line without a colon\r\nContent-Type: multipart/mixed; boundary=sep",
)
_DELIMITER = (
    b"--sep",
    b"--sep ",
    b"--sep\t\t",
    b"--sep text",
    b"--sep--",
    b" --sep",
    b"--Sep",
    b"---sep",
    b"--sep;",
    b"--sepsep",
)
_CLOSE = (b"--sep--", b"--sep-- ", b"--sep--text", b"", b"--sep", b"--sep-", b"--sep--\r\n--sep", b"--other--")
_HEAD_END = (
    b"\r\n\r\n",
    b"\r\n \r\n",
    b"\r\n\t\r\n\r\n",
    b"\r\nno field\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"\r\n: x\r\n\r\n",
    b"\r\nX-Empty:\r\n\r\n",
    b"\r\nX-Folded: a\r\n b\r\n\r\n",
    b"\r\n--not-a-boundary\r\n\r\n",
)
_TYPE = (
    b'Content-Type: application/octet-stream; name="NAME"',
    b"Content-Type: application/octet-stream",
    b"Content-Type: text/plain; name=NAME",
    b"Content-Type: application/octet-stream; name=NAME; name=safe.txt",
    b"Content-Type: application/octet-stream; name*=utf-8''NAME",
    b'Content-Type: application/octet-stream; name="=?utf-8?q?NAME?="',
    b"Content-Type: ; name=NAME",
    b"Content-Type: application; name=NAME",
    b"Content-Type: message/rfc822",
    b"Content-Type: image/png; name=safe.png",
    b"Content-Type:",
    b"Content-Types: x",
)
_DISPOSITION = (
    b'Content-Disposition: attachment; filename="NAME"',
    b"Content-Disposition: attachment; filename=NAME",
    b"Content-Disposition: inline; filename=NAME",
    b"Content-Disposition: filename=NAME",
    b"Content-Disposition: attachment filename=NAME",
    b"Content-Disposition: attachment; (a) filename (b) = (c) NAME (d)",
    b"Content-Disposition: attachment; filename=safe.txt; filename=NAME",
    b"Content-Disposition: attachment; filename=NAME; filename=safe.txt",
    b"Content-Disposition: attachment; filename*=utf-8''%65vil.exe",
    b"Content-Disposition: attachment; filename*0=ev; filename*1=il.exe",
    b"Content-Disposition: attachment; filename*1=il.exe; filename*0=ev",
    b"Content-Disposition: attachment; filename*0*=utf-8''ev; filename*1*=%69l.exe",
    b"Content-Disposition: attachment; filename*0=ev; filename*02=il.exe; filename*1=il.exe",
    b'Content-Disposition: attachment; filename="=?utf-8?b?ZXZpbC5leGU=?="',
    b"Content-Disposition: attachment; filename==?utf-8?q?evil=2Eexe?=",
    b'Content-Disposition: attachment; filename="ev\r\n il.exe"',
    b'Content-Disposition: attachment; filename="evil.exe."',
    b'Content-Disposition: attachment; filename="evil.exe "',
    b'Content-Disposition: attachment; filename="dir/evil.exe"',
    b'Content-Disposition: attachment; filename="evil.e\\xe"',
    b"Content-Disposition: attachment; filename='NAME'",
    b"Content-Disposition: attachment; filename=NAME, x=y",
    b"Content-Disposition: attachment;; filename=NAME;",
    b"Content-Disposition: attachment\r\nContent-Disposition: attachment; filename=NAME",
    b"Content-Disposition: attachment; filename=safe.txt\r\nContent-Disposition: attachment; filename=NAME",
    b"Content-Description: NAME",
    b"X-None: x",
)
_ENCODING = (
    b"base64",
    b"BASE64 ",
    b"base64 (a comment)",
    b"(quoted-printable) base64",
    b'"base64"',
    b"base64;",
    b"base 64",
    b"x-base64",
    b"base64\r\nContent-Transfer-Encoding: 7bit",
    b"7bit\r\nContent-Transfer-Encoding: base64",
    b"\r\n base64",
    b"quoted-printable",
    b"Quoted-Printable (x)",
    b"quoted printable",
    b"x-uuencode",
    b"uuencode",
    b"8bit",
    b"binary",
    b"",
    b"unknown",
)
_JUNK = (b"", b"!", b"=", b"=\r\n", b"\r\n\r\n", b" ", b"-", b"\xff", b"====")


def message(number: int) -> bytes:
    """Return the message of a number, below MESSAGES; it has CRLF line ends."""
    dice = _Dice("message", number)
    faults = {dice.below(9) for _ in range(1 + dice.below(3))}

    def written(place: int, ways: Sequence[bytes]) -> bytes:
        return (dice.choose(ways) if place in faults else ways[0]).replace(b"NAME", NAME.encode())

    top, first, second = written(0, _TOP), written(1, _DELIMITER), written(2, _DELIMITER)
    close, end, kind = written(3, _CLOSE), written(4, _HEAD_END), written(5, _TYPE)
    disposition, encoding, junk = written(6, _DISPOSITION), written(7, _ENCODING), written(8, _JUNK)
    part = kind + b"\r\n" + disposition + b"\r\nContent-Transfer-Encoding: " + encoding + end
    part += _encoded(encoding, junk)
    text = b"Content-Type: text/plain; charset=utf-8\r\n\r\nHello.\r\n"
    body = b"before\r\n" + first + b"\r\n" + text + second + b"\r\n" + part + b"\r\n" + close + b"\r\nbehind\r\n"
    mail = b"From: a@b.example\r\nTo: c@d.example\r\nSubject: x\r\nMIME-Version: 1.0\r\n" + top + b"\r\n\r\n" + body
    match dice.below(8):
        case 0:
            return _wrapped(mail, b"Content-Type: message/rfc822")
        case 1:
            return _wrapped(mail, b"Content-Type: application/octet-stream; name=a.eml")
    return mail


def _wrapped(mail: bytes, kind: bytes) -> bytes:
    head = (
        b"From: e@f.example\r\nSubject: Fwd\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=outer\r\n"
    )
    return head + b"\r\n--outer\r\n\r\nSee below.\r\n--outer\r\n" + kind + b"\r\n\r\n" + mail + b"\r\n--outer--\r\n"


def _encoded(encoding: bytes, junk: bytes) -> bytes:
    name = encoding.lower()
    if b"uu" in name:
        lines = [b2a_uu(SECRET[at : at + 45]).replace(b"\n", b"\r\n") for at in range(0, len(SECRET), 45)]
        return b"begin 644 " + NAME.encode() + b"\r\n" + junk + b"".join(lines) + b"`\r\nend\r\n"
    if b"quoted" in name and b"base64" not in name:
        coded = encodestring(SECRET.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
        return coded[:20] + junk + coded[20:]
    if b"64" not in name:
        return SECRET[:40] + junk + SECRET[40:]
    coded = b64encode(SECRET)
    return b"\r\n".join([coded[:60] + junk, coded[60:120], coded[120:]])


# Bytes written over a zip file: behind the last signature of a kind, at an offset.
_LOCAL, _CENTRAL, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_PATCHES = (
    (_LOCAL, 30, b"safe.exe"),
    (_LOCAL, 8, b"\x63\0"),
    (_LOCAL, 6, b"\1\0"),
    (_CENTRAL, 46, b"safe.doc"),
    (_CENTRAL, 10, b"\x63\0"),
    (_CENTRAL, 8, b"\1\0"),
    (_CENTRAL, 42, b"\0\0\0\0"),
    (_CENTRAL, 16, b"\1\2\3\4\1\2\3\4"),
    (_END, 10, b"\1\0"),
    (_END, 8, b"\0\0\0\0"),
    (_END, 16, b"\0\0\0\0"),
)


def packed(number: int) -> bytes:
    """Return the zip file of a number, below ZIPS: one with a file of the name NAME, and faults."""
    dice = _Dice("zip", number)
    data = _zip({"safe.txt": b"Hello.\n", NAME: SECRET}, dice.below(2) * zipfile.ZIP_DEFLATED)
    other = _zip({"other.txt": b"Hello.\n"}, 0)
    for _ in range(1 + dice.below(3)):
        place = dice.below(len(_PATCHES) + 5)
        if place < len(_PATCHES):
            signature, offset, new = _PATCHES[place]
            at = data.rfind(signature)
            if at >= 0:
                data = data[: at + offset] + new + data[at + offset + len(new) :]
            continue
        cut = data.rfind(_END) if _END in data else len(data)
        choices = (b"#!/bin/sh\nexit\n" + data, data + other, other + data, data[:cut], data + b"\0" * 70)
        data = choices[place - len(_PATCHES)]
    return data


def _zip(members: dict[str, bytes], method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return out.getvalue()
