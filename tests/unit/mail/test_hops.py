"""Marks of forwarding."""

from __future__ import annotations

from sendswitch.mail.hops import FIELD, Marks


def test_a_mark_of_forwarding_is_ours_alone_and_for_one_message() -> None:
    head = b"Message-ID: <1@x>\r\nFrom: a@b.example\r\nDelivered-To: joe@a.example\r\n"
    marks = Marks(b"k" * 32)
    mark = marks.make(head + b"\r\n", "Joe@a.example")
    marked = f"{FIELD}: {mark}\r\n".encode() + head + b"\r\n"
    assert marks.forwarded_by(marked, "joe@A.example")
    assert not marks.forwarded_by(marked, "ann@a.example")
    assert not marks.forwarded_by(head + b"\r\n", "joe@a.example")
    assert not Marks(b"o" * 32).forwarded_by(marked, "joe@a.example")
    assert not marks.forwarded_by(marked.replace(b"<1@x>", b"<2@x>"), "joe@a.example")
