"""The checks of a verdict: all of it can be carried out, or an error names the part that cannot."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

from sendswitch.mail.address import valid
from sendswitch.mail.edits import Cut, Edit, MarkSubject
from sendswitch.mail.headers import valid_name
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import (
    MAX_EDITS,
    MAX_FORWARD,
    MAX_HOLD,
    MAX_REASON,
    MAX_TAG,
    MAX_TAGS,
    MAX_VALUE,
    MIN_DELAY,
    Action,
    AfterHold,
    Denial,
    Verdict,
    check_refusal,
)

_AFTER_HOLD, _DENIALS = tuple(AfterHold), tuple(Denial)


def checked(verdict: Verdict, *, edits: int = MAX_EDITS) -> Verdict:
    """Return the verdict when all of it can be carried out. Raises ValueError with the part that cannot.

    Every verdict of a processor goes through here, because it ends up in SMTP commands, header fields and the journal.
    `edits` is how many header edits it may have; a pipeline's verdict has those of all its steps.
    """
    checked_tags(verdict.tags)
    _check_forward(verdict)
    if verdict.reply is not None:
        check_refusal(verdict.reply)
    if verdict.score is not None and not isfinite(verdict.score):
        raise ValueError(f"score {verdict.score!r} is no number")
    _check_hold(verdict)
    if verdict.rewrite:
        raise ValueError("rewrite: only the switch changes whose mail it is, when it forwards")
    if len(verdict.edits) > edits:
        raise ValueError(f"{len(verdict.edits)} header edits; at most {edits} are made")
    for edit in verdict.edits:
        _check_edit(edit)
    reason, then, denial = storable(verdict.reason, MAX_REASON), AfterHold(verdict.then), Denial(verdict.denial)
    if reason == verdict.reason and then is verdict.then and denial is verdict.denial:
        return verdict
    return replace(verdict, reason=reason, then=then, denial=denial)


def _check_forward(verdict: Verdict) -> None:
    if isinstance(verdict.forward, str) or len(verdict.forward) > MAX_FORWARD:
        raise ValueError(f"forward must be a list of at most {MAX_FORWARD} addresses")
    for address in verdict.forward:
        if not isinstance(address, str) or "@" not in address or not valid(address):
            raise ValueError(f"forward: {address!r} is no mail address")
    if verdict.action is Action.FORWARD and not verdict.forward:
        raise ValueError("action forward needs an address in forward")


def _check_hold(verdict: Verdict) -> None:
    if verdict.then not in _AFTER_HOLD:
        raise ValueError(f"then: {verdict.then!r} is none of {', '.join(filter(None, _AFTER_HOLD))}")
    if verdict.denial not in _DENIALS:
        raise ValueError(f"denial: {verdict.denial!r} is none of {', '.join(filter(None, _DENIALS))}")
    if verdict.hold is not None and not 0 <= verdict.hold < MAX_HOLD:
        raise ValueError(f"hold {verdict.hold!r} is no number of seconds")
    if verdict.then == AfterHold.ASK and (verdict.hold is None or verdict.hold < MIN_DELAY):
        raise ValueError(f"then = ask needs a hold of at least {MIN_DELAY:g} s, or nothing else would be done")


def _check_edit(edit: Edit) -> None:
    if isinstance(edit, Cut):
        if not 0 < edit.start < edit.end or len(edit.text) > MAX_VALUE or storable(edit.text, MAX_VALUE) != edit.text:
            raise ValueError(f"cut {edit.start} to {edit.end}: not a place with text of at most {MAX_VALUE} characters")
        return
    values = (edit.mark,) if isinstance(edit, MarkSubject) else (edit.name, getattr(edit, "value", ""))
    for value in values:
        if not isinstance(value, str) or len(value) > MAX_VALUE or storable(value, MAX_VALUE) != value:
            raise ValueError(f"header edit {edit!r}: names and values are text of at most {MAX_VALUE} characters")
    if not isinstance(edit, MarkSubject) and not valid_name(edit.name):
        raise ValueError(f"header edit: {edit.name!r} is no header field name")


def checked_tags(tags: Any) -> tuple[str, ...]:
    """Return `tags` as a tuple of distinct words that fit a header. Raises ValueError."""
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("tags must be a list of words")
    for tag in tags:
        if not tag or len(tag) > MAX_TAG or not tag.isascii() or not tag.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"tag {tag!r} must be 1 to {MAX_TAG} letters, digits, '-' or '_'")
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags; at most {MAX_TAGS} are kept")
    return tuple(dict.fromkeys(tags))
