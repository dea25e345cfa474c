"""Processors by name. The built-in ones come in through the same door as any package's: the entry point group
`sendswitch.processors`, name = "module:Class"."""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from sendswitch.conditions.pipeline import PipelineConfig, StepConfig
from sendswitch.config.environment import Path_
from sendswitch.config.load import line_of, parse, validate
from sendswitch.config.units import MASK
from sendswitch.errors import InvalidConfiguration
from sendswitch.processors.base import Services, Step
from sendswitch.processors.hosting import sandbox
from sendswitch.processors.hosting.hosted import Hosted

GROUP = "sendswitch.processors"
# The steps of ours that run what a user wrote.
USER_CODE = ("exec", "python")


@cache
def _known() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _ours(point: EntryPoint) -> bool:
    return point.value.startswith("sendswitch.")


def names() -> list[str]:
    """Return all processors that are installed."""
    return sorted(_known())


def package(name: str) -> str:
    """Return the package that brings a processor, with its version."""
    point = _known()[name]
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""


def find(name: str) -> type[Step]:
    """Return the processor's class.

    Raises ValueError with the name that was probably meant, or why it cannot be loaded.
    """
    point = _known().get(name)
    if point is None:
        close = difflib.get_close_matches(name, names(), 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"installed are: {', '.join(names())}"
        raise ValueError(f"no processor {name!r}; {hint}")
    try:
        found: type[Step] = point.load()
    except Exception as error:  # whatever a package does when it is imported
        raise ValueError(f"{name} of {package(name)} cannot be loaded: {type(error).__name__}: {error}") from error
    return found


def _no_sandbox(name: str) -> str:
    """Return why a step cannot run in a sandbox, '' where it can as far as is known here."""
    point = _known().get(name)
    if point is not None and _ours(point) and name not in USER_CODE:
        return "this step runs no user code; only python, exec and steps from packages do"
    return "" if sandbox.installed() else sandbox.MISSING


def make(step: StepConfig, services: Services = Services()) -> Step:  # noqa: B008 - a value that nobody changes
    """Return the processor of one step with the site's services. A package's runs in a process of its own.

    Raises ValueError or InvalidConfiguration for bad options.
    """
    point = _known().get(step.use)
    made: Step
    if point is not None and not _ours(point):
        made = Hosted(step.use, point.module, point.dist.version if point.dist else "", step.options)
    else:
        kind = find(step.use)
        made = kind(validate(kind.Options, step.options, step.use, {}))
    if step.sandbox is not None:
        services = replace(services, sandbox=True)
    if (setup := getattr(made, "setup", None)) is not None:
        setup(services)
    return made


def check(text: str, name: str, deadline: float | None = None) -> PipelineConfig:
    """Return a pipeline from TOML text, every step's options checked. Raises InvalidConfiguration with all problems.

    `deadline` (seconds) is that of pipelines without one; with it the steps' limits are checked, too, as they are when
    a pipeline is saved. One that was saved before goes on as it is.
    """
    data, lines = parse(text, name)
    config = validate(PipelineConfig, data, name, lines)
    problems: list[str] = []
    for n, step in enumerate(config.step):
        problems += _step_problems(n, step, name, lines)
        most = config.deadline or deadline
        if deadline is not None and most is not None and step.limit is not None and step.limit > most:
            at = line_of(("step", n, "limit"), lines)
            problems.append(
                f"{name}:{at}: limit: {step.limit:g} s is above the pipeline's deadline of {most:g} s, so it would"
                f" never be reached; raise `deadline` (step {n + 1}, {step.use})"
            )
    if problems:
        raise InvalidConfiguration(problems)
    return config


def _step_problems(n: int, step: StepConfig, name: str, lines: dict[Path_, int]) -> list[str]:
    try:
        kind = find(step.use)
    except ValueError as error:
        return [f"{name}:{line_of(('step', n, 'use'), lines)}: {error}"]
    inside = {path[2:]: line for path, line in lines.items() if path[:2] == ("step", n)}
    inside.setdefault((), line_of(("step", n), lines) or 0)
    if step.sandbox is not None and (problem := _no_sandbox(step.use)):
        return [f"{name}:{line_of(('sandbox',), inside)}: sandbox: {problem} (step {n + 1}, {step.use})"]
    masked = [option for option in kind.Options.secret_names() if step.options.get(option) == MASK]
    if masked:
        hint = "it was hidden when the pipeline was shown; write the secret itself, or export with --secrets"
        return [f"{name}:{line_of((masked[0],), inside)}: {masked[0]}: {hint} (step {n + 1}, {step.use})"]
    try:
        kind(validate(kind.Options, step.options, name, inside))
    except InvalidConfiguration as error:
        return [f"{problem} (step {n + 1}, {step.use})" for problem in error.problems]
    except ValueError as error:
        return [f"{name}:{inside[()]}: step {n + 1}, {step.use}: {error}"]
    return []
