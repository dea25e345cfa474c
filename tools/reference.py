"""Write docs/reference from the code: configuration, processors, metrics, log events, commands.

`tools/reference.py` writes; a test in tests/house holds the pages to what this gives.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import typer

from sendswitch import logs, metrics
from sendswitch.cli.main import app
from sendswitch.config import reference
from sendswitch.config.pipeline import PipelineConfig, StepConfig
from sendswitch.processors import registry

MADE = "<!-- Made by tools/reference.py; change the code, then run `make reference`. -->\n\n"


def configuration() -> str:
    """Every key of sendswitch.toml."""
    return MADE + reference.page()


def processors() -> str:
    """Pipelines and every processor with its options."""
    text = MADE + "# Pipelines and processors\n\n## The file\n\n" + reference.table(PipelineConfig)
    text += "\n## Each `[[step]]`\n\n" + reference.table(StepConfig)
    for name in registry.names():
        kind = registry.find(name)
        text += f"\n## `{name}`\n\n{inspect.getdoc(kind)}\n"
        module = inspect.getmodule(kind)
        if name in ("lists", "python") and module is not None:
            text += "\n" + "\n\n".join((inspect.getdoc(module) or "").split("\n\n")[1:]) + "\n"
        if kind.Options.model_fields:
            text += "\n" + reference.table(kind.Options)
    return text


def observability() -> str:
    """Metrics and log events."""
    text = MADE + "# Metrics and log events\n\n## Metrics\n\nAt `/metrics` on the web port.\n\n"
    text += "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n"
    for metric in metrics.REGISTRY.collect():
        source = metrics.REGISTRY._names_to_collectors[metric.name]
        labels = ", ".join(source._labelnames)  # type: ignore[attr-defined]
        name = metric.name + ("_total" if metric.type == "counter" else "")
        text += f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |\n"
    text += "\n## Log events\n\nOne JSON object a line on standard error: `ts`, `level`, `event`, then:\n\n"
    text += "| event | keys | meaning |\n| --- | --- | --- |\n"
    for name, function in inspect.getmembers(logs, inspect.isfunction):
        if not name.startswith("_") and name not in ("setup", "flush") and function.__module__ == logs.__name__:
            keys = ", ".join(inspect.signature(function).parameters)
            text += f"| `{name}` | {keys} | {(inspect.getdoc(function) or '').splitlines()[0]} |\n"
    return text


def commands() -> str:
    """Every command with its arguments."""
    text = MADE + "# Commands\n\n`sendswitch [--config FILE] [--json] COMMAND`; both options may stand anywhere.\n"
    text += (
        "Exit codes: 0 done, 1 failed, 2 usage or wrong configuration, 3 not found, 4 refused, 75 try again later.\n\n"
    )
    text += "| command | what it does |\n| --- | --- |\n"
    group = typer.main.get_command(app)
    for line in _commands(group, "sendswitch"):
        text += line
    return text


def _commands(command: object, path: str) -> list[str]:
    inner = getattr(command, "commands", None)
    if inner:
        return [line for name in inner for line in _commands(inner[name], f"{path} {name}")]
    words = [path]
    for parameter in command.params:  # type: ignore[attr-defined]
        if parameter.param_type_name == "argument":
            words.append(parameter.name.upper())
        elif parameter.name != "help":
            words.append(f"[{parameter.opts[0]}]")
    help_ = (command.help or "").splitlines()[0]  # type: ignore[attr-defined]
    return [f"| `{' '.join(words)}` | {help_} |\n"]


PAGES = {
    "configuration.md": configuration,
    "processors.md": processors,
    "observability.md": observability,
    "commands.md": commands,
}


def main() -> None:
    """Write all pages."""
    folder = Path(__file__).resolve().parent.parent / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (folder / name).write_text(make())
    sys.stdout.write(f"{len(PAGES)} pages in {folder}\n")


if __name__ == "__main__":
    main()
