"""Calls: what a worker in another process asks of its node, by name, with JSON as arguments and result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sendswitch.errors import InvalidConfiguration, classify, error_of, in_words, kind_of

Call = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Returns the result for some arguments, both plain JSON. Raises KeyError, TypeError, ValueError for other arguments
than it takes, and the errors of what it does."""

Ask = Callable[[str, str, Mapping[str, Any]], Awaitable[Any]]
"""Makes a call to a node, both by name, and returns its result. Raises Temporary when the node is away, and the errors
of the call."""


CallsOf = Callable[[str], Mapping[str, Call]]
"""Returns the calls by name for workers of a user's own, or with '' for those of the site."""

SettingsOf = Callable[[str], Mapping[str, Any]]
"""Returns what workers of a user's own must know, or with '' those of the site."""


def error_to_json(error: Exception) -> dict[str, Any]:
    """Return an error as the fields of a result. One that is not ours is temporary."""
    ours = classify(error)
    errors = ours.problems if isinstance(ours, InvalidConfiguration) else [in_words(error)]
    return {"error": kind_of(ours), "errors": errors}


def error_from_json(fields: Mapping[str, Any]) -> Exception:
    """Return the error that a result has."""
    return error_of(str(fields["error"]), [str(one) for one in fields.get("errors", ())])
