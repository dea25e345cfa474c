"""Read TOML and check it against a model: every problem at once, each with file, line and a suggestion."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from sendswitch.config.model import Config
from sendswitch.errors import InvalidConfiguration

Model = TypeVar("Model", bound=BaseModel)
Path_ = tuple[str | int, ...]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?\Z")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def load(path: Path | None) -> Config:
    """The configuration from a file (None: defaults) and the environment. Raises InvalidConfiguration."""
    if path is None:
        return validate(Config, {}, "the environment", {})
    data, lines = read(path)
    return validate(Config, data, str(path), lines)


def read(path: Path) -> tuple[dict[str, Any], dict[Path_, int]]:
    """A TOML file as data, with the line of each key. Raises InvalidConfiguration."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidConfiguration([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidConfiguration([f"{path}: is not UTF-8 at byte {error.start}; TOML files are"]) from error
    return parse(text, str(path))


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path_, int]]:
    """TOML text as data, with the line of each key. Raises InvalidConfiguration."""
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        place = f"{name}:{found[1]}" if found else name
        raise InvalidConfiguration([f"{place}: not valid TOML: {error}"]) from error


def validate(model: type[Model], data: Mapping[str, Any], name: str, lines: Mapping[Path_, int]) -> Model:
    """`data` as a `model`. Raises InvalidConfiguration with all problems in the order of the file."""
    try:
        return model(**data)
    except ValidationError as error:
        problems = []
        for found in error.errors(include_url=False):
            where = tuple(part for part in found["loc"] if part not in ("function-after", "tuple"))
            line = line_of(where, lines)
            place = f"{name}:{line}" if line else name
            problems.append((line or 0, f"{place}: {_sentence(model, where, found)}"))
        raise InvalidConfiguration([text for _, text in sorted(problems)]) from None


def line_of(where: Path_, lines: Mapping[Path_, int]) -> int | None:
    """The line of a key, or of the nearest table round it."""
    for end in range(len(where), 0, -1):
        if where[:end] in lines:
            return lines[where[:end]]
    return None


def _sentence(model: type[BaseModel], where: Path_, found: Any) -> str:
    key = ".".join(f"{part}" for part in where)
    if found["type"] == "extra_forbidden":
        names = _names(model, where[:-1])
        close = difflib.get_close_matches(str(where[-1]), names, 1, 0.6)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    message = str(found["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _names(model: type[BaseModel], where: Path_) -> list[str]:
    """The keys a table may have, found by walking the model."""
    for part in where:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            return []
        annotation = model.model_fields[part].annotation
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return sorted(model.model_fields)


def key_lines(text: str) -> dict[Path_, int]:
    """The line each key and table of valid TOML begins on.

    tomllib gives no positions. This reads only what it must: table headers, and keys at the start of a line outside
    multi-line strings and arrays; a key inside an inline table has the line of that table.
    """
    lines: dict[Path_, int] = {}
    table: Path_ = ()
    counts: dict[Path_, int] = {}
    open_string, depth = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if open_string:
            if open_string in line:
                open_string = ""
            continue
        if depth <= 0:
            header, assignment = _HEADER.match(line), _KEY.match(line)
            if header:
                table = _table(header[1], _parts(header[2]), counts)
                lines.setdefault(table, number)
                continue
            if assignment:
                lines.setdefault(table + _parts(assignment[1]), number)
        bare = re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', "", line.replace('"""', "\0").replace("'''", "\1"))
        for mark, quote in (("\0", '"""'), ("\1", "'''")):
            if bare.count(mark) % 2:
                open_string = quote
        bare = bare.partition("#")[0]
        depth += bare.count("[") - bare.count("]") + bare.count("{") - bare.count("}")
    return lines


def _parts(dotted: str) -> Path_:
    return tuple(a or b or c for a, b, c in re.findall(r"""([A-Za-z0-9_-]+)|"([^"]*)"|'([^']*)'""", dotted))


def _table(brackets: str, parts: Path_, counts: dict[Path_, int]) -> Path_:
    if brackets == "[[":
        counts[parts] = counts.get(parts, -1) + 1
        return (*parts, counts[parts])
    for end in range(len(parts), 0, -1):
        if parts[:end] in counts:
            return (*parts[:end], counts[parts[:end]], *parts[end:])
    return parts
