"""The parameters of MAIL, RCPT and XFORWARD: one table each, read strictly, kept as given.

A parameter that is not in the table is refused with 555 (RFC 5321 4.1.1.11), a bad value with 501. MAIL's AUTH
(RFC 4954) is read and dropped: Postfix passes its client's MAIL on as it came, and nothing here trusts it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from sendswitch.mail import xtext
from sendswitch.reply import Reply

_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})+\Z", re.I)
_ORCPT = re.compile(r"[A-Za-z0-9-]+;.+\Z")
_NOTIFY = re.compile(r"(?:NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*)\Z", re.I)
_ZONE = re.compile(r"[A-Za-z0-9._-]+\Z")
_SIZE = re.compile(r"\d{1,20}\Z")


def _envid(value: str) -> bool:
    return len(value) <= 100 and bool(_XTEXT.match(value))


def _orcpt(value: str) -> bool:
    return len(value) <= 500 and bool(_ORCPT.match(value))


def _one_of(*words: str) -> Callable[[str], bool]:
    return lambda value: value.upper() in words


def _absent(value: str) -> bool:
    return not value


def _anything(value: str) -> bool:
    return True


@lru_cache(maxsize=1024)
def _ip_address(value: str) -> bool:
    """Return whether this is an address, perhaps behind "IPV6:" and with a zone (RFC 4007)."""
    address, _, zone = value.partition("%")
    try:
        ipaddress.ip_address(address[5:] if address[:5].upper() == "IPV6:" else address)
    except ValueError:
        return False
    return not zone or bool(_ZONE.match(zone))


MAIL: Mapping[str, Callable[[str], bool]] = {
    "SIZE": lambda value: bool(_SIZE.match(value)),
    "BODY": _one_of("7BIT", "8BITMIME"),
    "SMTPUTF8": _absent,
    "RET": _one_of("FULL", "HDRS"),
    "ENVID": _envid,
    "AUTH": _anything,
}
RCPT: Mapping[str, Callable[[str], bool]] = {
    "NOTIFY": lambda value: bool(_NOTIFY.match(value)),
    "ORCPT": _orcpt,
}

NO_PARAMETERS: dict[str, str] = {}


def parse(text: str, table: Mapping[str, Callable[[str], bool]]) -> dict[str, str] | Reply:
    """Read 'KEY=VALUE KEY …' into a dict with upper-case keys, or return the reply that refuses it."""
    if not text:
        return NO_PARAMETERS
    found: dict[str, str] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        name = name.upper()
        check = table.get(name)
        if check is None:
            return Reply(555, "5.5.4", f"Unsupported option: {name[:40]}")
        if name in found:
            return Reply(501, "5.5.4", f"Bad syntax: {name} is given twice")
        if not check(value):
            return Reply(501, "5.5.4", f"Bad value for {name}")
        found[name] = value
    return found


# Postfix XFORWARD_README: the attributes and the two values that stand for "not known".
XFORWARD = {
    "NAME": "name",
    "ADDR": "address",
    "PORT": "port",
    "PROTO": "protocol",
    "HELO": "helo",
    "IDENT": "ident",
    "SOURCE": "source",
}
_UNKNOWN = frozenset(("[UNAVAILABLE]", "[TEMPUNAVAIL]"))
_CHECKS: Mapping[str, Callable[[str], bool]] = {
    "ADDR": _ip_address,
    "PORT": lambda value: value.isascii() and value.isdigit() and len(value) <= 5,
    "SOURCE": _one_of("LOCAL", "REMOTE"),
}


# Postfix XCLIENT_README. What names no field of ours is read and passed over.
XCLIENT = {name: field for name, field in XFORWARD.items() if name not in ("IDENT", "SOURCE")} | {
    "LOGIN": "login",
    "DESTADDR": "",
    "DESTPORT": "",
}


def parse_xforward(text: str) -> dict[str, str] | Reply:
    """Read XFORWARD attributes, xtext decoded, into fields of `Client`; unknown ones are refused."""
    return _attributes("XFORWARD", XFORWARD, text)


def parse_xclient(text: str) -> dict[str, str] | Reply:
    """Read XCLIENT attributes in the same way."""
    return _attributes("XCLIENT", XCLIENT, text)


def _attributes(verb: str, known: Mapping[str, str], text: str) -> dict[str, str] | Reply:
    words = text.split()
    if not words:
        return Reply(501, "5.5.4", f"Syntax: {verb} attribute=value...")
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.upper()
        field = known.get(name)
        if field is None or not equals:
            return Reply(501, "5.5.4", f"Bad {verb} attribute: {name[:40]}")
        value = xtext.decode(value)
        if value[:1] == "[" and value.upper() in _UNKNOWN:
            value = ""
        elif len(value) > 255 or ((check := _CHECKS.get(name)) is not None and not check(value)):
            return Reply(501, "5.5.4", f"Bad {verb} value for {name}")
        if name == "ADDR":
            value = value.partition("%")[0]  # a zone means nothing elsewhere
            value = value[5:] if value[:5].upper() == "IPV6:" else value
        if field:
            found[field] = value.upper() if name == "SOURCE" else value
    return found
