"""The answer of a pipeline: an action with tags, and the trace of its steps.

A verdict is made by processors, merged by the chain, stored in the spool and quoted in the journal, so it turns
into plain JSON and back without loss. `Deferral` is the other answer: nothing was decided, ask again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sendswitch.mail.edits import AddHeader, Cut, Edit, RemoveHeader, SetHeader
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
LATE, BROKE, LOST = "late", "broke", "lost"
OFFLINE, BUSY, UNOFFERED, UNANSWERED = "offline", "busy", "unoffered", "unanswered"


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
    forwarded mail that leaves with a sender of ours (`mail.srs`). A `worker` of the user's own sets its name and, if it
    has a pipeline of its own, the digest of that `file`.

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
    worker: str = ""
    file: str = ""

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
        for name in _PLAIN:
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

    `why` is one of these, or '' for all else. LATE: a worker had the task for the whole deadline. BROKE: a process
    ended or was killed at a limit while it had the message. LOST: the worker that had it is gone. OFFLINE: no worker
    was there. BUSY: too much mail waits for workers of users. UNOFFERED: the broker did not take it. UNANSWERED: a
    worker of the user's own had it and decided nothing. `worker` and `file` are as in a verdict.
    """

    reason: str
    trace: tuple[StepRecord, ...] = ()
    pipeline: str = ""
    version: int = 0
    why: str = ""
    worker: str = ""
    file: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the deferral as plain JSON values, without empty ones."""
        out: dict[str, Any] = {"reason": self.reason}
        for name in ("pipeline", "version", "why", "worker", "file"):
            if value := getattr(self, name):
                out[name] = value
        if self.trace:
            out["trace"] = [step.to_json() for step in self.trace]
        return out


PipelineResult = Verdict | Deferral

_PLAIN = ("tags", "forward", "keep_copy", "reason", "hold", "pipeline", "version", "rewrite", "worker", "file")


def merged(before: Verdict, later: Verdict) -> Verdict:
    """Return the later verdict with the tags and edits of the earlier one before its own, and the higher score."""
    tags = tuple(dict.fromkeys(before.tags + later.tags))[:MAX_TAGS]
    score = max((score for score in (before.score, later.score) if score is not None), default=None)
    edits, rewrite = before.edits + later.edits, before.rewrite or later.rewrite
    return replace(later, tags=tags, edits=edits, score=score, rewrite=rewrite)


def parse_refusal(text: str) -> Reply:
    """Return a reply that refuses: 4xx or 5xx, but not 421, which would end the whole session. Raises ValueError."""
    reply = parse_reply(text)
    check_refusal(reply)
    return reply


def check_refusal(reply: Reply) -> None:
    """Raise ValueError when a reply does not refuse, or would end the whole session."""
    if reply.positive or reply.code == 421:
        raise ValueError(f"{str(reply)!r} is no refusal; begin it with 4xx or 5xx, and not with 421")


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
