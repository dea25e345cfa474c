"""The states of a delivery (one message for one recipient), as the spool keeps them.

The table is what a crash must find again. That a delivery is being offered to a worker or is on the wire is
activity, not state: after a crash it is offered or sent again, and nothing on disk needs to say so.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a delivery stands. Every accepted recipient is in exactly one.

    A member is its own text: SQLite and orjson take it as it is, and `.value`, a Python call, is not needed.
    """

    ACCEPTED = "accepted"
    DECIDED = "decided"
    HELD = "held"
    QUARANTINED = "quarantined"
    DELIVERED = "delivered"
    FORWARDED = "forwarded"
    REJECTED = "rejected"
    BOUNCED = "bounced"
    DISCARDED = "discarded"
    FAILED = "failed"


TERMINAL = frozenset((State.DELIVERED, State.FORWARDED, State.REJECTED, State.BOUNCED, State.DISCARDED, State.FAILED))
ON_ITS_WAY = frozenset((State.ACCEPTED, State.DECIDED))

_ENDS_OF_DECIDED = TERMINAL - {State.REJECTED} | {State.HELD, State.QUARANTINED, State.DECIDED}

TRANSITIONS: dict[State, frozenset[State]] = {
    State.ACCEPTED: frozenset((State.ACCEPTED, State.DECIDED, State.DELIVERED, State.BOUNCED, State.FAILED)),
    State.DECIDED: _ENDS_OF_DECIDED,
    State.HELD: frozenset((State.DECIDED,)),
    State.QUARANTINED: frozenset((State.DECIDED, State.DISCARDED)),
    **{state: frozenset() for state in TERMINAL},
}
