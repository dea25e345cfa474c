"""Tasks and answers as bytes, for every broker that leaves the process.

A task is one line of JSON and then its content, unchanged; an answer is JSON. A task names no other recipient of its
message. Each `decode_` is the inverse of its `encode_`, and takes bytes from anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from math import isfinite
from typing import Any, TypeVar

import orjson

from sendswitch.mail.content import Content, InMemory
from sendswitch.mail.envelope import Recipient, client_from_json, client_to_json
from sendswitch.mail.task import Answer, Reference, Task
from sendswitch.mail.text import storable
from sendswitch.mail.verdict import MAX_EDITS, MAX_REASON, Deferral, StepRecord
from sendswitch.mail.verdict_checks import checked
from sendswitch.mail.verdict_json import deferral_from_json, verdict_from_json

# The format. A worker that is older than its node refuses what it cannot read.
FORMAT = 1
# Most bytes of an answer: of a worker of a user's own, and of one of the site. The answer of a service has at most
# 256 KiB, and a program may add 1 MiB of header fields.
MAX_OUTSIDE, MAX_ANSWER = 4 * 1024 * 1024, 32 * 1024 * 1024
# Most steps of a pipeline, and header edits of all of them.
STEPS = 100
EDITS = STEPS * MAX_EDITS

_T = TypeVar("_T", int, float, str, bool, dict[str, Any])


def encode_task(task: Task) -> bytes:
    """Return a task as bytes. Raises ValueError when its content is neither in memory nor a reference."""
    content = task.content
    data: dict[str, Any] = {
        "format": FORMAT,
        "message": task.message,
        "n": task.n,
        "token": task.token,
        "recipient": asdict(task.recipient),
        "sender": task.sender,
        "client": client_to_json(task.client),
        "pipeline": task.pipeline,
        "version": task.version,
        "queue": task.queue,
        "deadline": float(task.deadline),
        "attempt": task.attempt,
        "rehearsal": task.rehearsal,
        "digest": task.digest.hex(),
        "size": content.size,
        "reference": isinstance(content, Reference),
    }
    if isinstance(content, Reference):
        return orjson.dumps(data) + b"\n"
    if (whole := content.whole()) is None:
        raise ValueError("content in a file goes by reference")
    return orjson.dumps(data) + b"\n" + whole


def decode_task(data: bytes) -> Task:
    """Return the task that `encode_task` encoded. Raises ValueError."""
    line, _, rest = data.partition(b"\n")
    told = _object(line, "a task")
    if told.get("format") != FORMAT:
        raise ValueError(f"a task of format {told.get('format')!r}; this version reads {FORMAT}")
    message, size = _get(told, "message", int), _get(told, "size", int)
    digest = bytes.fromhex(_get(told, "digest", str))
    content: Content | Reference
    if _get(told, "reference", bool):
        content = Reference(message, size, digest)
    else:
        content = InMemory(rest)
        if size != len(rest):
            raise ValueError(f"a task with {len(rest)} bytes of content instead of {size}")
    recipient = _get(told, "recipient", dict)
    return Task(
        message=message,
        n=_get(told, "n", int),
        token=_get(told, "token", str),
        recipient=Recipient(*(_get(recipient, name, str) for name in ("address", "notify", "orcpt"))),
        sender=_get(told, "sender", str),
        client=client_from_json(_get(told, "client", dict)),
        content=content,
        pipeline=_get(told, "pipeline", str),
        version=_get(told, "version", int),
        queue=_get(told, "queue", str),
        deadline=_get(told, "deadline", float),
        attempt=_get(told, "attempt", int),
        rehearsal=_get(told, "rehearsal", bool),
        digest=digest,
    )


def encode_answer(answer: Answer, most: int = MAX_ANSWER) -> bytes:
    """Return an answer as at most `most` bytes. One that is too large goes without what services said in its trace, or,
    if it is too large even then, as a deferral that says so. Raises ValueError for text that is no Unicode.
    """
    data = _encoded(answer)
    if len(data) > most:
        brief = tuple(replace(step, answer=None) for step in answer.result.trace)
        data = _encoded(replace(answer, result=replace(answer.result, trace=brief)))
    if len(data) > most:
        reason = f"the pipeline's answer has {len(data)} bytes; at most {most} can be sent"
        data = _encoded(replace(answer, result=Deferral(reason)))
    return data


def _encoded(answer: Answer) -> bytes:
    kind = "deferral" if isinstance(answer.result, Deferral) else "verdict"
    data = {"message": answer.message, "n": answer.n, "token": answer.token, kind: answer.result.to_json()}
    return orjson.dumps(data)


def decode_answer(data: bytes, *, outside: bool = True) -> Answer:
    """Return the answer that `encode_answer` encoded. Raises ValueError when it is malformed or cannot be carried out.

    An answer from a worker of a user's own is `outside`: it may do only what the verdict of a user's program may
    (`mail.verdict_json`).
    """
    if len(data) > (most := MAX_OUTSIDE if outside else MAX_ANSWER):
        raise ValueError(f"an answer of {len(data)} bytes; at most {most} are read")
    told = _object(data, "an answer")
    names = _get(told, "message", int), _get(told, "n", int), _get(told, "token", str)
    try:
        if "deferral" in told:
            deferral = deferral_from_json(_get(told, "deferral", dict))
            return Answer(*names, replace(deferral, trace=_checked_trace(deferral.trace)))
        verdict = verdict_from_json(_get(told, "verdict", dict), outside=outside)
        if verdict.action is None:
            raise ValueError("a pipeline's verdict has an action")
        return Answer(*names, replace(checked(verdict, edits=EDITS), trace=_checked_trace(verdict.trace)))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"an answer that is none: {error}") from error


def _checked_trace(trace: tuple[StepRecord, ...]) -> tuple[StepRecord, ...]:
    """Return a trace that every database can keep. Raises ValueError."""
    if len(trace) > STEPS:
        raise ValueError(f"{len(trace)} steps; a pipeline has at most {STEPS}")
    for step in trace:
        if not isfinite(step.seconds) or (step.answer is not None and not isinstance(step.answer, Mapping)):
            raise ValueError(f"a step with the time {step.seconds!r} or an answer that is no object")
    return tuple(
        replace(
            step,
            processor=storable(step.processor, MAX_REASON),
            version=storable(step.version, MAX_REASON),
            outcome=storable(step.outcome, MAX_REASON),
            saw=storable(step.saw, MAX_REASON),
        )
        for step in trace
    )


def _object(data: bytes, what: str) -> dict[str, Any]:
    found = orjson.loads(data)  # its error is a ValueError
    if not isinstance(found, dict):
        raise ValueError(f"{what} is a JSON object")
    return found


def _get(told: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """Return a field of this very type. Raises ValueError."""
    value = told.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name}: {value!r:.100} is no {kind.__name__}")
    return value
