"""Processors by name. The built-in ones come in through the same door as any package's: the entry point group
`sendswitch.processors`, name = "module:Class"."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from sendswitch.config.environment import Path_
from sendswitch.config.load import line_of, parse, validate
from sendswitch.config.pipeline import PipelineConfig, StepConfig
from sendswitch.errors import InvalidConfiguration
from sendswitch.processors.base import Site, Step

GROUP = "sendswitch.processors"


@cache
def _known() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """All processors that are installed."""
    return sorted(_known())


def find(name: str) -> type[Step]:
    """The processor's class. Raises ValueError with the name that was probably meant."""
    point = _known().get(name)
    if point is None:
        close = difflib.get_close_matches(name, names(), 1, 0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"installed are: {', '.join(names())}"
        raise ValueError(f"no processor {name!r}; {hint}")
    found: type[Step] = point.load()
    return found


def make(step: StepConfig, site: Site = Site()) -> Step:  # noqa: B008 - a value that nobody changes
    """The processor of one step, at this site. Raises ValueError or InvalidConfiguration for bad options."""
    kind = find(step.use)
    made = kind(validate(kind.Options, step.options, step.use, {}))
    if (enter := getattr(made, "enter", None)) is not None:
        enter(site)
    return made


def check(text: str, name: str) -> PipelineConfig:
    """A pipeline from TOML text, every step's options included. Raises InvalidConfiguration with all problems."""
    data, lines = parse(text, name)
    config = validate(PipelineConfig, data, name, lines)
    problems: list[str] = []
    for n, step in enumerate(config.step):
        problems += _step_problems(n, step, name, lines)
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
    try:
        kind(validate(kind.Options, step.options, name, inside))
    except InvalidConfiguration as error:
        return [f"{problem} (step {n + 1}, {step.use})" for problem in error.problems]
    except ValueError as error:
        return [f"{name}:{inside[()]}: step {n + 1}, {step.use}: {error}"]
    return []
