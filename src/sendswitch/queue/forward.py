"""Carrying out FORWARD: the delivery ends as forwarded, and its targets become deliveries of the same message.

Each target is routed like any recipient, so a local one has its own pipeline. A loop cannot happen: a target that
already stands in the chain of forwards is dropped, and a message that this address has forwarded before, as our own
mark on it says (`mail.hops`), is delivered here instead of going round again. Delivered-To is written for people and
other systems (RFC 9228), and not believed.

What leaves for another domain gets a sender of ours, where the site wants that (`Srs`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sendswitch.journal.events import EventKind
from sendswitch.mail import xtext
from sendswitch.mail.address import domain_key, key, split, valid
from sendswitch.mail.edits import AddHeader
from sendswitch.mail.envelope import Recipient
from sendswitch.mail.hops import FIELD, Marks
from sendswitch.mail.srs import Srs
from sendswitch.mail.verdict import FOLDER, Action, Verdict
from sendswitch.spool.records import Change, Delivery
from sendswitch.spool.replace import replace_delivery
from sendswitch.spool.spool import Spool
from sendswitch.spool.states import State


def targets_of(recipient: str, targets: Sequence[str], keep_copy: bool, chain: Sequence[str]) -> tuple[list[str], bool]:
    """Return the targets without those already in the chain, each once, and whether the recipient gets a copy.

    With no target left the recipient gets the mail: forwarding never loses it.
    """
    seen = {key(recipient), *chain}
    fresh: dict[str, str] = {}
    for target in targets:
        if key(target) not in seen and valid(target):
            fresh.setdefault(key(target), target)
    own = key(recipient) in {key(target) for target in targets}
    return list(fresh.values()), keep_copy or own or not fresh


def rewrites(srs: Srs | None, delivery: Delivery, target: str) -> bool:
    """Return whether a target gets a sender of ours.

    Within a domain, and for mail from it, an SPF check passes anyway.
    """
    before = delivery.verdict is not None and delivery.verdict.rewrite
    here = domain_key(split(delivery.recipient.address)[1])
    if srs is None or before or domain_key(split(target)[1]) == here:
        return before
    return domain_key(split(delivery.message.envelope.sender)[1]) not in ("", here, domain_key(srs.domain))


async def forward(
    spool: Spool,
    delivery: Delivery,
    targets: Sequence[str],
    keep_copy: bool,
    *,
    now: float,
    marks: Marks,
    srs: Srs | None = None,
) -> list[Delivery]:
    """End the delivery as forwarded and create its targets, in one transaction. Return the new deliveries."""
    content = await delivery.message.load()
    head = await asyncio.to_thread(content.head)
    mark = await asyncio.to_thread(marks.make, head, delivery.recipient.address)
    if await asyncio.to_thread(marks.forwarded_by, head, delivery.recipient.address):
        targets = ()

    def make(chain: Sequence[str], first: int) -> tuple[list[Delivery], Change]:
        fresh, copy = targets_of(delivery.recipient.address, targets, keep_copy, [key(one) for one in chain])
        new = _children(delivery, {to: rewrites(srs, delivery, to) for to in fresh}, copy, mark, now, first)
        children = [(child.n, child.recipient.address, child.state) for child in new]
        data = {"to": fresh, "copy": copy, "children": children}
        if srs is not None and any(child.verdict is not None and child.verdict.rewrite for child in new):
            data["srs"] = srs.domain
        return new, Change(
            delivery, State.FORWARDED, EventKind.FORWARDED, data, reply=f"250 forwarded to {', '.join(fresh)}"
        )

    return await replace_delivery(spool, delivery, make, now=now)


def _children(
    delivery: Delivery, fresh: Mapping[str, bool], copy: bool, mark: str, now: float, first: int
) -> list[Delivery]:
    """Return the deliveries that take its place, with numbers from `first`: one for each address, with whether its
    sender is rewritten, and the recipient's copy."""
    recipient, verdict = delivery.recipient, delivery.verdict or Verdict()
    # RFC 3461 5.2.7.1: reports about a forwarded message name the address the sender knew.
    orcpt = recipient.orcpt or (f"rfc822;{xtext.encode(recipient.address)}" if recipient.address.isascii() else "")
    trace = (AddHeader("Delivered-To", recipient.address), AddHeader(FIELD, mark))
    # In which of the recipient's folders it lies is nobody else's business.
    edits = tuple(edit for edit in verdict.edits if not (isinstance(edit, AddHeader) and edit.name == FOLDER))
    put_on = Verdict(tags=verdict.tags, edits=(*edits, *trace))
    new = [
        Delivery(
            delivery.message,
            first + n,
            Recipient(target, recipient.notify, orcpt),
            due=now,
            origin=delivery.n,
            verdict=replace(put_on, rewrite=rewrite),
        )
        for n, (target, rewrite) in enumerate(fresh.items())
    ]
    if copy:
        own = replace(verdict, action=Action.PASS, forward=(), keep_copy=False, trace=())
        new.append(
            Delivery(
                delivery.message,
                first + len(fresh),
                recipient,
                state=State.DECIDED,
                due=now,
                origin=delivery.n,
                verdict=own,
            )
        )
    return new
