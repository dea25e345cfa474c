"""Every setting from the model: as a reference page, as a sample file, and as it is in force."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w
from pydantic import BaseModel, SecretStr

from sendswitch.config.environment import PREFIX, Path_, inner_model
from sendswitch.config.model import Config
from sendswitch.config.units import MASK

# Tables that may be there more than once.
ARRAYS = ("listener",)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Return each table of the file with its model."""
    for name in Config.model_fields:
        model = inner_model(Config, name)
        assert model is not None
        yield name, model


def header(name: str) -> str:
    """Return a table's header as TOML."""
    return f"[[{name}]]" if name in ARRAYS else f"[{name}]"


HEAD = f"""# Configuration

Every key has a default, so an empty file works. Durations are written `30s`, `5m`, `2h`, `7d` or as seconds; sizes
`256KiB`, `25MB` or as bytes. Defaults below are in seconds and bytes.

SendSwitch reads `sendswitch.toml`, then `conf.d/*.toml` beside it in name order, then the environment:
`{PREFIX}SECTION__KEY`, or `{PREFIX}SECTION__KEY_FILE` for what stands in a file; a listener by its number,
`{PREFIX}LISTENER__0__BIND`. Later values override earlier ones; an array of tables as a whole.
`sendswitch config show --origin` tells where each value came from.
"""


def page() -> str:
    """Return the reference as Markdown."""
    text = HEAD
    for name, model in sections():
        text += f"\n## `{header(name)}`\n\n{inspect.getdoc(model)}\n\n{table(model)}"
    return text


def table(model: type[BaseModel]) -> str:
    """Return a model's keys as a Markdown table."""
    rows = [
        f"| `{name}` | `{default(name, field)}` | {(field.description or '').replace('|', chr(92) + '|')} |"
        for name, field in model.model_fields.items()
    ]
    return "| key | default | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def default(name: str, field: Any) -> str:
    """Return a key's default in words."""
    if name == "host":
        return "this machine's name"
    if field.is_required():
        return "(must be given)"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else written(value)


def written(value: Any) -> str:
    """Return a value as TOML with secrets masked."""
    if isinstance(value, SecretStr):
        return written(MASK if value.get_secret_value() else "")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)} = {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:g}"
    if isinstance(value, int):
        return str(value)
    return tomli_w.dumps({"x": str(value)}).removeprefix("x = ").rstrip()


def sample() -> str:
    """Return a file with every key in a comment, its default and its meaning."""
    text = "# SendSwitch. Every key has a default; take the # away from what you change.\n"
    for name, model in sections():
        text += f"\n# {inspect.getdoc(model)}\n{header(name)}\n"
        for key, field in model.model_fields.items():
            value = default(key, field)
            shown = '""' if value in ("none", "this machine's name") else value
            text += f"# {field.description}\n#{key} = {shown}\n"
    return text


def rows(config: Config, origins: Mapping[Path_, str]) -> list[dict[str, str]]:
    """Return every setting in force: key, value with secrets masked, and origin."""
    found = []
    for name, _ in sections():
        held = getattr(config, name)
        for n, one in enumerate(held) if isinstance(held, tuple) else [(None, held)]:
            at: Path_ = (name,) if n is None else (name, n)
            for key in type(one).model_fields:
                path = (*at, key)
                # Of a list or a table the parts may have come from several places; the first is told.
                came = next((place for known, place in origins.items() if known[: len(path)] == path), "default")
                found.append(
                    {
                        "key": ".".join(map(str, path)),
                        "value": written(getattr(one, key)) if getattr(one, key) is not None else "none",
                        "origin": came,
                    }
                )
    return found
