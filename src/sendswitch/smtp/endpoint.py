"""The address of a peer: `host:port`, `[v6]:port` or `unix:/path`; and networks of peers."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address, or with `path` a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint that a text names. Raises ValueError with the allowed forms."""
    if text.startswith("unix:"):
        if not text[5:].startswith("/"):
            raise ValueError(f"{text!r}: a unix socket needs an absolute path, like unix:/run/lmtp")
        return Endpoint(path=text[5:])
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is no address; write host:port, [ipv6]:port or unix:/path")
    return Endpoint(host, int(port))


Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def within(address: str, networks: Networks) -> bool:
    """Return whether a peer's address is in one of the networks; a unix socket has none."""
    if not address or not networks:
        return False
    peer = ipaddress.ip_address(address.partition("%")[0])
    if peer.version == 6 and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    return any(peer in network for network in networks)
