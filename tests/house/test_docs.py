"""Docs against code: generated pages are up to date, links lead somewhere, examples work, nothing names a machine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer

from sendswitch import metrics
from sendswitch.cli.main import app
from sendswitch.config.load import load
from sendswitch.config.model import Config
from sendswitch.db.connect import HEAD
from sendswitch.processors import registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_gives() -> None:
    for name, make in _script("reference").PAGES.items():
        assert (ROOT / "docs" / "reference" / name).read_text() == make(), f"{name}: run `make reference`"


def test_summaries_of_commands_are_whole_in_80_columns() -> None:
    groups = [typer.main.get_command(app)]
    while groups:
        commands = getattr(groups.pop(), "commands", {})
        room = 80 - 6 - max(map(len, commands), default=0)
        for name, command in commands.items():
            assert not command.get_short_help_str(room).endswith("..."), name
            groups.append(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readmes_configuration_is_the_default(tmp_path: Path) -> None:
    block = re.findall(r"```toml\n(\[node\].*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    file = tmp_path / "readme.toml"
    file.write_text(block)
    assert load(file) == Config()


def test_the_readmes_pipeline_and_program_are_valid(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    program = re.findall(r"```python\n(.*?)```", text, re.S)[0]
    (tmp_path / "filter.py").write_text(program)
    pipeline = re.findall(r"```toml\n(# joe.toml.*?)```", text, re.S)[0]
    checked = registry.check(pipeline.replace("/home/joe/filter.py", str(tmp_path / "filter.py")), "joe.toml")
    assert [step.use for step in checked.step] == ["lists", "python"]


def test_make_targets_that_docs_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z]+)", page.read_text()):
            assert target in targets, f"{page.name}: make {target}"


def test_every_processor_is_described() -> None:
    text = (ROOT / "docs" / "reference" / "processors.md").read_text()
    assert all(f"## `{name}`" in text for name in registry.names())


def test_the_newest_migration_is_the_one_the_code_asks_for() -> None:
    versions = sorted((ROOT / "src/sendswitch/db/migrations/versions").glob("[0-9]*.py"))
    assert versions[-1].name.startswith(HEAD)


def test_locks_name_no_index_and_pin_everything() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "://" not in text
        for line in text.splitlines():
            if line and not line.startswith((" ", "#")):
                assert "==" in line
        assert text.count("--hash=sha256:") >= text.count("==")


def test_no_path_of_a_machine_in_the_project() -> None:
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()} | {".git"}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in made)]
        for path in (Path(folder) / name for name in files):
            if path.suffix in (".py", ".md", ".toml", ".lock", "") and not any(fnmatch(path.name, p) for p in made):
                assert str(ROOT) + "/" not in path.read_text(errors="replace"), path


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_board_and_alerts_name_metrics_that_are_there() -> None:
    known: set[str] = set()
    for metric in metrics.REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        known |= {metric.name + suffix for suffix in suffixes}
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    assert board == _script("board").board(), "run tools/board.py"
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = re.findall(r"expr: (.*)", (ROOT / "deploy" / "alerts.yml").read_text())
    assert len(rules) >= 8
    for query in queries + rules:
        named = set(re.findall(r"sendswitch_[a-z_]+", query))
        assert named, query
        assert named <= known, query


def test_every_alert_says_what_to_do() -> None:
    text = (ROOT / "deploy" / "alerts.yml").read_text()
    assert text.count("- alert:") == text.count("action:") == text.count("summary:") == text.count("expr:")


def test_commands_in_docs_exist() -> None:
    """Each `sendswitch …` in a page or in an alert names a command that is there."""
    from typer.main import get_command

    from sendswitch.cli.main import app

    pages = [*PAGES, ROOT / "deploy" / "alerts.yml"]
    for page in pages:
        for line in re.findall(r"(?:`|\$ )sendswitch ([a-z][^`\n]*)", page.read_text()):
            words = [word for word in line.split() if not word.startswith("-")]
            command: Any = get_command(app)
            while words and hasattr(command, "commands") and words[0].split("|")[0] in command.commands:
                command = command.commands[words.pop(0).split("|")[0]]
            assert not hasattr(command, "commands") or not words or words[0] in ("…", "COMMAND"), f"{page.name}: {line}"
            for option in re.findall(r"(?<!\S)--([a-z-]+)", line):
                names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
                assert f"--{option}" in names or option in ("json", "config", "help"), f"{page.name}: {line}"


def test_the_list_of_commands_says_what_each_says_itself() -> None:
    from sendswitch.cli.main import COMMANDS, app

    group: Any = typer.main.get_command(app)
    for name, (_, sentence) in COMMANDS.items():
        help_ = " ".join((group.commands[name].help or "").split())
        assert f"{help_} ".startswith(f"{sentence} "), name


def test_the_reference_of_the_kit_is_what_the_code_gives() -> None:
    assert (ROOT / "docs" / "reference" / "kit.md").read_text() == _script("kit").page(), "run `make reference`"


def test_the_man_pages_are_what_the_code_gives() -> None:
    pages = _script("manual").pages()
    folder = ROOT / "docs" / "man"
    assert {path.name for path in folder.iterdir()} == set(pages)
    for name, text in pages.items():
        assert (folder / name).read_text() == text, f"{name}: run `make reference`"
        assert all(not line.startswith("'") for line in text.splitlines())
