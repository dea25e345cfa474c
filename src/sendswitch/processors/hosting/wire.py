"""The context of a step as JSON, for a process beside the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sendswitch.mail.envelope import Recipient, client_from_json, client_to_json
from sendswitch.processors.base import Context


def context_to_json(context: Context) -> dict[str, Any]:
    """Return a context as plain JSON values; notes are the caller's."""
    return {
        "message": context.message,
        "recipient": context.recipient.address,
        "sender": context.sender,
        "client": client_to_json(context.client),
        "now": context.now,
        "attempt": context.attempt,
        "tags": context.tags,
        "rehearsal": context.rehearsal,
        "score": context.score,
    }


def context_from_json(data: Mapping[str, Any]) -> Context:
    """Return the context that `context_to_json` wrote."""
    return Context(
        message=data["message"],
        recipient=Recipient(data["recipient"]),
        sender=data["sender"],
        client=client_from_json(data["client"]),
        now=data["now"],
        attempt=data["attempt"],
        tags=tuple(data["tags"]),
        rehearsal=data["rehearsal"],
        score=data["score"],
    )
