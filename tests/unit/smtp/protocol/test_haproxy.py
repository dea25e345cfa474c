"""HAProxy's PROXY header: whole, cut anywhere, and rubbish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.smtp.protocol.haproxy import MAX_BLOCK, SIGNATURE, Source, read


def block(family: int, addresses: bytes, *, command: int = 0x21, extra: bytes = b"") -> bytes:
    return SIGNATURE + bytes((command, family)) + (len(addresses) + len(extra)).to_bytes(2, "big") + addresses + extra


V4 = bytes((192, 0, 2, 7, 127, 0, 0, 1)) + (4711).to_bytes(2, "big") + (25).to_bytes(2, "big")
V6 = bytes.fromhex("20010db8" + "0" * 22 + "07") + bytes(16) + (4711).to_bytes(2, "big") + (25).to_bytes(2, "big")
GOOD = [
    (b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 25\r\n", Source("192.0.2.7", "4711")),
    (b"PROXY TCP6 2001:db8::7 ::1 4711 25\r\n", Source("2001:db8::7", "4711")),
    (b"PROXY UNKNOWN\r\n", Source()),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", Source()),
    (block(0x11, V4), Source("192.0.2.7", "4711")),
    (block(0x21, V6), Source("2001:db8::7", "4711")),
    (block(0x11, V4, extra=b"\x04\x00\x02xx"), Source("192.0.2.7", "4711")),
    (block(0x00, b"", command=0x20), Source()),
    (block(0x11, V4, command=0x20), Source()),
    (block(0x31, bytes(216)), Source()),
]


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_a_header_whole_cut_anywhere_and_with_bytes_following(header: bytes, source: Source) -> None:
    assert read(header) == (source, len(header))
    assert read(header + b"EHLO x\r\n") == (source, len(header))
    assert [read(header[:n]) for n in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO x\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711\r\n",
        b"PROXY TCP5 192.0.2.7 127.0.0.1 4711 25\r\n",
        b"PROXY TCP6 192.0.2.7 127.0.0.1 4711 25\r\n",
        b"PROXY TCP4 nobody 127.0.0.1 4711 25\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 65536 25\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 -1 25\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 " + b"1" * 200,
        block(0x11, V4, command=0x11),
        block(0x11, V4, command=0x22),
        block(0x11, V4[:10]),
        SIGNATURE + b"\x21\x11" + (MAX_BLOCK + 1).to_bytes(2, "big"),
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"PROXY|address"):
        read(data)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", SIGNATURE, b"PROXY TCP4 "]))
def test_rubbish_is_refused_or_waited_for(data: bytes, prefix: bytes) -> None:
    try:
        found = read(prefix + data)
    except ValueError:
        return
    assert found is None or 0 < found[1] <= len(prefix + data)
