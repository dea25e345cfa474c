"""Mail that is too large for a scanner: it is reported, and never taken for clean."""

from __future__ import annotations

from typing import Literal

from sendswitch.mail.verdict import Verdict

TAG = "UNSCANNED"

TooLarge = Literal["skip", "tag", "defer"]


def unscanned(size: int, largest: int, meaning: TooLarge) -> Verdict:
    """Return the opinion on a message of so many bytes that was not scanned. Raises ValueError when it shall wait."""
    reason = f"{size} bytes are more than largest = {largest}, so it was not scanned"
    if meaning == "defer":
        raise ValueError(reason)
    return Verdict(tags=(TAG,) if meaning == "tag" else (), reason=reason)
