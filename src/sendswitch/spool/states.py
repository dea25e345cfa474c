"""The states of a delivery (one message for one recipient) in the spool.

They are the states that a crash must find again; docs/flow.md draws their order. Being offered to a worker or sent is
activity, not state: after a crash the delivery is offered or sent again, and nothing on disk needs to say so.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a delivery. Every accepted recipient is in exactly one.

    A member is its own text: SQLite and orjson take it as it is, so that `.value`, a Python call, is not needed.
    """

    ACCEPTED = "accepted"
    DECIDED = "decided"
    HELD = "held"
    QUARANTINED = "quarantined"
    DELIVERED = "delivered"
    FORWARDED = "forwarded"
    REJECTED = "rejected"
    REFUSED = "refused"
    BOUNCED = "bounced"
    DISCARDED = "discarded"
    FAILED = "failed"


TERMINAL = frozenset(
    (
        State.DELIVERED,
        State.FORWARDED,
        State.REJECTED,
        State.REFUSED,
        State.BOUNCED,
        State.DISCARDED,
        State.FAILED,
    )
)
# Before the queue a recipient's filter, or the next hop, may say no for good (rejected). What we ourselves did not take
# is refused: no room, too much to do, no answer from a pipeline in time, a sender that is not the client's own. Neither
# was ever ours; both stand in the first event of the message.
NEVER_OURS = frozenset((State.REJECTED, State.REFUSED))
