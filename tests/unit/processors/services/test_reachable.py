"""Where a request may go: public addresses, whatever they are wrapped in, and what the site allows."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from ipaddress import ip_address
from typing import Any

import pytest

from sendswitch.errors import Refused
from sendswitch.processors.services.reachable import Reach, public


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2001:4860:4860::8888", "64:ff9b::808:808", "::ffff:8.8.8.8"],
)
def test_public_addresses(address: str) -> None:
    assert public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3", "192.0.2.1", "198.51.100.1", "203.0.113.1"),
        *("198.18.0.1", "192.0.0.1", "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
        # An IPv4 address inside: mapped, compatible, NAT64, 6to4, Teredo.
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1"),
        "2001:0:53aa:64c:0:0:f5ff:fffe",
    ],
)
def test_what_is_not_public(address: str) -> None:
    assert not public(ip_address(address))


async def lookup(host: str, *found: str, allow: tuple[str, ...] = (), monkeypatch: pytest.MonkeyPatch) -> str:
    async def told(host: str, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", staticmethod(told), raising=False)
    return await Reach(allow).find(host, 443)


async def test_a_name_is_as_reachable_as_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await lookup("good.example", "8.8.8.8", "2606:2800::1", monkeypatch=monkeypatch) == "8.8.8.8"
    with pytest.raises(Refused, match=r"mixed.example \(127\.0\.0\.1\) is no public address.*webhooks\.allow"):
        await lookup("mixed.example", "8.8.8.8", "127.0.0.1", monkeypatch=monkeypatch)
    with pytest.raises(Refused, match="is no public address"):
        await lookup("scoped.example", "fe80::1%eth0", monkeypatch=monkeypatch)


@pytest.mark.parametrize("allow", [("10.0.0.0/8",), ("10.1.2.3",), ("Hooks.Internal.",), ("::1", "10.1.0.0/16")])
async def test_the_site_allows_what_it_likes(allow: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert await lookup("hooks.internal", "10.1.2.3", allow=allow, monkeypatch=monkeypatch) == "10.1.2.3"
    with pytest.raises(Refused):
        await lookup("other.internal", "172.16.0.1", allow=allow, monkeypatch=monkeypatch)


async def test_addresses_written_out_and_names_nobody_knows() -> None:
    with pytest.raises(Refused, match=r"127\.0\.0\.1 is no public address"):
        await Reach().find("127.0.0.1", 80)
    assert await Reach(["127.0.0.1"]).find("127.0.0.1", 80) == "127.0.0.1"
    # Ways to write an address that only some programs understand end as what they mean.
    for odd in ("0x7f000001", "2130706433", "127.1", "localhost"):
        with pytest.raises((Refused, OSError)):
            await Reach().find(odd, 80)
    with pytest.raises(OSError, match=r"nowhere\.invalid has no address"):
        await Reach().find("nowhere.invalid", 80)


OWN = """
import fcntl, ipaddress, socket, struct
def ioctl(what, *more):
    with socket.socket() as s:
        fcntl.ioctl(s, what, struct.pack("16s", b"lo") + b"".join(more).ljust(16, b"\\0"))
ioctl(0x8916, struct.pack("=H2x4s", socket.AF_INET, socket.inet_aton("93.184.216.34")))  # SIOCSIFADDR
ioctl(0x8914, struct.pack("h", 0x41))  # SIOCSIFFLAGS: up, running
from sendswitch.processors.services.reachable import Reach
for address in ("93.184.216.34", "93.184.216.35", "2606:2800:220:1::1"):
    print(Reach().may(ipaddress.ip_address(address)), Reach(["93.184.216.34"]).may(ipaddress.ip_address(address)))
"""


def test_this_machines_own_public_address_is_not_reached() -> None:
    """In a network namespace whose only interface has a public address."""
    how = "-n" if os.getuid() == 0 else "-rn"  # root may without a user namespace, which a chroot cannot have
    done = subprocess.run(["unshare", how, sys.executable, "-c", OWN], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["False True", "True True", "True True"], done.stderr
