"""A user's pipeline as TOML: its deadlines and its steps. Each processor defines the options of its steps.

deadline = "60s"
on_timeout = "defer"
deny = "bounce"

[[step]]
use = "lists"
deny = ["*@spam.example"]
"""

from __future__ import annotations

import zlib
from dataclasses import astuple, dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sendswitch.conditions.condition import Condition
from sendswitch.config.load import parse, validate
from sendswitch.config.units import Duration
from sendswitch.errors import InvalidConfiguration


def _condition(text: str) -> str:
    if text:
        Condition(text)
    return text


# The built-in steps that cost little for any mail: they look at envelope and header, in linear time, and never wait.
LIGHT = frozenset(
    ("deny", "delay", "forward", "headers", "hold", "lists", "pass", "quarantine", "rate", "subject", "tag")
)

# The built-in steps that have the site do something: keep an event, or send a reply.
NEED_THE_SITE = frozenset(("notify", "reply"))

OnError = Literal["skip", "defer", "deny", "hold"]


class StepConfig(BaseModel):
    """One step. Every other key is an option of the processor."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str = Field(description="The processor's name.")
    on_error: OnError = Field("defer", description="What a failure or a timeout of this step means.")
    limit: Duration | None = Field(None, gt=0, description="Time for this step; default pipelines.limit.")
    when: Annotated[str, AfterValidator(_condition)] = Field(
        "", description="Only mail for which this holds, such as 'tag:SPAM and size > 1MB'; the others pass it by."
    )
    shadow: bool = Field(False, description="Ask this step and record what it says, but do nothing about it.")
    sandbox: Literal["bwrap"] | None = Field(
        None,
        description="Run the user code of this step in a sandbox, also where pipelines.sandbox does not ask for it.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Return the options for the processor."""
        return dict(self.model_extra or {})


class PipelineConfig(BaseModel):
    """A whole pipeline. None means the value of the configuration's [pipelines] section."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline: Duration | None = Field(None, gt=0, description="Time that a worker may take for a verdict.")
    on_timeout: Literal["defer", "pass", "deny", "hold", "quarantine"] | None = Field(None, description="What then.")
    deny: Literal["bounce", "discard", "quarantine"] | None = Field(
        None, description="What DENY means after the queue."
    )
    step: tuple[StepConfig, ...] = Field((), max_length=100, description="The steps, in order.")

    @property
    def light(self) -> bool:
        """Return whether every step costs little for any mail, so that the node may run it by itself."""
        return all(step.use in LIGHT and not (step.when and Condition(step.when).reads_content) for step in self.step)

    @property
    def summary(self) -> Summary:
        """Return what a node must know of it before mail for it comes."""
        return Summary(self.light, self.deadline, self.on_timeout, self.deny)


# The rules by which summaries are made. Change the first number when `light` or the fields of a summary mean something
# else; a summary made by other rules is made again.
RULES = f"1.{zlib.crc32(' '.join(sorted(LIGHT)).encode()):08x}"


@dataclass(frozen=True, slots=True)
class Summary:
    """The part of a pipeline that a node must know before mail comes. None means what it means in the pipeline."""

    light: bool = True
    deadline: float | None = None
    on_timeout: str | None = None
    deny: str | None = None

    def to_text(self) -> str:
        """Return it as text, with the rules that it was made by."""
        return orjson.dumps((RULES, *astuple(self))).decode()


def summary_from(text: str) -> Summary | None:
    """Return the summary that a text has; None when it was made by other rules."""
    if not text.startswith(f'["{RULES}",'):
        return None
    return Summary(*orjson.loads(text)[1:])


def read_pipeline(text: str, name: str) -> PipelineConfig:
    """Return a stored pipeline. Raises InvalidConfiguration."""
    data, lines = parse(text, name)
    return validate(PipelineConfig, data, name, lines)


def check_own(pipeline: PipelineConfig, name: str) -> None:
    """Raise InvalidConfiguration for a pipeline with steps that cannot run on a worker of a user's own."""
    problems = [
        f"{name}: step {n}, {step.use}, cannot run on a worker of a user's own: it needs the site"
        for n, step in enumerate(pipeline.step, 1)
        if step.use in NEED_THE_SITE
    ]
    if problems:
        raise InvalidConfiguration(problems)
