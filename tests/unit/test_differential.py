"""What other programs were recorded to see in malformed messages and archives, we see as well (`make differential`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from sendswitch.mail.mime.reader import Part
from tests.differential import mutations
from tests.differential.answers import Difference, differences, recorded
from tests.differential.explained import EXPLAINED
from tests.differential.seen import digest

RECORDED = recorded()


def found(kind: str, numbers: range) -> list[Difference]:
    make = mutations.packed if kind == "zip" else mutations.message
    out: list[Difference] = []
    for number in numbers:
        key, raw = f"{kind} {number}", make(number)
        out += differences(key, raw, RECORDED[key, digest(raw)])
    return out


@pytest.mark.parametrize(("kind", "most"), [("mail", mutations.MESSAGES), ("zip", mutations.ZIPS)])
def test_what_others_see_we_see(kind: str, most: int) -> None:
    assert [str(one) for one in found(kind, range(most)) if not one.reason] == []


def test_the_messages_of_pythons_own_tests_were_asked_about() -> None:
    assert sum(key.startswith("python ") for key, _ in RECORDED) > 40


def test_what_we_do_not_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "contents", lambda self: iter([self.source[self.start : self.end]]))
    assert any("the content of 'evil.exe'" in one.what and not one.reason for one in found("mail", range(50)))


def test_the_list_of_explained_differences_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/differences.md").read_text()
    assert [reason for reason in EXPLAINED if f"**{reason}**" not in page] == []
