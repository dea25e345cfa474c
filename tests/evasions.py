"""Messages and archives that mail programs read in different ways, by what is odd about them.

Each hides a file evil.exe from a filter that reads it in one way only, or cannot be looked into. The tests want a match
of each, and docs/reference/evasions.md lists them.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from base64 import encodebytes
from binascii import b2a_uu

from sendswitch.mail.mime import tnef
from tests.mime_samples import multipart, part, zipped

EXE = zipped({"folder/setup.exe": b"MZ", "readme.txt": b"hi"})


def attribute(number: int, data: bytes, level: int = 2) -> bytes:
    return bytes([level]) + number.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data + b"\0\0"


EVIL = b"\r\n\r\nMZ\r\n--b--\r\n"
IN_B = b"Content-Type: multipart/mixed; boundary=b\r\n"
INNER = IN_B + b"\r\n--b\r\n"
NAMED = b"Content-Type: a/b; name=evil.exe" + EVIL
DISPOSITION = INNER + b"Content-Disposition: attachment; "
PACKED = encodebytes(EXE).replace(b"\n", b"\r\n")


GOOD, EVIL_ZIP = zipped({"good.txt": b"hi"}), zipped({"evil.exe": b"MZ"})
DEFLATED = io.BytesIO()
with zipfile.ZipFile(DEFLATED, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("good.txt", b"hi" * 100)


def patched(data: bytes, magic: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    """The archive with some bytes of a header changed."""
    at = (data.rindex if last else data.index)(magic) + offset
    return data[:at] + value + data[at + len(value) :]


def local(name: bytes, content: bytes) -> bytes:
    sizes = (zlib.crc32(content), len(content), len(content))
    return struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, *sizes, len(name), 0) + name + content


def wide(total: int = 1) -> bytes:
    """An archive with a second end record, of 64 bits."""
    at, start = GOOD.index(b"PK\5\6"), GOOD.index(b"PK\1\2")
    end = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, total, total, at - start, start)
    return GOOD[:at] + end + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1) + GOOD[at:]


def described(content: bytes) -> bytes:
    """An archive with one file that is not packed and whose sizes stand behind it only."""
    sizes = (zlib.crc32(content), len(content), len(content))
    header = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 8, 0, 0, 0, 0, 0, 0, 5, 0) + b"a.txt"
    data = header + content + struct.pack("<4s3L", b"PK\7\x08", *sizes)
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 8, 0, 0, 0, *sizes, 5, 0, 0, 0, 0, 0, 0) + b"a.txt"
    return data + entry + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(data), 0)


def extended(extra: bytes) -> bytes:
    """An archive whose only file has an extra field in its directory."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("good.txt")
        info.extra = extra
        archive.writestr(info, "hi")
    return out.getvalue()


HEADERS = {
    "no empty line at the top": IN_B + b"--b\r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
    "junk at the top": IN_B + b"junk\r\n--b\r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
    "junk in a part's header": INNER + b"junk\r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
    "a space before the colon": INNER + b"Content-Disposition : attachment; filename=evil.exe" + EVIL,
    "a folded parameter": INNER + b"Content-Disposition: attachment;\r\n filename=evil.exe" + EVIL,
    "a parameter that is not folded": INNER + b"Content-Disposition: attachment;\r\nfilename=evil.exe" + EVIL,
    "a NUL before the name of a field": INNER + b"\0Content-Type: a/b; name=evil.exe" + EVIL,
    "a space before the name of a field": INNER + b" Content-Type: a/b; name=evil.exe" + EVIL,
    "a NUL behind the name of a field": INNER + b"Content-Disposition\0: attachment; filename=evil.exe" + EVIL,
    "a control character in the value": INNER + b"Content-Disposition: attachment; filename=evil.exe\x13" + EVIL,
    "the colon on the next line": INNER + b"Content-Disposition\r\n : attachment; filename=evil.exe" + EVIL,
    "a line of spaces": INNER + b"X: 1\r\n \r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
    "an empty line too much": INNER + b"\r\nContent-Disposition: attachment; filename=evil.exe" + EVIL,
    "no empty line behind the header": INNER + b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n" + PACKED,
    "the encoding behind the empty line": INNER
    + b"Content-Type: a/b; name=x.zip\r\n\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + PACKED,
    "an encoding in the text that is encoded": b"Content-Transfer-Encoding: base64\r\n\r\n"
    b"Content-Type: text/plain\r\n\r\n" + PACKED,
    "a name behind an empty line": INNER + b"\r\nContent-Type: text/plain; name=evil.exe" + EVIL,
    "an attachment behind an empty line": INNER + b"\r\nContent-Disposition: attachment" + EVIL,
    "a NUL before fields behind an empty line": INNER + b"\r\n\0X: 1\r\n\0Content-Type: a/b; name=evil.exe" + EVIL,
    "fields behind fields and an empty line": INNER + b"\r\nX: 1\r\n\r\nContent-Type: a/b; name=evil.exe" + EVIL,
    "folded fields behind an empty line": INNER + b"\r\nX: 1\r\n y\r\nContent-Type: a/b; name=evil.exe" + EVIL,
    "an encoding behind many headers": INNER + b"Content-Type: a/b; name=a.zip\r\n\r\nwords\r\n"
    + b"Content-Type: text/plain\r\n\r\n" * 25 + b"Content-Transfer-Encoding: base64\r\n\r\n" + PACKED + b"--b--\r\n",
}  # fmt: skip

NAMES = {
    "`filename` and `filename*`": DISPOSITION + b"filename=\"a.pdf\"; filename*=utf-8''evil.exe" + EVIL,
    "`filename` twice": DISPOSITION + b"filename=evil.exe; filename=a.pdf" + EVIL,
    "a name in pieces (RFC 2231)": DISPOSITION + b"filename*0=evil; filename*1*=%2eexe" + EVIL,
    "a name in encoded pieces": DISPOSITION + b"filename*0*=utf-8''ev; filename*1=il.exe" + EVIL,
    "a name in pieces with a gap": DISPOSITION + b'filename*0="evil.exe"; filename*2=".txt"' + EVIL,
    "a name in pieces whose numbers have leading zeros": DISPOSITION + b"filename*00=evil; filename*01=.exe" + EVIL,
    "a name in pieces out of order": DISPOSITION + b"filename*1=.exe; filename*0=evil" + EVIL,
    "a name in pieces of which one is repeated": DISPOSITION + b"filename*0=a; filename*0=evil; filename*1=.exe" + EVIL,
    "names in pieces in two fields": DISPOSITION
    + b"filename*0=good; filename*1=.txt\r\nContent-Disposition: x; filename*0=evil; filename*1=.exe"
    + EVIL,
    "one name whose pieces are in two fields": INNER
    + b"Content-Disposition: x; filename*0=evil\r\nContent-Disposition: x; filename*1=.exe"
    + EVIL,
    "a charset over pieces": DISPOSITION
    + b"filename*0*=iso-2022-jp''%1B%24%42%25%46; filename*1*=%1B%28%42.exe"
    + EVIL,
    "`name` and `filename` that differ": INNER
    + b"Content-Type: a/b; name=evil.exe\r\nContent-Disposition: inline; filename=a.pdf" + EVIL,
    "two Content-Disposition fields": DISPOSITION
    + b"filename=a.pdf\r\nContent-Disposition: x; filename=evil.exe" + EVIL,
    "a comment behind the name": DISPOSITION + b"filename=evil.exe (x)" + EVIL,
    "a comment before the parameter": INNER + b"Content-Disposition: attachment; (x) filename=evil.exe" + EVIL,
    "comments inside the parameter": DISPOSITION + b"filename (x) = (y) evil.exe" + EVIL,
    "a comment that does not end, before the name": DISPOSITION + b"(x; filename=evil.exe" + EVIL,
    "no disposition type": INNER + b"Content-Disposition: ; filename=evil.exe" + EVIL,
    "a star as disposition type": INNER + b"Content-Disposition: *; filename=evil.exe" + EVIL,
    "a parameter in place of the disposition type": INNER + b"Content-Disposition: filename=evil.exe" + EVIL,
    "a comma in place of the semicolon": INNER + b"Content-Disposition: attachment, filename=evil.exe" + EVIL,
    "no semicolon before the name": INNER + b"Content-Disposition: attachment filename=evil.exe" + EVIL,
    "no semicolon between two parameters": DISPOSITION + b'x="1" filename=evil.exe' + EVIL,
    "a quote in the middle": DISPOSITION + b'filename="evil".exe' + EVIL,
    "a quote that does not end": DISPOSITION + b'filename="evil.exe' + EVIL,
    "two quoted strings": DISPOSITION + b'filename="=?utf-8?q?evil?="\r\n "=?utf-8?q?.exe?="' + EVIL,
    "quoted-printable around": INNER + b'Content-Type: a/b; name=3D"evil.exe"' + EVIL,
    "a dot at the end of the name": DISPOSITION + b"filename=evil.exe." + EVIL,
    "dots and spaces at the end of the name": DISPOSITION + b'filename="evil.exe. ."' + EVIL,
    "a slash at the end of the name": DISPOSITION + b"filename*=utf-8''evil.exe/" + EVIL,
    "a line end at the end of the name": DISPOSITION + b"filename*=utf-8''evil.exe%0A" + EVIL,
    "a no-break space at the end of the name": DISPOSITION + b"filename*=utf-8''evil.exe%C2%A0" + EVIL,
    "a NUL and more": DISPOSITION + b'filename="evil.exe\0.txt"' + EVIL,
    "a percent NUL and more": DISPOSITION + b"filename*=utf-8''evil.exe%00.txt" + EVIL,
    "a stream of NTFS": DISPOSITION + b'filename="evil.exe::$DATA"' + EVIL,
    "a folder before the name": DISPOSITION + b'filename="c:\\\\evil.exe"' + EVIL,
    "an encoded word": DISPOSITION + b"filename==?utf-8?q?evil=2Eexe?=" + EVIL,
    "an encoded word with a language": DISPOSITION + b'filename="=?utf-8*en?Q?evil.exe?="' + EVIL,
    "an encoded word in an unknown charset": DISPOSITION + b'filename="=?x-foo?Q?evil.exe?="' + EVIL,
    "an encoded word in a superset": DISPOSITION + b'filename="=?gb2312?B?6UYuZXhl?="' + EVIL,
    "a name behind many folders": DISPOSITION + b"filename=" + b"a/" * 600 + b"evil.exe" + EVIL,
    "a name behind empty words": DISPOSITION + b'filename="' + b"=?utf-8?q??= " * 100 + b'=?utf-8?q?evil.exe?="' + EVIL,
    "more parameters than are looked at": DISPOSITION + b"a=b; " * 210 + b"filename=evil.exe" + EVIL,
    "more fields than are looked at": INNER
    + b"".join(b"Content-Disposition: x; filename=%d\r\n" % n for n in range(25))
    + b"Content-Disposition: x; filename=evil.exe"
    + EVIL,
    "a space in the charset of a word": DISPOSITION + b'filename="=? utf-8?B?ZXZpbC5leGU=?="' + EVIL,
    "a space in the end of a word": DISPOSITION + b'filename="=?utf-8?B?ZXZpbC5leGU=? ="' + EVIL,
    "an encoded word without a charset": DISPOSITION + b'filename="=??q?evil=2Eexe?="' + EVIL,
    "an encoded word that is folded": DISPOSITION + b'filename="=?utf-8?Q?evil=2E\r\n exe?="' + EVIL,
    "UTF-16 without a mark": DISPOSITION + b'filename="=?utf-16?B?AGUAdgBpAGwALgBlAHgAZQ==?="' + EVIL,
    "junk behind the padding": DISPOSITION + b'filename="=?utf-8?B?ZXZpbC5leGU=%2E?="' + EVIL,
    "junk before the padding": DISPOSITION + b'filename="=?utf-8?B?ZX=pbC5leGU=?="' + EVIL,
    "a percent sign split over pieces": DISPOSITION + b"filename*0*=utf-8''evil%2; filename*1*=Eexe" + EVIL,
    "a parenthesis at the end": DISPOSITION + b"filename=evil.exe)" + EVIL,
    "a parameter that is called file": INNER + b"Content-Type: application/x;file=evil.exe" + EVIL,
    "a parameter whose name is a word": DISPOSITION + b"=?utf-8?Q?filename?==evil.exe" + EVIL,
    "a disposition that is a word": INNER
    + b"Content-Disposition: =?utf-8?B?YXR0YWNobWVudDsgZmlsZW5hbWU9ZXZpbC5leGU=?="
    + EVIL,
    "a space in the name of a field": INNER + b"Conte nt-Type: a/b; name=evil.exe" + EVIL,
    "a multipart with a name": b"Content-Disposition: x; filename=evil.exe\r\n" + INNER + b"\r\nx\r\n--b--\r\n",
    "a name in Content-Description": INNER + b"Content-Type: a/b\r\nContent-Description: evil.exe" + EVIL,
    "a name in Content-Location": INNER + b"Content-Type: a/b\r\nContent-Location: http://x.example/evil.exe" + EVIL,
    "a name in Content-Name": INNER + b"Content-Type: a/b\r\nContent-Name: evil.exe" + EVIL,
    "a name in X-Sun-Data-Name": INNER + b"Content-Type: a/b\r\nX-Sun-Data-Name: evil.exe" + EVIL,
    "a name in Content-Description of attached mail": multipart(part(
        INNER + b"Content-Type: a/b\r\nContent-Description: evil.exe" + EVIL, "a.eml")),
    "a word that does not end": DISPOSITION + b'filename="=?utf-8?B?ZXZpbC5leGU="' + EVIL,
    "a percent sign in a plain name": DISPOSITION + b"filename=evil%2Eexe" + EVIL,
    "a percent NUL in a plain name": DISPOSITION + b"filename=evil.exe%00" + EVIL,
}  # fmt: skip

PARTS = {
    "an empty boundary": b'Content-Type: multipart/mixed; boundary=""; boundary=c\r\n\r\n--c\r\n\r\n--\r\n' + NAMED,
    "a boundary in two encodings": b"Content-Type: multipart/mixed; boundary=\"b\xc3\xa9\"\r\n\r\n--b\xe9\r\n\r\nx\r\n"
    + b"--b\xc3\xa9\r\n"
    + NAMED,
    "a part behind another delimiter": b"Content-Type: multipart/mixed; boundary=foo(c)bar\r\n\r\n--foobar\r\n\r\nx\r\n"
    + b"--foo\r\n"
    + NAMED,
    "a type that is a word": b"Content-Type: =?utf-8?B?bXVsdGlwYXJ0L21peGVkOyBib3VuZGFyeT1i?=\r\n\r\n--b\r\n" + NAMED,
    "an empty line before the header": b"\r\n" + INNER + NAMED,
    "a message that is not encoded as it says": INNER
    + b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + NAMED,
    "a report with a part in it": INNER + b"Content-Type: message/delivery-status\r\n\r\nA: 1\r\n\r\n" + NAMED,
    "a boundary that is not ASCII": b'Content-Type: multipart/mixed; boundary="b\xe9"\r\n\r\n--b\xe9\r\n' + NAMED,
    "`boundary` and `boundary*`":
    b"Content-Type: multipart/mixed; boundary=zz; boundary*=utf-8''b\r\n\r\n--b\r\n" + NAMED,
    "a comment before the type": b"Content-Type: (x) multipart / mixed; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "a part behind the closing delimiter": INNER + b"\r\nx\r\n--b--\r\n--b\r\n" + NAMED,
    "fields behind the closing delimiter": INNER + b"\r\nx\r\n--b--\r\n" + NAMED,
    "fields before the first delimiter": IN_B
    + b"\r\nContent-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n--b\r\n\r\nx\r\n--b--\r\n",
    "a form feed behind a delimiter": IN_B + b"\r\n--b\x0c\r\n" + NAMED,
    "text behind a delimiter": IN_B + b"\r\n--b junk\r\n" + NAMED,
    "a field behind a delimiter": IN_B + b"\r\n--b Content-Type: a/b; name=evil.exe" + EVIL,
    "text before a delimiter": IN_B + b"\r\n--b\r\n\r\nx\r\nz--b\r\n" + NAMED,
    "a boundary that is a prefix": IN_B + b"\r\n--bc\r\n" + NAMED,
    "a space in a boundary": b"Content-Type: multipart/mixed; boundary=b c\r\n\r\n--b\r\n" + NAMED,
    "a semicolon in a boundary": b'Content-Type: multipart/mixed; boundary="b;c"\r\n\r\n--b\r\n' + NAMED,
    "no semicolon before the boundary": b"Content-Type: multipart/mixed boundary=b\r\n\r\n--b\r\n" + NAMED,
    "a line that is not folded": b"Content-Type: multipart/mixed;\r\n?boundary=b\r\n\r\n--b\r\n" + NAMED,
    "fields behind plain ones": b"Content-Type: multipart/mixed; boundary=Out\r\n\r\n--Out\r\n\r\nhi\r\n--out\r\n"
    b"Content-Type: text/plain\r\n\r\nhi\r\n--out\r\nContent-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n--Out--\r\n",
    "fields behind a sentence": b"Content-Type: multipart/mixed; boundary=Out\r\n\r\n--Out\r\n\r\nsee\r\n"
    b"Content-Type: x\r\nbye\r\n--out\r\nContent-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n--Out--\r\n",
    "fields far behind a delimiter": b"Content-Type: multipart/mixed; boundary=Out\r\n\r\n--Out\r\n\r\nsee\r\n--out\r\n"
    + b"X: y\r\n" * 1000 + b"Content-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n--Out--\r\n",
    "fields between lines of dashes": INNER + b"Content-Type: message/rfc822\r\n\r\n"
    b"Content-Type: multipart/mixed\r\n\r\n----- x -----\r\nContent-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n"
    b"----- x -----\r\n--b--\r\n",
}  # fmt: skip

TYPES = {
    "two slashes in the type": b"Content-Type: multipart//mixed; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "a type without a subtype": b"Content-Type: multipart; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "the field's name twice": b"Content-Type:Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "the value twice": b"Content-Type: multipart/mixedmultipart/mixed; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "two types with a comma": b"Content-Type: image/gif, multipart/mixed; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "two Content-Type fields": b"Content-Type: text/plain\r\n" + INNER + NAMED,
    "a NUL in the type": b"Content-Type: mul\0tipart/mixed; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "a boundary in another type": b"Content-Type: text/plain; boundary=b\r\n\r\n--b\r\n" + NAMED,
    "an archive as text": INNER + b"Content-Transfer-Encoding: base64\r\n\r\n" + PACKED + b"\r\n--b--\r\n",
    "an archive as text in attached mail": multipart(part(
        INNER + b"Content-Transfer-Encoding: base64\r\n\r\n" + PACKED + b"\r\n--b--\r\n", "a.eml")),
}  # fmt: skip

ENCODINGS = {
    "the transfer encoding twice in one field": INNER
    + b"Content-Transfer-Encoding: base64base64\r\n\r\n" + PACKED + b"--b--\r\n",
    "a comment inside the transfer encoding": INNER
    + b"Content-Transfer-Encoding: bas(x)e64\r\n\r\n" + PACKED + b"--b--\r\n",
    "an encoded word as transfer encoding": INNER + b"Content-Transfer-Encoding: =?utf-8?q?base64?=\r\n\r\n" + PACKED,
}  # fmt: skip

MAIL = {
    "a named message": INNER + b"Content-Type: message/rfc822; name=fwd.eml\r\n\r\n" + NAMED,
    "message/rfc822 with a comma behind it": INNER + b"Content-Type: message/rfc822, x\r\n\r\n" + NAMED,
    "a message of news": INNER + b"Content-Type: message/news\r\n\r\n" + NAMED,
    "a part of a digest, which is mail by default":
    b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\n" + NAMED,
    "an encoded message": multipart(part(b"Content-Type: a/b; name=evil.exe\r\n\r\nMZ\r\n", kind="message/rfc822")),
    "a piece of a message": b"Content-Type: message/partial; id=x; number=1; total=1\r\n\r\n" + NAMED,
    "a message in uuencode": b"Content-Type: text/plain\r\n\r\nbegin 644 x.eml\r\n"
    + b"".join(b2a_uu((IN_B + b"\r\n--b\r\n" + NAMED)[at : at + 45]) for at in range(0, 90, 45)) + b"`\r\nend\r\n",
    "a message in TNEF": multipart(
        part(tnef.MAGIC + b"\0\0" + attribute(0x9002, b"") + attribute(0x8010, b"x.eml\0")
             + attribute(0x800F, INNER + NAMED), "winmail.dat", "application/ms-tnef")),
    "a message whose lines end with CR": multipart(
        part((INNER + NAMED).replace(b"\r\n", b"\r"), kind="message/rfc822")
    ),
    "a multipart named as a message": IN_B.replace(b"b\r", b"c\r") + b"\r\n--c\r\nContent-Type: multipart/mixed;"
    b" boundary=zz; name=x.eml\r\n\r\n" + INNER + NAMED + b"--c--\r\n",
    "a message with a CR in a field": multipart(
        part(b"Content-Type: a/b;\rX: y; name=evil.exe\r\n\r\nMZ\r\n", kind="message/rfc822")
    ),
    "an attached file with a CR in a field": multipart(
        part(b"Content-Type: a/b;\rX: y; name=evil.exe\r\n\r\nMZ\r\n", "a.bin")
    ),
}  # fmt: skip

CLOSED = {
    "a message that was cut, encoded": INNER + b"Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nnothing\r\n--b--\r\n",
    "a message that was cut behind fields": INNER + b"Content-Type: message/rfc822\r\n\r\n"
    b"Content-Type: multipart/mixed\r\n\r\nwords\r\nContent-Type: a/b\r\n\r\nMZ\r\n--b--\r\n",
    "a message that was cut before a delimiter": INNER + b"Content-Type: message/rfc822\r\n\r\n"
    b"Content-Type: multipart/mixed\r\n\r\nwords\r\n--c\r\nwords\r\n--b--\r\n",
    "a multipart without a boundary": b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n",
    "a multipart without parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\nnothing\r\n",
    "a field that is too long": INNER + b"Content-Type: a/b; name=x" + b";a=b" * 3000 + EVIL,
    "a header that is too long": INNER + b"X: " + b"y" * 100_000 + b"\r\nContent-Type: a/b; name=a.pdf" + EVIL,
}  # fmt: skip

ZIPS = {
    "two archives": EVIL_ZIP + GOOD,
    "two archives the other way": GOOD + EVIL_ZIP,
    "a file in no directory": local(b"evil.exe", b"MZ") + GOOD,
    "a file behind the end": GOOD + local(b"evil.exe", b"MZ"),
    "local headers only": local(b"evil.exe", b"MZ"),
    "another name in the directory": patched(EVIL_ZIP, b"PK\1\2", 46, b"good.txt"),
    "another name in the file": patched(EVIL_ZIP, b"PK\3\4", 30, b"good.txt"),
    "another method": patched(GOOD, b"PK\3\4", 8, b"\x08\0"),
    "another size": patched(GOOD, b"PK\1\2", 24, b"\x09\0\0\0"),
    "encrypted in one place": patched(GOOD, b"PK\3\4", 6, b"\1\0"),
    "fewer files than it has": patched(zipped({"a": b"", "b": b""}), b"PK\5\6", 8, b"\1\0\1\0"),
    "a directory elsewhere": patched(GOOD, b"PK\5\6", 16, b"\1\0\0\0"),
    "no end": GOOD[: GOOD.index(b"PK\5\6")],
    "an end in a comment": GOOD[:-2] + b"\x16\0" + EVIL_ZIP[EVIL_ZIP.index(b"PK\5\6") :],
    "a version of the future": patched(local(b"evil.exe", b"MZ"), b"PK\3\4", 4, b"\xff\0") + GOOD,
    "a file inside of one": patched(
        DEFLATED.getvalue().replace(b"PK\1\2", local(b"evil.exe", b"MZ") + b"PK\1\2", 1), b"PK\1\2", 20, b"\x40\0\0\0"
    ),
    "one of several disks": patched(GOOD, b"PK\5\6", 4, b"\1\0"),
    "two end records that differ": wide(total=7),
    "an end record of 64 bits that is missing": patched(wide(), b"PK\6\6", 0, b"PK\6\x08"),
    "two sizes without packing": patched(patched(GOOD, b"PK\3\4", 22, b"\x09"), b"PK\1\2", 24, b"\x09"),
    "a file inside of one whose size stands behind it": described(local(b"evil.exe", b"MZ")),
    "a file in the directory that is not there": patched(GOOD, b"PK\1\2", 42, b"\1\0\0\0"),
    "64 bits that are not needed": extended(struct.pack("<HHQ", 1, 8, 2)),
    "64 bits that are missing": patched(GOOD, b"PK\1\2", 24, b"\xff\xff\xff\xff"),
    "packed, with other sizes": patched(DEFLATED.getvalue(), b"PK\1\2", 20, b"\1"),
    "a directory before its archive": patched(GOOD, b"PK\5\6", 16, b"\xff\0\0\0"),
    "a NUL in a name": GOOD.replace(b"good.txt", b"good\0txt"),
}  # fmt: skip

# Messages, by what is odd about them.
EVASIONS: dict[str, dict[str, bytes]] = {
    "Headers": HEADERS,
    "File names": NAMES,
    "Parts and boundaries": PARTS,
    "Types": TYPES,
    "Transfer encodings": ENCODINGS,
    "Mail in mail": MAIL,
    "What cannot be looked into": CLOSED,
}
