"""Content on the wire: where data ends, dot-stuffing, line ends; cut anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.smtp.protocol.content import ChunkDecoder, DotDecoder, DotEncoder, clean, stuffed

NASTY = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b".\r\n", b"\x00", b"\xff"]), max_size=40).map(
    b"".join
)


def decode(pieces: list[bytes]) -> tuple[bytes, bytes | None]:
    decoder = DotDecoder()
    out = b""
    for n, piece in enumerate(pieces):
        out += decoder.feed(piece)
        if decoder.rest is not None:
            return out, decoder.rest + b"".join(pieces[n + 1 :])
    return out, None


@pytest.mark.parametrize(
    ("wire", "content", "rest"),
    [
        (b".\r\n", b"", b""),
        (b"a\r\n.\r\n", b"a\r\n", b""),
        (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
        (b"..\r\n.\r\n", b".\r\n", b""),
        (b"..a\r\n...\r\n.\r\n", b".a\r\n..\r\n", b""),
        (b".a\r\n.\r\n", b"a\r\n", b""),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n\r\n.\r\n", b"a\r\n\r\n", b""),
    ],
)
def test_ends_and_dots(wire: bytes, content: bytes, rest: bytes) -> None:
    assert decode([wire]) == (content, rest)
    assert decode([bytes((byte,)) for byte in wire]) == (content, rest)


@pytest.mark.parametrize(
    "end",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\n.\r",
        b"\r.\n",
        b"\r\n\x00.\r\n",
        b"\r\n.\r\r\n",
        b"\r\n. \r\n",
    ],
)
def test_nothing_else_ends_the_data(end: bytes) -> None:
    """SMTP smuggling: what some other server takes for the end must be content here, and harmless when it leaves."""
    smuggled = b"a" + end + b"MAIL FROM:<evil@example.org>\r\n"
    content, rest = decode([smuggled + b"\r\n.\r\n"])
    assert rest == b""
    assert b"MAIL FROM" in content
    again, after = decode([stuffed(content)])
    assert (again, after) == (content, b"")
    assert content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")


def test_bare_line_ends_become_harmless() -> None:
    assert clean(b"a\nb\rc\r\nd") == b"a\r\nb c\r\nd"
    assert clean(b"a\r\r\nb") == b"a \r\nb"


@given(NASTY, st.lists(st.integers(0, 60), max_size=6))
def test_cut_anywhere_it_is_the_same(data: bytes, cuts: list[int]) -> None:
    wire = data + b"\r\n.\r\nNOOP\r\n"
    whole = decode([wire])
    places = [0, *sorted({min(cut, len(wire)) for cut in cuts}), len(wire)]
    assert decode([wire[a:b] for a, b in itertools.pairwise(places)]) == whole


@given(NASTY)
def test_what_we_send_is_what_they_get(data: bytes) -> None:
    content = clean(data)
    expected = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    assert decode([stuffed(content)]) == (expected, b"")


@given(NASTY, st.lists(st.integers(0, 60), max_size=6))
def test_piece_by_piece_is_as_at_once(data: bytes, cuts: list[int]) -> None:
    content = clean(data)
    places = [0, *sorted({min(cut, len(content)) for cut in cuts}), len(content)]
    encoder = DotEncoder()
    wire = b"".join(encoder.feed(content[a:b]) for a, b in itertools.pairwise(places)) + encoder.end()
    assert wire == stuffed(content)


@given(NASTY, st.lists(st.integers(0, 60), max_size=6))
def test_chunks_are_clean_wherever_they_are_cut(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    decoder = ChunkDecoder()
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    out = b"".join(decoder.feed(piece) for piece in pieces) + decoder.feed(b"", last=True)
    assert out == clean(data)


def test_large_content_goes_out_piece_by_piece() -> None:
    encoder = DotEncoder()
    pieces = (b".a\r\n", b"", b".b\r\n.", b"c")
    assert stuffed(b"") == b".\r\n"
    assert stuffed(b".") == b"..\r\n.\r\n"
    assert b"".join(map(encoder.feed, pieces)) + encoder.end() == b"..a\r\n..b\r\n..c\r\n.\r\n"
    assert DotEncoder().end() == b".\r\n"


def test_a_cr_at_the_end_of_a_chunk_waits_for_the_next() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b"a\r") + decoder.feed(b"\nb\r", last=True) == b"a\r\nb "
