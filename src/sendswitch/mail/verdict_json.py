"""Verdicts, deferrals and steps read from JSON: the inverse of their `to_json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sendswitch.mail.edits import AddHeader, Cut, Edit, MarkSubject, RemoveHeader, SetHeader
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import (
    BROKE,
    LATE,
    MAX_REASON,
    SHADOWED,
    Action,
    AfterHold,
    Deferral,
    Denial,
    StepRecord,
    Verdict,
)
from sendswitch.reply import parse_reply

# Characters of a worker's name.
MAX_WORKER = 100


def verdict_from_json(data: Mapping[str, Any], *, outside: bool = False) -> Verdict:
    """Return the verdict that JSON describes: the inverse of `Verdict.to_json`.

    Raises ValueError with the wrong field. An unknown field is an error, because a misspelt one would silently lose its
    meaning. A verdict of a stranger's program goes through `checked` as well and is `outside`: it cannot cut, because a
    cut at the wrong place would turn content into commands, and it cannot discard.
    """
    if outside and any("cut" in edit for edit in data.get("edits", ()) if isinstance(edit, Mapping)):
        raise ValueError("edits: only what is built in can cut")
    if outside and data.get("action") == "deny" and data.get("then") == "discard":
        raise ValueError(
            "then: what is denied is thrown away where the pipeline says deny = 'discard', not by an answer"
        )
    unknown = set(data) - _VERDICT_FIELDS
    if unknown:
        raise ValueError(f"a verdict has no field {sorted(unknown)[0]!r}; it has {', '.join(sorted(_VERDICT_FIELDS))}")
    try:
        action = Action(data["action"]) if data.get("action") else None
    except ValueError:
        raise ValueError(f"action {data['action']!r} is none of {', '.join(Action)}") from None
    hold, (then, denial) = (
        data.get("hold"),
        _then(str(data.get("then", "")), denied=action is Action.DENY, outside=outside),
    )
    return Verdict(
        action=action,
        tags=_list(data, "tags"),
        edits=tuple(_edit_from_json(edit) for edit in data.get("edits", ())),
        forward=_list(data, "forward"),
        keep_copy=bool(data.get("keep_copy", False)),
        reply=parse_reply(str(data["reply"])) if data.get("reply") else None,
        reason=str(data.get("reason", ""))[:1000],
        hold=float(hold) if hold is not None else None,
        then=then,
        denial=denial,
        score=float(data["score"]) if data.get("score") is not None else None,
        trace=tuple(step_from_json(step) for step in data.get("trace", ())),
        pipeline=str(data.get("pipeline", "")),
        version=int(data.get("version", 0)),
        rewrite=bool(data.get("rewrite", False)),
        **_worker(data),
    )


def deferral_from_json(data: Mapping[str, Any]) -> Deferral:
    """Return the deferral that JSON describes: the inverse of `Deferral.to_json`. Raises ValueError."""
    if (why := data.get("why", "")) not in ("", LATE, BROKE):
        raise ValueError(f"why: {why!r} is none of {LATE}, {BROKE}")
    return Deferral(
        reason=storable(data.get("reason", ""), MAX_REASON),
        trace=tuple(step_from_json(step) for step in data.get("trace", ())),
        pipeline=str(data.get("pipeline", "")),
        version=int(data.get("version", 0)),
        why=why,
        **_worker(data),
    )


def _worker(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the worker and its file as every database can keep them."""
    return {name: storable(data.get(name, ""), MAX_WORKER) for name in ("worker", "file")}


_AFTER_HOLD = {member.value: member for member in AfterHold}


_DENIALS = {member.value: member for member in Denial}


def _then(text: str, *, denied: bool, outside: bool) -> tuple[AfterHold, Denial]:
    """Return the meaning of the field "then". Raises ValueError for a word that has none.

    In stored JSON, a word that the action does not have is left out: a DENY that a person released is a PASS with the
    "then" of a DENY. From outside it is an error.
    """
    after, denial = _AFTER_HOLD.get(text), _DENIALS.get(text)
    fits = (denial if denied else after) is not None
    if not fits and (outside or (after is None and denial is None)):
        known = _DENIALS if denied else _AFTER_HOLD
        raise ValueError(f"then: {text!r} is none of {', '.join(filter(None, known))}")
    if denied:
        return AfterHold.UNSET, denial or Denial.UNSET
    return after or AfterHold.UNSET, Denial.UNSET


def _list(data: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    value = data.get(name, ())
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list")
    return tuple(value)


_VERDICT_FIELDS = frozenset(
    (
        "action",
        "tags",
        "edits",
        "forward",
        "keep_copy",
        "reply",
        "reason",
        "hold",
        "then",
        "score",
        "trace",
        "pipeline",
        "version",
        "rewrite",
        "worker",
        "file",
    )
)


def step_from_json(data: Mapping[str, Any]) -> StepRecord:
    """Return the inverse of `StepRecord.to_json`."""
    told = str(data.get("outcome", ""))
    outcome = told.removesuffix(SHADOWED)
    return StepRecord(
        processor=str(data.get("processor", "")),
        version=str(data.get("version", "")),
        seconds=float(data.get("seconds", 0.0)),
        outcome=outcome,
        saw=str(data.get("saw", "")),
        answer=data.get("answer"),
        shadow=outcome != told,
    )


def _edit_from_json(data: Mapping[str, Any]) -> Edit:
    match data:
        case {"add": name, "value": value}:
            return AddHeader(name, value)
        case {"set": name, "value": value}:
            return SetHeader(name, value)
        case {"remove": name}:
            return RemoveHeader(name)
        case {"mark_subject": mark}:
            return MarkSubject(mark)
        case {"cut": [int(start), int(end)], "text": text}:
            return Cut(start, end, text)
    raise ValueError(
        f"not a header edit: {dict(data)!r}; use add/set with value, remove, mark_subject, or cut with text"
    )
