"""Addresses: paths, keys, extensions, and who a header names."""

from __future__ import annotations

import re

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
        ('"a b"@example.org', "a b@example.org"),
        ('"j\\oe"@example.org', "joe@example.org"),
        ("Postmaster", "postmaster"),
        ("joe@example.org.", "joe@example.org"),
        ("joe@B\u00dcCHER.example", "joe@xn--bcher-kva.example"),
        ("joe@bu\u0308cher.example", "joe@xn--bcher-kva.example"),
        ("joe@XN--BCHER-KVA.example", "joe@xn--bcher-kva.example"),
        ("jo\u0308rg@example.org", "j\u00f6rg@example.org"),
        ("joe@b\u00fccher\u3002example", "joe@xn--bcher-kva.example"),
    ],
)
def test_keys(given_: str, expected: str) -> None:
    assert address.key(given_) == expected


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("joe@example.org", ["joe@example.org"]),
        ("joe%example.org", ["joe%example.org", "joe@example.org"]),
        ("example.org!joe", ["example.org!joe", "joe@example.org"]),
        ("joe%example.org@mx.example", ["joe%example.org@mx.example", "joe@example.org"]),
        ('"joe@example.org"', ["joe@example.org"]),
        ('"joe@example.org"@mx.example', ["joe@example.org@mx.example", "joe@example.org"]),
        ("a!b!joe@mx.example", ["a!b!joe@mx.example", "b!joe@a", "joe@b"]),
    ],
)
def test_the_mailboxes_that_an_address_may_reach(given_: str, expected: list[str]) -> None:
    """As Postfix rewrites them: trivial-rewrite(8), allow_percent_hack, swap_bangpath, resolve_dequoted_address."""
    assert list(address.resolved(given_)) == expected


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
        (["=?utf-8?q?bad=40evil.example?= <a@x.example>"], ["a@x.example", "bad@evil.example"]),
        (["=?utf-8?q?win=40evil.example?="], ["win@evil.example"]),
        (["win@evil.example."], ["win@evil.example"]),
        (["a@b\u00fccher.example", "b@bu\u0308cher.example"], ["a@xn--bcher-kva.example", "b@xn--bcher-kva.example"]),
        (["a:" * 4000], []),
        (["undisclosed"], []),
        (["<A@X.Example>"], ["a@x.example"]),
    ],
)
def test_every_address_a_reader_could_take_for_the_author(values: list[str], expected: list[str]) -> None:
    assert address.in_header(values) == expected


def only(*values: str) -> str | None:
    return address.only(list(values), address.in_header(list(values)))


def test_the_only_author() -> None:
    assert only("Joe <joe@a.example>") == "joe@a.example"
    assert only('"x@good.example" <y@evil.example>') is None
    assert only("a@x.example", "a@x.example") is None
    assert only() is None
    assert only("joe@a.example" + " " * address.MAX_PARSED) is None


@given(st.text("aB0_+-'. \t<>@\"(),;:=?", max_size=40))
def test_the_short_way_finds_what_the_long_one_finds(value: str) -> None:
    short = address.in_header([value])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(address, "PLAIN", re.compile("(?!)"))
        assert short == address.in_header([value])


@given(st.from_regex(r"([A-Za-z0-9 '_+-]{0,9}<a\.b@c-d\.e>|a+b@c)[ \t]?", fullmatch=True))
def test_the_short_way_is_for_most_fields(value: str) -> None:
    test_the_short_way_finds_what_the_long_one_finds.hypothesis.inner_test(value)  # type: ignore[attr-defined]


@given(st.lists(st.text(max_size=200), max_size=3))
def test_no_header_raises(values: list[str]) -> None:
    only(*values)
    for value in values:
        address.spellings(value)


@given(st.text(max_size=100))
def test_a_valid_address_cannot_leave_its_brackets(text: str) -> None:
    if address.valid(text):
        assert "\r" not in text
        assert "\n" not in text
        assert address.parse_path(f"<{text}>") == (text, "")


@pytest.mark.parametrize(
    ("domain", "canonical", "readable"),
    [
        ("B\u00fccher.example.", "xn--bcher-kva.example", "b\u00fccher.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", "b\u00fccher.example"),
        ("xn--\u00fc.example", "xn--\u00fc.example", "xn--\u00fc.example"),
        ("a.example", "a.example", "a.example"),
    ],
)
def test_a_domain_has_one_canonical_form(domain: str, canonical: str, readable: str) -> None:
    assert address.domain_key(domain) == canonical
    assert address.readable_domain(canonical) == readable


def test_every_mailbox_that_postfix_may_deliver_to_is_known() -> None:
    assert list(address.resolved("ann@example.com")) == ["ann@example.com"]
    assert "ann@b.example" in address.resolved("ann%b.example@example.com")
    assert "ann@b.example" in address.resolved("b.example!ann@example.com")
    assert "ann@b.example" in address.resolved('"ann@b.example"@example.com')
    assert len(list(address.resolved("ann" + "%b.example" * 100 + "@example.com"))) <= address.MOST_REWRITES * 2


def test_of_very_many_authors_the_first_and_the_last_are_known() -> None:
    value = ", ".join(f"a{n}@example.com <x{n}@example.com>" for n in range(address.MOST_AUTHORS))
    found = address.in_header([value])
    assert "a0@example.com" in found
    assert f"x{address.MOST_AUTHORS - 1}@example.com" in found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["Ann <Ann@Example.com>"], "ann@example.com"),
        (['"bob@b.example" <ann@example.com>'], "ann@example.com"),
        (["ann@example.com (bob@b.example)"], None),
        (["ann@example.com, bob@b.example"], None),
        (["ann"], None),
        (["ann@example.com", "ann@example.com"], None),
        ([], None),
        (["ann@example.com" + " " * address.MAX_PARSED], None),
    ],
)
def test_the_sole_author_is_the_one_that_all_readers_see(values: list[str], expected: str | None) -> None:
    assert address.sole_author(values) == expected


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc@x", True),  # Persian
        ("\u0dc1\u0dca\u200d\u0dbb\u0dd3@x", True),  # Sinhala
        ("a@\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example", True),
        ("jo\u200ce@x", False),
        ("joe\u200d@x", False),
        ("joe@x\u200d.example", False),
        ("\u200cjoe@x", False),
        ("\u0378\u200d@x", False),  # beside a character that Unicode does not know
    ],
)
def test_joiners_stand_where_a_script_needs_them(text: str, good: bool) -> None:
    assert address.valid(text) is good
