"""Server and client of the management API agree on this: the socket, the paths, and errors as problems (RFC 9457)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sendswitch.errors import (
    InvalidConfiguration,
    InvalidSearch,
    NotFound,
    Permanent,
    Refused,
    SendSwitchError,
    Temporary,
    in_words,
)

# The socket's file in node.data, the beginning of every path, and the header field with the name of who asks.
NAME = "control"
BASE = "/api/v1"
ACTOR = "Sendswitch-Actor"

# Each kind of error with its name in a problem and its HTTP status. The first that fits counts.
_KINDS: tuple[tuple[str, type[Exception], int], ...] = (
    ("not_found", NotFound, 404),
    ("refused", Refused, 409),
    ("invalid_search", InvalidSearch, 422),
    ("invalid_configuration", InvalidConfiguration, 422),
    ("temporary", Temporary, 503),
    ("permanent", Permanent, 500),
    ("failed", SendSwitchError, 500),
    ("invalid_value", ValueError, 422),
)
_BY_NAME = {name: kind for name, kind, _ in _KINDS}


@contextmanager
def address_of(folder: Path) -> Iterator[str]:
    """Yield the socket's path by way of an open folder. Such a path has at most 107 bytes; data folders have more."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)


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


def kind_of(error: Exception) -> str:
    """Return the name of an error's kind, as a problem has it."""
    return next((name for name, kind, _ in _KINDS if isinstance(error, kind)), "failed")


def to_problem(error: Exception) -> dict[str, Any]:
    """Return an error as a problem (RFC 9457). `kind` says what to do about it, `errors` has one sentence each."""
    kind = kind_of(error)
    errors = error.problems if isinstance(error, InvalidConfiguration) else [str(error)]
    status = next((status for name, _, status in _KINDS if name == kind), 500)
    return {"title": kind.replace("_", " "), "status": status, "detail": errors[0], "kind": kind, "errors": errors}


def to_error(problem: Mapping[str, Any]) -> Exception:
    """Return the error that a problem was made of."""
    return error_of(problem["kind"], [str(one) for one in problem["errors"]])


def error_of(kind: str, errors: list[str]) -> Exception:
    """Return an error of a kind with its sentences."""
    found = _BY_NAME.get(kind, SendSwitchError)
    return InvalidConfiguration(errors) if found is InvalidConfiguration else found("\n".join(errors))
