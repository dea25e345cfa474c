"""HAProxy's PROXY header, versions 1 and 2: the client's address, from a balancer before the first byte of SMTP.

Source: The PROXY protocol, versions 1 & 2 (haproxy.org, proxy-protocol.txt). Unix addresses are of no use here and are
read as unknown; the extensions (TLVs) of version 2 are skipped.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
# The longest line of version 1, with CRLF; of version 2 the addresses and two kilobytes of extensions.
MAX_LINE = 107
MAX_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Source:
    """The client's address and port; both '' when the balancer speaks for itself (a health check) or does not know."""

    address: str = ""
    port: str = ""


def read(data: bytes) -> tuple[Source, int] | None:
    """Return the header at the beginning of `data` and its length; None when more bytes are needed.

    Raises ValueError.
    """
    if data.startswith(SIGNATURE[: len(data)]):
        return _version_2(data) if len(data) >= 16 else None
    if data.startswith(b"PROXY "[: len(data)]):
        return _version_1(data)
    raise ValueError("the connection does not begin with a PROXY header")


def _version_1(data: bytes) -> tuple[Source, int] | None:
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise ValueError("the PROXY line is too long")
        return None
    words = data[:end].decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return Source(), end + 2
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ValueError(f"bad PROXY line {data[:end]!r}")
    address = ipaddress.ip_address(words[2])
    if address.version != int(words[1][3]) or not (words[4].isascii() and words[4].isdigit() and int(words[4]) < 65536):
        raise ValueError(f"bad PROXY line {data[:end]!r}")
    return Source(str(address), words[4]), end + 2


def _version_2(data: bytes) -> tuple[Source, int] | None:
    version, command, family = data[12] >> 4, data[12] & 15, data[13]
    length = int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1 or length > MAX_BLOCK:
        raise ValueError(f"bad PROXY header: version {version}, command {command}, {length} bytes")
    if len(data) < 16 + length:
        return None
    block, end = data[16 : 16 + length], 16 + length
    size = {0x11: 4, 0x21: 16}.get(family)
    if command == 0 or size is None:
        return Source(), end
    if length < 2 * size + 4:
        raise ValueError(f"bad PROXY header: {length} bytes are too few for its addresses")
    port = int.from_bytes(block[2 * size : 2 * size + 2], "big")
    return Source(str(ipaddress.ip_address(block[:size])), str(port)), end
