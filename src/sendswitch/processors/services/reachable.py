"""The addresses that a user's request may reach: no address of this machine or its networks, unless the site allows it.
Otherwise a webhook would be a way behind the firewall (server-side request forgery).

Rules:
1. An address is reachable when it is public and not this machine's own. An address that carries an IPv4 address
   (mapped, NAT64, 6to4, Teredo, IPv4-compatible) is as reachable as that one.
2. Names are looked up here, and the request goes to the checked address, so that a second answer of the DNS changes
   nothing. When any address of a name is not reachable, none is: a mixture is hostile.
3. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from sendswitch.errors import Refused

Address = IPv4Address | IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What ipaddress calls global and nobody else should hear from: NAT64 for local use (RFC 8215), discard-only (RFC 6666),
# deprecated site-local, ORCHIDs, 6to4 relay anycast, benchmarking.
_NOT_PUBLIC = [
    ipaddress.ip_network(name)
    for name in (
        *("64:ff9b:1::/48", "100::/64", "fec0::/10", "2001:10::/28", "2001:20::/28", "5f00::/16"),
        *("192.88.99.0/24", "198.18.0.0/15", "0.0.0.0/8", "240.0.0.0/4"),
    )
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Reach:
    """The reachable addresses: public ones, and the host names, addresses and networks that the site allows."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._networks: list[Network] = []
        self._hosts: set[str] = set()
        for entry in allow:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._hosts.add(entry.lower().rstrip("."))

    def may(self, address: Address) -> bool:
        """Return whether a request may go there (rule 1)."""
        if public(address) and not _ours(address):
            return True
        return any(address.version == network.version and address in network for network in self._networks)

    async def find(self, host: str, port: int) -> str:
        """Return an address of the host that may be reached (rule 2).

        Raises Refused when it may not, OSError when the host has no address.
        """
        try:
            literal: Address | None = ipaddress.ip_address(host)
        except ValueError:
            literal = None
        if literal is not None:
            found = [literal]
        else:
            try:
                told = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise OSError(f"{host} has no address: {error.strerror or error}") from error
            found = [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in told]
        if host.lower().rstrip(".") not in self._hosts:
            for address in found:
                if not self.may(address):
                    named = host if literal is not None else f"{host} ({address})"
                    which = "this machine's own" if public(address) else "no public"
                    raise Refused(f"{named} is {which} address; the site can allow it with webhooks.allow")
        return str(found[0])


def public(address: Address) -> bool:
    """Return whether any user may have a request sent to an address from here."""
    inner = _inside(address) if isinstance(address, IPv6Address) else None
    if inner is not None:
        return public(inner)
    if any(address.version == network.version and address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _ours(address: Address) -> bool:
    """Return whether an address is this machine's, because packets to it come from it. Nothing is sent to find out."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((str(address), 9))
        except OSError:  # no way there, so it is not here
            return False
        return ipaddress.ip_address(asking.getsockname()[0].partition("%")[0]) == address


def _inside(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that packets to this one would reach in the end."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    return address.teredo[1] if address.teredo is not None else None
