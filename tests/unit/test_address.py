"""Addresses: paths, keys, extensions, and who a header names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail import address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a@b.example>", ("a@b.example", "")),
        ("<a@b.example> SIZE=1 BODY=7BIT", ("a@b.example", "SIZE=1 BODY=7BIT")),
        ("<>", ("", "")),
        ("<> RET=HDRS", ("", "RET=HDRS")),
        ('<"a b"@c.example>', ('"a b"@c.example', "")),
        ('<"a>b"@c.example>', ('"a>b"@c.example', "")),
        ("<@relay.example,@two.example:a@b.example>", ("a@b.example", "")),
        ("<postmaster>", ("postmaster", "")),
        ("<a@[192.0.2.1]>", ("a@[192.0.2.1]", "")),
        ("<a@[IPv6:2001:db8::1]>", ("a@[IPv6:2001:db8::1]", "")),
        ("<ü@bücher.example>", ("ü@bücher.example", "")),
    ],
)
def test_paths(text: str, expected: tuple[str, str]) -> None:
    assert address.parse_path(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a@b",
        "<a@b",
        "<a b@c>",
        "<a@b>SIZE=1",
        "<<a@b>>",
        "<a@b@c@>",
        "<@>",
        "<a@>",
        f"<{'x' * 400}@b>",
        "<a\x00@b>",
    ],
)
def test_what_is_no_path(text: str) -> None:
    assert address.parse_path(text) is None


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("Joe@Example.ORG", "joe@example.org"),
        ('"joe"@example.org', "joe@example.org"),
        ('"a b"@example.org', '"a b"@example.org'),
        ('"j\\oe"@example.org', "joe@example.org"),
        ("Postmaster", "postmaster"),
    ],
)
def test_keys(given_: str, expected: str) -> None:
    assert address.key(given_) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [("a+b@c", "a@c"), ("a@c", "a@c"), ("+a@c", "+a@c"), ("a-b+c@d", "a-b@d"), ("a+b+c@d", "a@d"), ("a+b", "a")],
)
def test_extensions(key: str, expected: str) -> None:
    assert address.without_extension(key, "+") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Joe <joe@a.example>"], ["joe@a.example"]),
        (["joe@a.example (Joe)"], ["joe@a.example"]),
        (['"x@good.example" <y@evil.example>'], ["y@evil.example", "x@good.example"]),
        (["a@x.example", "b@y.example"], ["a@x.example", "b@y.example"]),
        (["=?utf-8?q?bad=40evil.example?= <a@x.example>"], ["a@x.example"]),
        (["undisclosed"], []),
        (["<A@X.Example>"], ["a@x.example"]),
    ],
)
def test_every_address_a_reader_could_take_for_the_author(values: list[str], expected: list[str]) -> None:
    assert address.in_header(values) == expected


def test_the_only_author() -> None:
    assert address.only_in_header(["Joe <joe@a.example>"]) == "joe@a.example"
    assert address.only_in_header(['"x@good.example" <y@evil.example>']) is None
    assert address.only_in_header(["a@x.example", "a@x.example"]) is None
    assert address.only_in_header([]) is None


@given(st.lists(st.text(max_size=200), max_size=3))
def test_no_header_raises(values: list[str]) -> None:
    address.in_header(values)
    address.only_in_header(values)
    for value in values:
        address.display(value)


@given(st.text(max_size=100))
def test_a_valid_address_cannot_leave_its_brackets(text: str) -> None:
    if address.valid(text):
        assert "\r" not in text
        assert "\n" not in text
        assert address.parse_path(f"<{text}>") == (text, "")
