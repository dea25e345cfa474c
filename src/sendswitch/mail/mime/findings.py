"""Findings: why a message, or a part of it, may be shown as something that the filter did not see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The kinds of findings; conditions ask for them as `is:ambiguous` and so on."""

    AMBIGUOUS = "ambiguous"
    UNREADABLE = "unreadable"
    ENCRYPTED = "encrypted"
    TOO_LARGE = "too large"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `text` names the readings that differ, or the content that cannot be read."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"
