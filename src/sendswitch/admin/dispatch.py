"""Call a use case with the arguments of a request, and read its result. Server and client share both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from sendswitch.admin.base import Actor, Installation


def perform(function: Callable[..., Any], installation: Installation, actor: Actor, given: Mapping[str, Any]) -> Any:
    """Check the arguments of a request and call the use case. Raises ValueError for an argument that is not allowed."""
    try:
        checked = _arguments(function).model_validate(given)
    except ValidationError as error:
        raise ValueError("; ".join(map(_sentence, error.errors()))) from error
    return function(installation, actor, **{name: getattr(checked, name) for name in type(checked).model_fields})


def _sentence(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    return f"{name} {str(error['input'])[:100]}: {error['msg'].removeprefix('Value error, ').lower()}"


@cache
def _arguments(function: Callable[..., Any]) -> type[BaseModel]:
    """Return a model of the arguments behind `installation` and `actor`."""
    hints = get_type_hints(function, include_extras=True)
    fields: Any = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in list(inspect.signature(function).parameters.items())[2:]
    }
    return create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)


@cache
def result_of(function: Callable[..., Any]) -> TypeAdapter[Any]:
    """Return the reader of what a use case returns."""
    return TypeAdapter(get_type_hints(function, include_extras=True)["return"])
