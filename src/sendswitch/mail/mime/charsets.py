"""Bytes to text by the charset that a sender names, as mail readers do: by the superset that software really writes.

Mail labelled GB2312 holds characters of GBK, mail labelled Shift_JIS those of Windows, and mail labelled US-ASCII
anything at all (WHATWG Encoding Standard, section 4.2). A byte that a charset does not know is replaced; it never
changes how the others are read.
"""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "hz": "hz",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "johab": "johab",
    "big5": "cp950",
    "iso8859-1": "cp1252",
    "iso8859-8": "cp1255",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "iso2022_jp": "iso2022_jp_ext",
}
# Labels that Python does not know, or takes for something else.
_LABELS = {
    "iso-8859-8-i": "cp1255",
    "iso-8859-8-e": "cp1255",
    "iso-8859-6-i": "iso8859-6",
    "iso-8859-6-e": "iso8859-6",
    "x-sjis": "cp932",
    "x-gbk": "gb18030",
    "x-euc-jp": "euc_jp",
    "x-big5": "cp950",
    "x-mac-roman": "mac_roman",
    "ks_c_5601-1987": "cp949",
    "ks_c_5601-1989": "cp949",
    "x-windows-949": "cp949",
    "cp-850": "cp850",
    "unicode-1-1-utf-7": "utf-7",
    "unicode-1-1-utf-8": "utf_8",
}
# Codecs of Python that are no charsets of mail. Some of them take quadratic time.
_NO_CHARSETS = frozenset(("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"))
_LABEL = re.compile(r"[A-Za-z0-9_.:+-]+")
# Characters of a label; longer ones are no names.
LONGEST_LABEL = 60


def decode(data: bytes, label: str) -> str:
    """Return the text. Bytes that the charset does not know are replaced; never raises."""
    codec = codec_of(label)
    if codec == "ascii" or not codec:
        return _guess(data)
    if codec == "utf-16" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        # Without a mark it is big-endian (RFC 2781 section 4.3), and what is written is not always that.
        codec = "utf-16-be" if data[0::2].count(0) >= data[1::2].count(0) else "utf-16-le"
    try:
        text = data.decode(codec, "replace")
    except (ValueError, LookupError):
        return _guess(data)
    # UTF-7 can write half characters (lone surrogates), which are no text: no JSON, database or terminal takes them.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if codec == "utf-7" else text


def _guess(data: bytes) -> str:
    """Return text whose charset is unknown: UTF-8 where it is, else Windows-1252."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


@lru_cache(maxsize=256)
def codec_of(label: str) -> str:
    """Return the codec that reads a label, '' for an unknown label."""
    found = _LABEL.search(label[:LONGEST_LABEL])
    name = found[0].lower() if found else ""
    if name in _LABELS:
        return _LABELS[name]
    try:
        info = codecs.lookup(name)
    except (LookupError, ValueError):
        return ""
    if info.name in _NO_CHARSETS or not info._is_text_encoding:
        return ""
    return _SUPERSETS.get(info.name, info.name)
