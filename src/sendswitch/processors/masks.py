"""Secrets that are written out in a pipeline's text, hidden when it is shown."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import tomli_w

from sendswitch.config.units import MASK
from sendswitch.processors import registry

# The password of a URL.
_PASSWORD = re.compile(r"(://[^/@\s\"':]*:)[^/\s\"']+(?=@)")


def masked(text: str) -> str:
    """Return a pipeline's text with MASK in place of each secret. `{ file = … }` and `{ env = … }` stay as they are."""
    data = _read(text)
    if data is None:
        return f"# a text that is not TOML is not shown; it has {len(text)} characters\n"
    steps = [step for step in data.get("step", ()) if isinstance(step, dict)]
    found: list[str] = []
    for step in steps:
        for name in _secret_options(step):
            if isinstance(step[name], str) and step[name]:
                found.append(step[name])
                step[name] = MASK
    for value in sorted(found, key=len, reverse=True):
        text = text.replace(value, MASK)
    if _read(text) != data:  # a secret was written with escapes, or is a word that stands elsewhere too
        text = tomli_w.dumps(data)
    return _PASSWORD.sub(rf"\1{MASK}", text)


def _read(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _secret_options(step: dict[str, Any]) -> list[str]:
    """Return the names of a step's options that are secrets."""
    try:
        secret = registry.find(str(step.get("use"))).Options.secret_names()
    except ValueError:  # the package is not installed any more: nobody knows which are secrets
        secret = [name for name in step if name not in ("use", "when")]
    return [name for name in secret if name in step]
