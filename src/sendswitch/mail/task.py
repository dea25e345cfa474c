"""A task: one message offered to one recipient's pipeline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sendswitch.mail.content import Content
from sendswitch.mail.envelope import Envelope, Recipient


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """The facts that a worker needs for a verdict.

    `token` is random and the answer must repeat it, so that only the holder of a task can answer it. `load` returns the
    content; a worker calls it when it begins, so that waiting tasks cost no memory. `digest` is the content's, b"" for
    unknown. `pipeline` names the owner of the pipeline and `version` the version to run; `queue` is the broker's queue.
    `deadline` is the time (seconds) that a worker may have it. `attempt` counts offers, from 1. With `rehearsal` the
    answer has no effect.
    """

    message: int
    n: int
    token: str
    recipient: Recipient
    envelope: Envelope
    load: Callable[[], Awaitable[Content]]
    pipeline: str
    version: int
    queue: str
    deadline: float
    attempt: int = 1
    rehearsal: bool = False
    digest: bytes = b""
