"""Read TOML and check it against a model: every problem at once, each with file, line and a suggestion."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sendswitch.config.environment import Path_, from_environment, inner_model
from sendswitch.config.model import Config
from sendswitch.errors import InvalidConfiguration

Model = TypeVar("Model", bound=BaseModel)
Line = TypeVar("Line", int, str, int | str)

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?\Z")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and where each value that is not a default came from."""

    config: Config
    origins: Mapping[Path_, str]


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Config:
    """Return the configuration from a file (None: defaults), from `conf.d` in its folder, and from the environment.

    Raises InvalidConfiguration with every error.
    """
    return load_with_origins(path, environment).config


def files_of(path: Path | None) -> list[Path]:
    """Return the files of a configuration: the file itself, and those of `conf.d` in its folder."""
    return [] if path is None else [path, *sorted((path.parent / "conf.d").glob("*.toml"))]


def load_with_origins(path: Path | None, environment: Mapping[str, str] | None = None) -> Loaded:
    """Return the configuration with the origin of each value. Later sources win, key by key; an array is replaced as a
    whole.
    """
    data: dict[str, Any] = {}
    places: dict[Path_, str] = {}
    problems: list[str] = []
    files = files_of(path)
    for file in files:
        try:
            found, lines = read(file)
        except InvalidConfiguration as error:
            problems += error.problems
            continue
        _overlay(data, found, places, {key: f"{file}:{line}" for key, line in lines.items()})
    given, named, wrong = from_environment(Config, os.environ if environment is None else environment)
    problems += wrong
    try:
        _overlay(data, given, places, named)
        config = validate(Config, data, str(path or "the environment"), places)
    except InvalidConfiguration as error:
        raise InvalidConfiguration(problems + error.problems) from None
    if problems:
        raise InvalidConfiguration(problems)
    return Loaded(_beside(config, path), places)


def _beside(config: Config, path: Path | None) -> Config:
    """Return the configuration with the data folder next to its file, unless the file names a folder."""
    folder = (path.parent if path is not None else Path()).absolute() / config.node.data
    return config.model_copy(update={"node": config.node.model_copy(update={"data": folder})})


def _overlay(
    data: dict[str, Any], new: Mapping[str, Any], places: dict[Path_, str], named: Mapping[Path_, str], at: Path_ = ()
) -> None:
    """Put `new` over `data`, and where it stands over where the old stood. Raises InvalidConfiguration for a number
    that leaves a gap."""
    for key, value in new.items():
        here = (*at, key)
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _overlay(data[key], value, places, named, here)
        elif isinstance(value, dict) and all(isinstance(number, int) for number in value) and value:
            _overlay_numbered(data.setdefault(key, []), value, places, named, here)
        else:
            for old in [known for known in places if known[: len(here)] == here]:
                del places[old]
            data[key] = value
            places |= {known: place for known, place in named.items() if known[: len(here)] == here}


def _overlay_numbered(
    tables: list[Any], new: Mapping[int, Any], places: dict[Path_, str], named: Mapping[Path_, str], at: Path_
) -> None:
    for n, table in sorted(new.items()):
        if n > len(tables):
            place = next(place for known, place in named.items() if known[: len(at) + 1] == (*at, n))
            raise InvalidConfiguration([f"{place}: number {n} comes before number {len(tables)}"])
        if n == len(tables):
            tables.append({})
        _overlay(tables[n], table, places, named, (*at, n))


def read(path: Path) -> tuple[dict[str, Any], dict[Path_, int]]:
    """Return a TOML file as data, with the line of each key. Raises InvalidConfiguration."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Return the text of a TOML file. Raises InvalidConfiguration."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidConfiguration([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidConfiguration([f"{path}: is not UTF-8 at byte {error.start}; TOML files are"]) from error


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path_, int]]:
    """Return TOML text as data, with the line of each key. Raises InvalidConfiguration."""
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        place = f"{name}:{found[1]}" if found else name
        raise InvalidConfiguration([f"{place}: not valid TOML: {error}"]) from error


def validate(model: type[Model], data: Mapping[str, Any], name: str, lines: Mapping[Path_, int | str]) -> Model:
    """Return `data` as a `model`. Raises InvalidConfiguration with all problems in the order of the file.

    `lines` gives the line of each key in the file `name`, or a whole place where there are several.
    """
    try:
        return model(**data)
    except ValidationError as error:
        problems = []
        for found in error.errors(include_url=False):
            where = tuple(part for part in found["loc"] if part not in ("function-after", "tuple"))
            line = line_of(where, lines)
            place = line if isinstance(line, str) else f"{name}:{line}" if line else name
            problems.append((_order(line), f"{place}: {_sentence(model, where, found)}"))
        raise InvalidConfiguration([text for _, text in sorted(problems)]) from None


def _order(place: int | str | None) -> tuple[str, int]:
    """Return the problems of one file in the order of its lines."""
    if not isinstance(place, str):
        return "", place or 0
    name, _, line = place.rpartition(":")
    return (name, int(line)) if line.isdigit() else (place, 0)


def line_of(where: Path_, lines: Mapping[Path_, Line]) -> Line | None:
    """Return the line of a key, or of the nearest table round it."""
    for end in range(len(where), 0, -1):
        if where[:end] in lines:
            return lines[where[:end]]
    return None


# Sentences for the kinds of errors that pydantic knows; its own are about Python's types. The names in braces are those
# of its facts about the limit that was missed.
_LIST = 'this is a list: write it in brackets, such as ["one", "two"]'
_TABLE = "this is a table: write [its.name] in a line of its own, and its keys below"
_WHOLE = "this is a whole number, without quotes"
_NUMBER = "this is a number, without quotes"
_IN_WORDS = {
    "bool_parsing": "write true or false, without quotes",
    "bool_type": "write true or false, without quotes",
    "dict_type": _TABLE,
    "enum": "write one of {expected}",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "write more than {gt:g}",
    "greater_than_equal": "write {ge:g} or more",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "less_than": "write less than {lt:g}",
    "less_than_equal": "write {le:g} or less",
    "list_type": _LIST,
    "literal_error": "write {expected}",
    "missing": "this key must be given",
    "model_attributes_type": _TABLE,
    "model_type": _TABLE,
    "path_type": "this is a path: write it in quotes",
    "string_pattern_mismatch": "only what matches {pattern} can stand here",
    "string_too_long": "write at most {max_length} characters",
    "string_too_short": "write at least {min_length} characters",
    "string_type": "this is a text: write it in quotes",
    "timezone_aware": "this is a moment: write it like 2030-01-31T00:00:00Z",
    "too_long": "write at most {max_length} of them",
    "too_short": "write at least {min_length} of them",
    "tuple_type": _LIST,
}


def _sentence(model: type[BaseModel], where: Path_, found: Any) -> str:
    key = ".".join(f"{part}" for part in where)
    if found["type"] == "extra_forbidden":
        names = _names(model, where[:-1])
        close = difflib.get_close_matches(str(where[-1]), names, 1, 0.6)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if found["type"] == "tuple_type" and len(where) == 1 and inner_model(model, str(where[0])) is not None:
        return f"[{key}]: there may be several of them, so each is written as [[{key}]]"
    known = _IN_WORDS.get(found["type"])
    message = known.format(**found.get("ctx", {})) if known else str(found["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _names(model: type[BaseModel], where: Path_) -> list[str]:
    """Return the keys a table may have, found by walking the model."""
    for part in where:
        if isinstance(part, int):
            continue
        inner = inner_model(model, part)
        if inner is None:
            return []
        model = inner
    return sorted(model.model_fields)


def key_lines(text: str) -> dict[Path_, int]:
    """Return the line each key and table of valid TOML begins on.

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
