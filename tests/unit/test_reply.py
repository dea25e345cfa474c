"""Replies: read, written, safe."""

from __future__ import annotations

import pytest

from sendswitch.reply import Reply, parse_reply, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("550 5.7.1 No thanks", Reply(550, "5.7.1", "No thanks")),
        ("250 Ok", Reply(250, "", "Ok")),
        ("451", Reply(451, "", "")),
        ("421 4.3.2", Reply(421, "4.3.2", "")),
        ("550-5.7.1 dashed", Reply(550, "5.7.1", "dashed")),
    ],
)
def test_reading(text: str, expected: Reply) -> None:
    assert parse_reply(text) == expected


@pytest.mark.parametrize("text", ["", "no", "99 x", "650 x", "5500 x", "350 go on"])
def test_what_is_no_reply_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an SMTP reply"):
        parse_reply(text)


def test_classes_of_code_and_status_must_agree() -> None:
    with pytest.raises(ValueError, match="different classes"):
        parse_reply("550 4.7.1 no")


def test_writing_one_line_and_many() -> None:
    assert Reply(250, "2.0.0", "Ok").encode() == b"250 2.0.0 Ok\r\n"
    assert Reply(250, "", "mx", ("SIZE 1", "DSN")).encode() == b"250-mx\r\n250-SIZE 1\r\n250 DSN\r\n"
    assert Reply(550, "5.7.1", "a", ("b",)).encode() == b"550-5.7.1 a\r\n550 5.7.1 b\r\n"


def test_text_cannot_carry_a_line_break() -> None:
    assert printable("a\r\n250 b\x00ü") == "a?250 b?"
    assert len(printable("x" * 1000)) == 400


def test_classes() -> None:
    assert Reply(250, "", "").positive
    assert Reply(354, "", "").positive
    assert Reply(451, "", "").temporary
    assert Reply(550, "", "").permanent
