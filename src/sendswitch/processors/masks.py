"""Secrets that are written out in a pipeline's text, hidden when it is shown."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import tomli_w

from sendswitch.processors import registry
from sendswitch.processors.base import MASK

# The password of a URL.
_PASSWORD = re.compile(r"(://[^/@\s\"':]*:)[^/@\s\"']+(?=@)")


def masked(text: str) -> str:
    """Return a pipeline's text with MASK in place of each secret. `{ file = … }` and `{ env = … }` stay as they are."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return f"# a text that is not TOML is not shown; it has {len(text)} characters\n"
    steps = [step for step in data.get("step", ()) if isinstance(step, dict)]
    found = [
        value for step in steps for name in _secret_options(step) if isinstance(value := step[name], str) and value
    ]
    if any(value not in text for value in found):  # it is written with escapes
        for step in steps:
            step.update({name: MASK for name in _secret_options(step) if isinstance(step[name], str)})
        text = tomli_w.dumps(data)
    for value in sorted(found, key=len, reverse=True):
        text = text.replace(value, MASK)
    return _PASSWORD.sub(rf"\1{MASK}", text)


def _secret_options(step: dict[str, Any]) -> list[str]:
    """Return the names of a step's options that are secrets."""
    try:
        secret = registry.find(str(step.get("use"))).Options.secret_names()
    except ValueError:  # the package is not installed any more: nobody knows which are secrets
        secret = [name for name in step if name not in ("use", "when")]
    return [name for name in secret if name in step]
