"""Settings from the environment: SENDSWITCH_SECTION__KEY, and SENDSWITCH_SECTION__KEY_FILE for a value in a file.

A list is JSON, or words with commas between them; a listener has a number (SENDSWITCH_LISTENER__0__BIND). Variables of
the older systems are not read here: see `compat`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

Path_ = tuple[str | int, ...]

PREFIX = "SENDSWITCH_"
_FILE = "_FILE"


def taken_from_systemd(environment: MutableMapping[str, str], process: int) -> tuple[str, float]:
    """Take systemd's notification socket and the watchdog's period in seconds (0: none) out of the environment.

    They are removed, so that no program that a pipeline starts speaks for the node (sd_watchdog_enabled(3)).
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    period, meant = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", str(process))
    return address, int(period) / 1e6 if period.isdigit() and meant == str(process) else 0.0


def from_environment(
    model: type[BaseModel], environment: Mapping[str, str]
) -> tuple[dict[str, Any], dict[Path_, str], list[str]]:
    """Return the settings in the environment: values, the variable of each, and errors as sentences.

    An element of an array of tables has its number as key.

    A variable without a double underscore is no setting. A variable with one that matches no setting is an error.
    """
    data: dict[str, Any] = {}
    places: dict[Path_, str] = {}
    problems: list[str] = []
    for name in sorted(environment):
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        try:
            where, value = _setting(model, name, environment)
            _put(data, where, value)
        except (ValueError, OSError) as error:
            problems.append(f"{name} in the environment: {error}")
            continue
        places[where] = f"{name} in the environment"
    return data, places, problems


def _setting(model: type[BaseModel], name: str, environment: Mapping[str, str]) -> tuple[Path_, Any]:
    """Return the key of a variable, and its value. Raises ValueError, OSError."""
    text = environment[name]
    if f"{name}{_FILE}" in environment:
        raise ValueError(f"{name}{_FILE} is set too; set one of both")
    where = tuple(name.removeprefix(PREFIX).lower().split("__"))
    try:
        path, kind = _find(model, where)
    except LookupError:
        if not name.endswith(_FILE):
            raise ValueError(_unknown(model, where)) from None
        try:
            path, kind = _find(model, (*where[:-1], where[-1].removesuffix(_FILE.lower())))
        except LookupError:
            raise ValueError(_unknown(model, where)) from None
        text = Path(text).read_text(encoding="utf-8").strip()
    if _model(kind) is not None and get_origin(kind) is None:
        raise ValueError("it names a table; name one of its keys")
    return path, _value(kind, text)


def _find(model: type[BaseModel], where: tuple[str, ...]) -> tuple[Path_, Any]:
    """Return the path of a key, with numbers as numbers, and its type. Raises LookupError."""
    path: list[str | int] = []
    kind: Any = model
    for part in where:
        inner = _model(kind)
        if inner is not None and part.isdigit() and get_origin(kind) is tuple:
            path.append(int(part))
            kind = inner
        elif inner is not None and part in inner.model_fields:
            path.append(part)
            kind = inner.model_fields[part].annotation
        elif get_origin(kind) is dict:
            path.append(part.upper())  # a tag; the environment knows no small letters
            kind = get_args(kind)[1]
        else:
            raise LookupError(part)
    return tuple(path), kind


def inner_model(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the table a key holds, or the tables; None when it holds something else."""
    field = model.model_fields.get(key)
    return None if field is None else _model(field.annotation)


def _model(kind: Any) -> type[BaseModel] | None:
    inner = [a for a in (kind, *get_args(kind)) if isinstance(a, type) and issubclass(a, BaseModel)]
    return inner[0] if inner else None


def _unknown(model: type[BaseModel], where: tuple[str, ...]) -> str:
    known = [f"{section}__{key}" for section in model.model_fields for key in _keys(model, section)]
    close = difflib.get_close_matches("__".join(where), known, 1, 0.6)
    hint = f"; did you mean {PREFIX}{close[0].upper()}?" if close else ""
    return f"there is no such setting{hint}"


def _keys(model: type[BaseModel], section: str) -> list[str]:
    inner = inner_model(model, section)
    return sorted(inner.model_fields) if inner else []


def _value(kind: Any, text: str) -> Any:
    if _model(kind) is not None or get_origin(kind) in (tuple, list, dict):
        if text[:1] in ("[", "{"):
            return json.loads(text)
        return [word.strip() for word in text.split(",") if word.strip()]
    return text


def _put(data: dict[Any, Any], where: Path_, value: Any) -> None:
    for part in where[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ValueError("the whole is set by another variable; set the whole or its parts")
    data[where[-1]] = value
