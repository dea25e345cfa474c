"""A task: one message offered to one recipient's pipeline. It is a value, so that it can go to another machine."""

from __future__ import annotations

from dataclasses import dataclass

from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Client, Recipient
from sendswitch.mail.verdict import PipelineResult


@dataclass(frozen=True, slots=True)
class Reference:
    """Content that stays where it is stored until a worker begins. `size` is in bytes; `digest` is its SHA-256, b"" for
    unknown."""

    message: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """The facts that a worker needs for a verdict.

    `sender` is the address of MAIL, '' for the null path, and `client` the client that handed the message in.
    `token` is random and the answer must repeat it, so that only the holder of a task can answer it. `content` is a
    reference where the content is not in memory, so that waiting tasks cost none. `digest` is the content's SHA-256,
    b"" for unknown. `pipeline` names the owner of the pipeline and `version` the version to run; `queue` is the
    broker's queue. `deadline` is the time (seconds) that a worker may have it. `attempt` counts offers, from 1. With
    `rehearsal` the answer has no effect.
    """

    message: int
    n: int
    token: str
    recipient: Recipient
    sender: str
    client: Client
    content: Content | Reference
    pipeline: str
    version: int
    queue: str
    deadline: float
    attempt: int = 1
    rehearsal: bool = False
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's answer to a task: the result of the pipeline, with what names the task."""

    message: int
    n: int
    token: str
    result: PipelineResult
