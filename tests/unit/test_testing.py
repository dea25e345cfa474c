"""What authors of processors test with: the plugin's fixtures, and assertions that can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sendswitch.errors import InvalidConfiguration
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.processors.actions import Tag, TagOptions
from sendswitch.processors.base import Options
from sendswitch.testing import FakeClock, assert_verdict, context, mail, message


class Odd:
    """Answers with what no verdict may have."""

    Options = Options
    version = "1"
    closed = False

    def __init__(self) -> None:
        """Nothing."""

    async def process(self, mail: Any, context: Any) -> Verdict:
        return Verdict(tags=("no tag",))

    async def close(self) -> None:
        self.closed = True


def test_judge(judge: Callable[..., Verdict | None]) -> None:
    verdict = judge(Tag(TagOptions(tags=("A",))), mail())
    assert_verdict(verdict, action=None, tags=("A",))
    odd = Odd()
    with pytest.raises(ValueError, match="tag 'no tag'"):
        judge(odd, mail(), context())
    assert odd.closed


class Old:
    """A package's service step from before its methods were renamed."""

    Options = Options
    version = "1"

    async def ask(self, mail: Any, context: Any) -> dict[str, str]:
        return {"colour": "red"}

    def judge(self, answer: dict[str, str], mail: Any, context: Any) -> Verdict:
        return Verdict(tags=(answer["colour"],))


def test_the_old_names_of_a_service_step_still_work(judge: Callable[..., Verdict | None]) -> None:
    assert_verdict(judge(Old(), mail(), context()), tags=("red",))


def test_pipeline(pipeline: Callable[..., Any]) -> None:
    answer = pipeline("[[step]]\nuse = 'tag'\ntags = ['A']\n[[step]]\nuse = 'deny'\nreason = 'enough'\n", mail())
    assert_verdict(answer, action=Action.DENY, reason="enough", tags=("A",), reply="550 5.7.1")
    assert [step.processor for step in answer.trace] == ["tag", "deny"]
    with pytest.raises(InvalidConfiguration):
        pipeline("[[step]]\nuse = 'tga'\n", mail())


@pytest.mark.parametrize(
    ("verdict", "expected", "problem"),
    [
        (None, {"action": "pass"}, "there is no verdict"),
        (Verdict.passed(), {"action": "deny"}, "action is"),
        (Verdict.tagged("A"), {"tags": ("B",)}, "tags is"),
        (Verdict.passed("why"), {"reason": "because"}, "expected in it"),
        (Verdict.passed(), {"reply": "550"}, "reply is None"),
    ],
)
def test_an_assertion_that_does_not_hold(verdict: Verdict | None, expected: dict[str, Any], problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        assert_verdict(verdict, **expected)


def test_what_is_expected_may_be_nothing() -> None:
    assert_verdict(Verdict.passed(), action="pass", reply=None, tags=())


def test_the_plugins_clock(request: pytest.FixtureRequest) -> None:
    clock = request.getfixturevalue("clock")
    assert isinstance(clock, FakeClock)


def test_a_message_has_the_line_ends_of_the_wire() -> None:
    for text in ("one\ntwo\n", "one\r\ntwo\r\n"):
        raw = message(text, Subject="Gr\u00fc\u00dfe", X_Other="more")
        assert raw.endswith(b"X-Other: more\r\n\r\none\r\ntwo\r\n")
        assert raw.count(b"\n") == raw.count(b"\r\n")
        assert mail(text, Subject="Gr\u00fc\u00dfe").subject == "Gr\u00fc\u00dfe"


def test_a_message_has_attachments_or_is_ready() -> None:
    data = {"bill.pdf": b"%PDF\r\n\0", "r\u00e4ch.bin": bytes(range(256))}
    one = mail("text\n", data, Subject="bills")
    assert {part.name: part.data for part in one.attachments} == data
    assert [part.type for part in one.attachments] == ["application/pdf", "application/octet-stream"]
    assert (one.text, one.subject, one.findings) == ("text\r\n", "bills", ())
    assert one.raw.count(b"\n") == one.raw.count(b"\r\n")
    assert mail(b"Subject: as\n\nit is\n").raw == b"Subject: as\n\nit is\n"
    with pytest.raises(TypeError, match="whole message"):
        mail(b"Subject: x\n\n", Subject="y")
    with pytest.raises(TypeError, match="whole message"):
        mail(b"Subject: x\n\n", data)
