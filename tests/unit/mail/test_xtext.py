"""xtext (RFC 3461 4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail import xtext

# xtext


@given(st.text(st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=("Cs", "Cc"))))
def test_xtext_and_back(text: str) -> None:
    encoded = xtext.encode(text)
    assert encoded.isascii()
    assert " " not in encoded
    assert xtext.decode(encoded) == text


@pytest.mark.parametrize(("given_", "expected"), [("a+2Bb", "a+b"), ("+0D+0A", "??"), ("+GG", "+GG"), ("+2", "+2")])
def test_xtext_oddities(given_: str, expected: str) -> None:
    assert xtext.decode(given_) == expected


def test_xtext_of_another_encoding() -> None:
    assert xtext.decode("+E4") == "ä"
