"""Edits of a message that a verdict asks for. Users' code makes them, so nothing here is certain of its types."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Put a field at the top."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class SetHeader:
    """Replace every field of that name by one; put it at the top if there was none."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class RemoveHeader:
    """Remove every field of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class MarkSubject:
    """Put `mark` before the Subject, once however often it is asked for."""

    mark: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Put `text` in place of the bytes from `start` to `end` of the message as it came; not in its header."""

    start: int
    end: int
    text: str


HeaderEdit = AddHeader | SetHeader | RemoveHeader | MarkSubject
Edit = HeaderEdit | Cut
