"""Content: the same bytes from everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.content import Damaged, Edited, InFile, InMemory, digest_of, head_of, read_all, verify


def test_content_that_was_changed_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"Subject: a\r\n\r\nbody\r\n")
    stored = InFile(path, path.stat().st_size)
    digest = hashlib.sha256(path.read_bytes()).digest()
    assert digest_of(stored) == digest_of(InMemory(path.read_bytes())) == digest
    assert digest_of(replace(stored, digest=b"known")) == b"known"
    assert verify(stored, stored.size, digest) is stored
    assert verify(stored, stored.size, None) is stored
    with pytest.raises(Damaged, match="its bytes are others"):
        verify(InMemory(b"x" * stored.size), stored.size, digest)
    with pytest.raises(Damaged, match="it has 1 bytes"):
        verify(InMemory(b"x"), stored.size, digest)


@given(st.binary(max_size=50), st.binary(max_size=50), st.integers(0, 60), st.integers(0, 120))
def test_edited_content_reads_the_same_everywhere(data: bytes, front: bytes, cut: int, start: int) -> None:
    cut = min(cut, len(data))
    edited = Edited(InMemory(data), front, cut)
    whole = front + data[cut:]
    assert edited.whole() == whole == read_all(edited)
    assert edited.size == len(whole)
    assert b"".join(edited.chunks(start)) == whole[start:]


@pytest.mark.parametrize(
    "data", [b"A: 1\r\n\r\nbody\r\n", b"\r\nbody\r\n", b"no end", b"A: 1\r\n\r\n" + b"x" * 300_000]
)
def test_content_reads_the_same_from_memory_and_from_a_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(data)
    file = InFile(path, len(data))
    for content in (InMemory(data), file, Edited(file, b""), Edited(InMemory(data[2:]), data[:2])):
        assert content.head() == head_of(data)
        assert read_all(content) == data
        assert b"".join(content.chunks(1)) == data[1:]
        assert b"".join(content.chunks(3)) == data[3:]
        assert content.size == len(data)
    assert InFile(path, len(data)).whole() is None
    assert Edited(InMemory(data), b"B: 2\r\n").head() == head_of(b"B: 2\r\n" + data)
