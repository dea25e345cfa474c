"""Lists that are kept, in each kind of database."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from sendswitch.db import lists, marks
from sendswitch.errors import NotFound


def test_entries_are_kept_changed_and_taken_off(engine: Engine) -> None:
    before = marks.numbers(engine)[marks.LISTS]
    assert lists.add(engine, "", "deny", ["a.example", "b.example", "a.example"], reason="loud", author="root") == 2
    assert lists.add(engine, "joe@x.example", "allow", ["a.example"], reason="", author="joe", expires=2000.0) == 1
    # Again: nothing is twice, and the newer reason and time count.
    assert lists.add(engine, "", "deny", ["b.example", "c.example"], reason="louder", author="ann", expires=1000.0) == 1
    told = [(e.scope, e.list, e.entry, e.reason, e.author, e.expires) for e in lists.entries(engine)]
    assert told == [
        ("", "deny", "a.example", "loud", "root", None),
        ("", "deny", "b.example", "louder", "ann", 1000.0),
        ("joe@x.example", "allow", "a.example", "", "joe", 2000.0),
        ("", "deny", "c.example", "louder", "ann", 1000.0),
    ]
    assert [entry.entry for entry in lists.entries(engine, "", now=1500.0)] == ["a.example"]
    assert marks.numbers(engine)[marks.LISTS] == before + 3
    ids = [entry.id for entry in lists.entries(engine, "")]
    with pytest.raises(NotFound):
        lists.remove(engine, [*ids, 4711])
    assert len(lists.entries(engine, "")) == 3
    assert lists.remove(engine, ids) == 3
    assert lists.entries(engine, "") == []
    assert marks.numbers(engine)[marks.LISTS] == before + 4


def test_many_at_once(engine: Engine) -> None:
    many = [f"d{n}.example" for n in range(2500)]
    assert lists.add(engine, "x.example", "deny", many, reason="", author="root") == 2500
    assert lists.add(engine, "x.example", "deny", [*many, "one.example"], reason="", author="root") == 1
    assert len(lists.entries(engine, "x.example")) == 2501


@pytest.mark.parametrize(
    ("whose", "scope"),
    [("", ""), ("Joe@X.example", "joe@x.example"), ("X.Example", "x.example"), ("@x.example", "x.example")],
)
def test_whose_a_list_is(whose: str, scope: str) -> None:
    assert lists.scope_of(whose) == scope


@pytest.mark.parametrize("whose", ["two words", "a@b@c d", "joe@"])
def test_nobody_can_be_told(whose: str) -> None:
    with pytest.raises(ValueError, match="is no user@domain and no domain"):
        lists.scope_of(whose)
