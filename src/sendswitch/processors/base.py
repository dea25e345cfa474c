"""The processor: one step of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol, cast, get_args, runtime_checkable

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr

from sendswitch.mail.envelope import Client, Recipient
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict, parse_refusal
from sendswitch.mail.verdict_checks import checked_tags
from sendswitch.processors.hosting.threads import asking_names, reading
from sendswitch.processors.list_entries import KeptLists
from sendswitch.processors.services.payload import described
from sendswitch.smtp.endpoint import parse_endpoint


def _refusal(text: str) -> str:
    parse_refusal(text)
    return text


def _address(text: str) -> str:
    parse_endpoint(text)
    return text


def _tag(text: str) -> str:
    return checked_tags((text,))[0]


# Kinds of options: an SMTP reply that refuses, where a service is (host:port or unix:/path), and a tag.
Refusal = Annotated[str, AfterValidator(_refusal)]
Address = Annotated[str, AfterValidator(_address)]
Tag = Annotated[str, AfterValidator(_tag)]


class Options(BaseModel):
    """A processor's options: each declared once, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def secret_names(cls) -> list[str]:
        """Return the names of the options that hold a secret."""
        return [name for name, field in cls.model_fields.items() if _holds_secret(field.annotation)]


def _holds_secret(kind: Any) -> bool:
    return kind is SecretStr or any(map(_holds_secret, get_args(kind)))


@dataclass(frozen=True, slots=True)
class Context:
    """The facts that a step knows besides the message: the envelope for this one recipient, and earlier results.

    `sender` is '' for the null path. `tags` are those of earlier steps, `score` their highest score. `attempt` counts
    offers of this message to this pipeline, from 1. `now` is seconds since the epoch. `rehearsal` is True when the
    verdict has no effect (a try, a replay, a candidate): a step with effects of its own leaves them out then. The trace
    records the `notes` of a step. `broke` names the processes that ended or had to be killed while they had the
    message.
    """

    message: str
    recipient: Recipient
    sender: str
    client: Client
    now: float
    attempt: int = 1
    tags: tuple[str, ...] = ()
    rehearsal: bool = False
    score: float | None = None
    notes: list[str] = field(default_factory=list, compare=False)
    broke: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True, slots=True)
class Notice:
    """An event for a webhook: the request's body as it will be sent, and the secrets that sign it. The same `id` again
    is the same event."""

    id: str
    url: str
    recipient: str
    secrets: tuple[str, ...] = field(repr=False)
    message: str
    form: bool
    body: str = field(repr=False)


class NoticeSink(Protocol):
    """A store of events until they are sent."""

    async def put(self, notice: Notice) -> None:
        """Keep it, once; durable on return. Raises SpoolUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class AutoReply:
    """An automatic reply from `owner` to a sender, who gets no other within `again` seconds. `about` is the id of the
    message that it answers.
    """

    owner: str
    to: str
    data: bytes = field(repr=False)
    again: float
    about: str


class AutoReplySender(Protocol):
    """The sender of automatic replies, from the null sender."""

    async def send(self, reply: AutoReply) -> bool:
        """Send a reply. Return False when that sender had one already. Durable on return. Raises SpoolUnavailable."""
        ...


class Counters(Protocol):
    """The counts of a site's steps, which several worker processes share."""

    async def within_limit(self, place: str, who: str, message: str, most: int, period: float, now: float) -> bool:
        """Count a message and return True when `most` in `period` seconds allow it; a message is counted once.

        `place` names the step whose count it is. Raises Temporary.
        """
        ...


# The built-in steps that read content.
READING = frozenset(("attachment", "auth", "sieve"))


@runtime_checkable
class Reads(Protocol):
    """A step that reads a message's content, which can take long or much memory for a message that means it no good.

    `use` is the step's name; `waits_for_names` is whether `read` mostly waits for the DNS.
    """

    use: ClassVar[str]
    waits_for_names: ClassVar[bool]

    def options_json(self) -> Mapping[str, Any]:
        """Return the options that a step like this one is made from."""
        ...

    def read(self, mail: Mail, context: Context) -> Any:
        """Return the facts that the step needs from the content, as plain JSON values. Blocks; for a `Readers`."""
        ...


class Readers(Protocol):
    """Readers of content outside the event loop."""

    async def read(self, step: Reads, mail: Mail, context: Context) -> Any:
        """Return the result of the step's `read`. Raises Temporary, and the errors of `read`."""
        ...

    async def findings(self, mail: Mail, context: Context) -> None:
        """Have the message know its findings."""
        ...

    async def described(self, mail: Mail, context: Context, *, thin: bool) -> dict[str, Any]:
        """Return the message as `processors.services.payload` describes it."""
        ...

    def close(self) -> None:
        """End the readers. Blocks."""
        ...


class InThreads:
    """Readers in threads of this process: for a command, which a person can stop."""

    async def read(self, step: Reads, mail: Mail, context: Context) -> Any:
        """Return the result of the step's `read`. Raises its errors."""
        run = asking_names if step.waits_for_names else reading
        return await run(step.read, mail, context)

    async def findings(self, mail: Mail, context: Context) -> None:
        """Have the message know its findings."""
        await reading(lambda: mail.findings)

    async def described(self, mail: Mail, context: Context, *, thin: bool) -> dict[str, Any]:
        """Return the message as data."""
        return await reading(described, mail, context, thin=thin)

    def close(self) -> None:
        """Do nothing: nothing is held."""


@dataclass(frozen=True, slots=True)
class Services:
    """The services of a site that steps may use.

    `host` is our name. `allow` are hosts, addresses and networks that are not public and may be asked all the same.
    `lists` are the kept allow and deny lists. `outbox` takes events and `auto_replies` automatic replies; both are None
    where no node runs. `readers` read content. `counters` count for all workers of the node; None where only this
    process counts. `sandbox` says that user code must run in one. `place` names the step among all steps. A step that
    has a method `setup(services)` gets them once, after it was made.
    """

    host: str = ""
    allow: tuple[str, ...] = ()
    lists: KeptLists = field(default_factory=KeptLists)
    outbox: NoticeSink | None = None
    auto_replies: AutoReplySender | None = None
    readers: Readers = field(default_factory=InThreads)
    counters: Counters | None = None
    sandbox: bool = False
    place: str = ""


class Step(Protocol):
    """The common part of all steps: made once per pipeline version from its options, used for many messages at once.

    Its methods may raise anything and may be cancelled at the time limit; the pipeline's `on_error` decides about
    failures, not the step. They must not block the event loop. A message may come twice.

    A step that holds something, such as connections, closes it in `async def close(self)`.
    """

    Options: ClassVar[type[Options]]
    version: str

    def __init__(self, options: Any) -> None:
        """Check the options. Raises ValueError when they cannot work together."""
        ...


async def close(step: Step) -> None:
    """Call the `close` of a step that has one."""
    if (give_up := getattr(step, "close", None)) is not None:
        await give_up()


@runtime_checkable
class Processor(Step, Protocol):
    """A step that finds its opinion itself.

    Contract: `process` answers with a verdict that has an action (the pipeline ends), a verdict without one (its
    tags and edits are added) or None (no opinion).

    A class may say `waits = False`: its `process` never waits for anything, so no time limit need be kept for it,
    which is dearer than most such steps.
    """

    async def process(self, mail: Mail, context: Context) -> Verdict | None:
        """Return the opinion on one message for one recipient."""
        ...


@runtime_checkable
class ServiceStep(Step, Protocol):
    """A step that asks a service, whose answer may be another one tomorrow.

    The answer is recorded with the trace. A replay does not ask again: it evaluates the recorded answer, with the
    options of the pipeline that is tried.
    """

    async def query(self, mail: Mail, context: Context) -> Mapping[str, Any]:
        """Return the service's answer as plain JSON, with all that `evaluate` needs."""
        ...

    def evaluate(self, answer: Mapping[str, Any], mail: Mail, context: Context) -> Verdict | None:
        """Return the opinion that follows from an answer, as of `Processor.process`."""
        ...


class _Renamed:
    """A package's service step with the names of before version 0.2: `ask` and `judge`."""

    def __init__(self, step: Any) -> None:
        self.query, self.evaluate = step.ask, step.judge
        self.Options, self.version = step.Options, step.version
        self.close = getattr(step, "close", None)


def with_present_names(step: Step) -> Step:
    """Return a step under its present names. Steps that have `ask` and `judge` work for one more release."""
    if hasattr(step, "ask") and hasattr(step, "judge") and not isinstance(step, ServiceStep):
        return cast(Step, _Renamed(step))
    return step
