"""The answers of several nodes to one request, as one answer.

Ids of messages are unique among nodes and rise with time, so that pages of several nodes have one order and one cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sendswitch.admin.base import PAGE, Page

T = TypeVar("T")

Given = Mapping[str, Any]
"""The arguments of the request."""


def order(id_: str) -> tuple[str, int]:
    """Return what ids of deliveries are ordered by: the message's age, and the recipient's number."""
    message, _, n = id_.partition(".")
    return message, int(n or 0)


def pages(answers: Sequence[Page[Any]], given: Given) -> Page[Any]:
    """Merge pages of deliveries, the oldest first. Each node was asked for those behind the same id."""
    found = sorted((item for page in answers for item in page.items), key=lambda item: order(item.id))
    items = tuple(found[: given.get("limit", PAGE)])
    more = len(found) > len(items) or any(page.next for page in answers)
    return Page(items, items[-1].id if more and items else "")


def results(answers: Sequence[Any], given: Given) -> Any:
    """Merge the results of a bulk request: for each delivery that of the node which has it.

    The cursor is the first one: nodes that are behind it act again on nothing but what failed.
    """
    by: dict[str, Any] = {}
    for one in (one for answer in answers for one in answer.results):
        if one.id not in by or by[one.id].kind == "not_found":
            by[one.id] = one
    cursors = sorted((answer.next for answer in answers if answer.next), key=order)
    return type(answers[0])(tuple(by.values()), cursors[0] if cursors else "")


def total(answers: Sequence[int], given: Given) -> int:
    """Add numbers."""
    return sum(answers)


def joined(answers: Sequence[tuple[T, ...]], given: Given) -> tuple[T, ...]:
    """Put lists one behind the other."""
    return tuple(item for one in answers for item in one)


def first(answers: Sequence[T], given: Given) -> T:
    """Return the answer of the first node: all say the same."""
    return answers[0]
