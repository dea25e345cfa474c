"""Spools with mail in them, for tests of what administrators do."""

from __future__ import annotations

from pathlib import Path

from sendswitch.journal.events import EventKind
from sendswitch.mail.envelope import Envelope, Recipient
from sendswitch.mail.ids import to_text
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.spool.opening import open_spool
from sendswitch.spool.records import Change, Delivery
from sendswitch.spool.spool import Spool, new_message
from sendswitch.spool.states import State
from sendswitch.testing import FakeClock

MAIL = b"Subject: x\r\n\r\ntext\r\n"


async def accept(spool: Spool, clock: FakeClock, *to: str, data: bytes = MAIL) -> list[Delivery]:
    """Put a message into a spool."""
    recipients = tuple(map(Recipient, to))
    body = spool.body()
    body.write(data)
    content = body.in_memory() or await body.in_file()
    message = new_message(
        spool, Envelope("s@x.example", recipients), content, now=clock(), lifetime=1000, via="filter", id_=body.id
    )
    found = [Delivery(message, n, one, due=clock()) for n, one in enumerate(recipients)]
    await spool.accept(message, found)
    return found


async def keep(data: Path, clock: FakeClock, state: State, *to: str, mail: bytes = MAIL) -> list[str]:
    """Put one message a recipient into the spool of a data folder: in quarantine, held, or on its way.

    Return the ids of the deliveries.
    """
    spool = open_spool(data / "spool", clock)
    ids = []
    for address in to:
        (delivery,) = await accept(spool, clock, address, data=mail)
        if state is not State.ACCEPTED:
            verdict = Verdict(Action.QUARANTINE, reason="odd")
            await spool.change([Change(delivery, state, EventKind(state.value), {}, clock() + 100, verdict)])
        ids.append(f"{to_text(delivery.message.id)}.0")
    await spool.close()
    return ids
