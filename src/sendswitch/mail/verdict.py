"""The answer of a pipeline: an action with tags, and the trace of its steps.

A verdict is made by processors, merged by the chain, stored in the spool and quoted in the journal, so it turns
into plain JSON and back without loss. `Deferral` is the other answer: nothing was decided, ask again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import isfinite
from typing import Any

from sendswitch.mail.address import valid
from sendswitch.mail.headers import AddHeader, Cut, Edit, MarkSubject, RemoveHeader, SetHeader, valid_name
from sendswitch.mail.text import storable
from sendswitch.reply import Reply, parse_reply


class Action(StrEnum):
    """An action on the mail. The names are those of the older systems."""

    PASS = "pass"  # noqa: S105 - an action
    DENY = "deny"
    FORWARD = "forward"
    QUARANTINE = "quarantine"
    PENDING = "pending"


class AfterHold(StrEnum):
    """The action when a hold is over. UNSET leaves it to the configuration; ASK asks the pipeline again."""

    UNSET = ""
    PASS = "pass"  # noqa: S105 - an action
    DENY = "deny"
    QUARANTINE = "quarantine"
    ASK = "ask"


class Denial(StrEnum):
    """The way a DENY is carried out when the sender does not wait any more. UNSET leaves it to the configuration."""

    UNSET = ""
    BOUNCE = "bounce"
    DISCARD = "discard"
    QUARANTINE = "quarantine"


class StepOutcome(StrEnum):
    """The outcomes of steps that have no effect on the mail. Of others the outcome is the effect in words."""

    NO_OPINION = "no opinion"
    NOT_ASKED = "not asked"
    ERROR = "error"
    TIMEOUT = "timeout"


# The header field that says where in their mailbox a recipient wants it.
FOLDER = "X-SendSwitch-Folder"
SPAM = "SPAM"
VIRUS = "VIRUS"

# Tags become a header and metrics labels in people's rules; these limits keep both readable.
MAX_TAGS = 32
MAX_TAG = 64
MAX_FORWARD = 50
# Characters of a reason; it is a sentence that people read in lists.
MAX_REASON = 1000
MAX_EDITS = 100
MAX_VALUE = 10_000
# Seconds of a hold, and of one after which the pipeline is asked again.
MAX_HOLD, MIN_DELAY = 1e9, 0.01


# Why nothing was decided.
LATE, BROKE = "late", "broke"
# The end of an outcome, as people read it, of a step whose opinion did not count.
SHADOWED = ", in the shadow"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the trace: the processor, its time (seconds), its outcome, and the facts it saw.

    `outcome` is a StepOutcome, an action, or the effect in words. A step in the `shadow` was asked and did not count.
    `answer` is the answer of a service, as JSON, because a replay cannot get it again; None for other steps.
    """

    processor: str
    version: str = ""
    seconds: float = 0.0
    outcome: str = ""
    saw: str = ""
    answer: Mapping[str, Any] | None = None
    shadow: bool = False

    @property
    def spoke(self) -> bool:
        """Return whether the step had an opinion that counted."""
        return self.outcome not in (StepOutcome.NO_OPINION, StepOutcome.NOT_ASKED) and not self.shadow

    @property
    def failed(self) -> bool:
        """Return whether the step could not do its work, whatever came of that."""
        return self.outcome in (StepOutcome.ERROR, StepOutcome.TIMEOUT)

    def to_json(self) -> dict[str, Any]:
        """Return the step with its empty fields left out."""
        out: dict[str, Any] = {"processor": self.processor, "seconds": round(self.seconds, 6)}
        for name in ("version", "outcome", "saw"):
            if value := getattr(self, name):
                out[name] = value
        if self.shadow:
            out["outcome"] = self.outcome + SHADOWED
        if self.answer is not None:
            out["answer"] = self.answer
        return out


@dataclass(frozen=True, slots=True)
class Verdict:
    """The opinion of a processor or of a pipeline. Without an action it only adds tags and header edits.

    `reply` is the reply to a sender who waits, on DENY, and bounces quote it; `denial` is how a DENY is carried out.
    `forward` are addresses; `keep_copy` also delivers to the recipient. `hold` is seconds for PENDING, `then` the
    action after them. None and UNSET leave these to the configuration. `score` is the scanner's spam score. `pipeline`
    (its owner) and `version` name the pipeline that gave the verdict; the switch sets them. It also sets `rewrite`, for
    forwarded mail that leaves with a sender of ours (`mail.srs`).

    In JSON `denial` of a DENY and `then` of everything else are one field, "then".
    """

    action: Action | None = None
    tags: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    forward: tuple[str, ...] = ()
    keep_copy: bool = False
    reply: Reply | None = None
    reason: str = ""
    hold: float | None = None
    then: AfterHold = AfterHold.UNSET
    denial: Denial = Denial.UNSET
    score: float | None = None
    trace: tuple[StepRecord, ...] = field(default=())
    pipeline: str = ""
    version: int = 0
    rewrite: bool = False

    @staticmethod
    def passed(reason: str = "") -> Verdict:
        """Deliver it now; later steps are not asked."""
        return Verdict(Action.PASS, reason=reason)

    @staticmethod
    def deny(reason: str = "", *, reply: str = "") -> Verdict:
        """Refuse it. `reply` is like '550 5.7.1 Not wanted here'; raises ValueError when it is no refusal."""
        return Verdict(Action.DENY, reason=reason, reply=parse_refusal(reply) if reply else None)

    @staticmethod
    def forwarded(*addresses: str, keep_copy: bool = False, reason: str = "") -> Verdict:
        """Deliver to other addresses, and with `keep_copy` to the recipient too."""
        return Verdict(Action.FORWARD, forward=addresses, keep_copy=keep_copy, reason=reason)

    @staticmethod
    def quarantine(reason: str = "") -> Verdict:
        """Put the message in quarantine until a person releases or deletes it, or it expires."""
        return Verdict(Action.QUARANTINE, reason=reason)

    @staticmethod
    def pending(reason: str = "", *, hold: float | None = None, then: str = "") -> Verdict:
        """Hold it for `hold` seconds, then do `then`: pass, deny, quarantine, or ask the pipeline again.

        Raises ValueError for another `then`.
        """
        return Verdict(Action.PENDING, reason=reason, hold=hold, then=AfterHold(then))

    @staticmethod
    def tagged(*tags: str, reason: str = "") -> Verdict:
        """Add tags and go on with the next step."""
        return Verdict(tags=tags, reason=reason)

    def with_trace(self, trace: tuple[StepRecord, ...]) -> Verdict:
        """Return the same verdict with the whole trace."""
        return replace(self, trace=trace)

    @property
    def written(self) -> int:
        """Return how many characters its edits write into the header."""
        return sum(len(getattr(edit, "value", "")) for edit in self.edits)

    def to_json(self, *, trace: bool = True) -> dict[str, Any]:
        """Return the verdict as plain JSON values, without empty ones and, if `trace` is False, without its trace."""
        out: dict[str, Any] = {}
        if self.action is not None:
            out["action"] = self.action.value
        for name in ("tags", "forward", "keep_copy", "reason", "hold", "pipeline", "version", "rewrite"):
            if value := getattr(self, name):
                out[name] = list(value) if isinstance(value, tuple) else value
        if then := self.denial if self.action is Action.DENY else self.then:
            out["then"] = then.value
        if self.score is not None:
            out["score"] = self.score
        if self.edits:
            out["edits"] = [_edit_to_json(edit) for edit in self.edits]
        if self.reply:
            out["reply"] = str(self.reply)
        if trace and self.trace:
            out["trace"] = [step.to_json() for step in self.trace]
        return out


@dataclass(frozen=True, slots=True)
class Deferral:
    """Nothing was decided; the recipient's pipeline is asked again later. `pipeline` and `version` as in a verdict.

    `why` is LATE when a worker had the task for the whole deadline, BROKE when a process ended or was killed at a limit
    while it had the message, '' for all else.
    """

    reason: str
    trace: tuple[StepRecord, ...] = ()
    pipeline: str = ""
    version: int = 0
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the deferral as plain JSON values, without empty ones."""
        out: dict[str, Any] = {"reason": self.reason}
        for name in ("pipeline", "version", "why"):
            if value := getattr(self, name):
                out[name] = value
        if self.trace:
            out["trace"] = [step.to_json() for step in self.trace]
        return out


PipelineResult = Verdict | Deferral


def merged(before: Verdict, later: Verdict) -> Verdict:
    """Return the later verdict with the tags and edits of the earlier one before its own, and the higher score."""
    tags = tuple(dict.fromkeys(before.tags + later.tags))[:MAX_TAGS]
    score = max((score for score in (before.score, later.score) if score is not None), default=None)
    edits, rewrite = before.edits + later.edits, before.rewrite or later.rewrite
    return replace(later, tags=tags, edits=edits, score=score, rewrite=rewrite)


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
    hold, (then, denial) = data.get("hold"), _then(str(data.get("then", "")), denied=action is Action.DENY)
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
    )


_AFTER_HOLD = {member.value: member for member in AfterHold}
_DENIALS = {member.value: member for member in Denial}


def _then(text: str, *, denied: bool) -> tuple[AfterHold, Denial]:
    """Return the meaning of the field "then". Raises ValueError for a word that has none.

    A word that the action does not have is left out: a DENY that a person released is a PASS with the "then" of a DENY.
    """
    after, denial = _AFTER_HOLD.get(text), _DENIALS.get(text)
    if after is None and denial is None:
        raise ValueError(f"then: {text!r} is none of {', '.join(filter(None, _AFTER_HOLD))}")
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
    )
)


def checked(verdict: Verdict, *, edits: int = MAX_EDITS) -> Verdict:
    """Return the verdict when all of it can be carried out. Raises ValueError with the part that cannot.

    Every verdict of a processor goes through here, because it ends up in SMTP commands, header fields and the journal.
    `edits` is how many header edits it may have; a pipeline's verdict has those of all its steps.
    """
    checked_tags(verdict.tags)
    if isinstance(verdict.forward, str) or len(verdict.forward) > MAX_FORWARD:
        raise ValueError(f"forward must be a list of at most {MAX_FORWARD} addresses")
    for address in verdict.forward:
        if not isinstance(address, str) or "@" not in address or not valid(address):
            raise ValueError(f"forward: {address!r} is no mail address")
    if verdict.action is Action.FORWARD and not verdict.forward:
        raise ValueError("action forward needs an address in forward")
    if verdict.reply is not None:
        _check_refusal(verdict.reply)
    if verdict.score is not None and not isfinite(verdict.score):
        raise ValueError(f"score {verdict.score!r} is no number")
    _check_hold(verdict)
    if verdict.rewrite:
        raise ValueError("rewrite: only the switch changes whose mail it is, when it forwards")
    if len(verdict.edits) > edits:
        raise ValueError(f"{len(verdict.edits)} header edits; at most {edits} are made")
    for edit in verdict.edits:
        _check_edit(edit)
    reason = storable(verdict.reason, MAX_REASON)
    return verdict if reason == verdict.reason else replace(verdict, reason=reason)


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


def parse_refusal(text: str) -> Reply:
    """Return a reply that refuses: 4xx or 5xx, but not 421, which would end the whole session. Raises ValueError."""
    reply = parse_reply(text)
    _check_refusal(reply)
    return reply


def _check_refusal(reply: Reply) -> None:
    if reply.positive or reply.code == 421:
        raise ValueError(f"{str(reply)!r} is no refusal; begin it with 4xx or 5xx, and not with 421")


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


def _edit_to_json(edit: Edit) -> dict[str, Any]:
    match edit:
        case AddHeader(name, value):
            return {"add": name, "value": value}
        case SetHeader(name, value):
            return {"set": name, "value": value}
        case RemoveHeader(name):
            return {"remove": name}
        case Cut(start, end, text):
            return {"cut": [start, end], "text": text}
    return {"mark_subject": edit.mark}


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
