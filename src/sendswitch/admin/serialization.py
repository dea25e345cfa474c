"""Server and client of the management API agree on this: the socket, the paths, and errors as problems (RFC 9457)."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from sendswitch.errors import InvalidConfiguration, SendSwitchError, Temporary, error_of, in_words, kind_of

# The socket's file in node.data, the beginning of every path, and the header field with the name of who asks.
NAME = "control"
BASE = "/api/v1"
ACTOR = "Sendswitch-Actor"

# The HTTP status of each kind of error (`errors.kind_of`).
_STATUS = {
    "not_found": 404,
    "refused": 409,
    "invalid_search": 422,
    "invalid_configuration": 422,
    "temporary": 503,
    "permanent": 500,
    "failed": 500,
    "invalid_value": 422,
}


def as_ours(error: Exception) -> Exception:
    """Return an error of the system or of a library as one of ours, in words; another one as it is."""
    file = getattr(error, "filename", None)
    match error:
        case SendSwitchError() | ValueError():
            return error
        case sqlite3.Error():
            return Temporary(f"the spool cannot be used: {in_words(error)}")
        case OSError():
            return SendSwitchError(f"{file}: {in_words(error)}" if file else in_words(error))
    # SQLAlchemy is not imported for this.
    if any(kind.__module__ == "sqlalchemy.exc" for kind in type(error).__mro__):
        return Temporary(f"the database cannot be used: {in_words(error)}")
    return error


def to_problem(error: Exception) -> dict[str, Any]:
    """Return an error as a problem (RFC 9457). `kind` says what to do about it, `errors` has one sentence each."""
    kind = kind_of(error)
    errors = error.problems if isinstance(error, InvalidConfiguration) else [str(error)]
    return {
        "title": kind.replace("_", " "),
        "status": _STATUS[kind],
        "detail": errors[0],
        "kind": kind,
        "errors": errors,
    }


def to_error(problem: Mapping[str, Any]) -> Exception:
    """Return the error that a problem was made of."""
    return error_of(problem["kind"], [str(one) for one in problem["errors"]])
