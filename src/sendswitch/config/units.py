"""Durations and sizes as people write them: '30s', '7d', '25MB'. Seconds and bytes inside, so no name has a unit."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr

from sendswitch.errors import in_words

_DURATION = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z")


def duration(value: Any) -> float:
    """Return seconds from '1.5h' or a number. Raises ValueError that lists the units."""
    return _read(value, _DURATION, "s", "a duration like '30s', '5m', '2h' or '7d'")


def size(value: Any) -> int:
    """Return bytes from '25MB' or a number. Raises ValueError that lists the units."""
    return int(_read(value, _SIZE, "b", "a size like '256KiB' or '25MB'"))


def _read(value: Any, units: dict[str, Any], default: str, what: str) -> float:
    if isinstance(value, bool):
        raise ValueError(f"expected {what}")
    if isinstance(value, int | float):
        return _finite(value, what)
    found = _NUMBER.match(value) if isinstance(value, str) else None
    if not found or (found[2] or default).lower() not in units:
        raise ValueError(f"{value!r} is not {what}")
    return _finite(float(found[1]) * float(units[(found[2] or default).lower()]), what)


def _finite(value: float, what: str) -> float:
    try:
        wanted = float(value)
    except OverflowError:  # a whole number of TOML may have any size
        wanted = inf
    if not isfinite(wanted):
        raise ValueError(f"it has no end; expected {what}")
    return wanted


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
}
_COMPARISON = re.compile(r"\s*(>=|<=|>|<|=)\s*(-?\d{1,9}(?:\.\d{1,9})?)\Z")


def comparison(value: str) -> tuple[str, float]:
    """Return '>=' and 5.0 from '>=5', to be looked up in COMPARE. Raises ValueError that shows one."""
    found = _COMPARISON.match(value)
    if found is None:
        raise ValueError(f"{value!r} is no comparison with a number like '>5' or '<=2.5'")
    return found[1], float(found[2])


Duration = Annotated[float, BeforeValidator(duration), Field(ge=0)]
Size = Annotated[int, BeforeValidator(size), Field(ge=0)]


def secret(value: Any) -> Any:
    """Return the text of a secret, given as it is, or as {file = "path"} or {env = "NAME"}. Raises ValueError."""
    match value:
        case {"file": str(path), **rest} if not rest:
            try:
                return Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"the file {path} cannot be read: {in_words(error)}") from error
        case {"env": str(name), **rest} if not rest:
            if name not in os.environ:
                raise ValueError(f"the environment has no {name}")
            return os.environ[name]
        case dict():
            raise ValueError('write the secret itself, {file = "/path"} or {env = "NAME"}')
    return value


# Where a secret is shown, this stands instead.
MASK = "(secret)"

Secret = Annotated[SecretStr, BeforeValidator(secret)]
