"""The checks of /readyz and /healthz. Each returns '' or a sentence that says what is wrong and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sendswitch import metrics
from sendswitch.clock import system_clock
from sendswitch.monitoring.health import Check

if TYPE_CHECKING:
    from sendswitch.bootstrap.node import Node

# Seconds after which the journal and the queue are called degraded. The journal may lag behind a burst; Postfix warns
# of delayed mail after four hours, if at all.
JOURNAL_LATE = 120.0
QUEUE_LATE = 4 * 3600.0


def checks(node: Node) -> dict[str, Check]:
    """Return the checks that must be well for mail to be taken."""

    async def spool() -> str:
        await node.spool.probe()
        free, wanted = node.spool.free(), node.config.node.min_free
        return "" if free >= wanted else f"{free} bytes free, less than node.min_free = {wanted}; make room"

    async def next_hop() -> str:
        reply = await node.current.settings.courier.check()
        return "" if reply is None else f"{node.config.next_hop.address}: {reply}"

    async def load() -> str:
        return node.overload.why

    async def intake() -> str:
        if node.draining:
            return "the node is being drained; `sendswitch node resume` takes mail again"
        missing = len(node.config.listener) - len(node.listeners)
        return f"{missing} listeners are not bound; restart the node" if missing else ""

    return {"spool": spool, "next_hop": next_hop, "load": load, "intake": intake}


def warnings(node: Node) -> dict[str, Check]:
    """Return the checks that do not stop mail."""

    async def journal_keeps_up() -> str:
        since = await node.spool.waiting_since()
        late = 0.0 if since is None else system_clock() - since
        if late < JOURNAL_LATE:
            return ""
        return f"events wait for the journal since {late:.0f} s; look for journal_failed in the log"

    async def queue_moves() -> str:
        _, oldest, _ = await node.spool.figures()
        late = 0.0 if oldest is None else system_clock() - oldest
        if late < QUEUE_LATE:
            return ""
        return f"a delivery is on its way since {late:.0f} s; `sendswitch queue list` says why"

    async def configuration() -> str:
        return f"the configuration was not reloaded: {node.refused}" if node.refused else ""

    async def ledger() -> str:
        count = int(metrics.value(metrics.UNACCOUNTED))
        return f"the audit found {count} things that must not be; run `sendswitch audit`" if count else ""

    async def canary() -> str:
        return f"the canary was lost: {node.canary.trouble}" if node.canary.trouble else ""

    async def background() -> str:
        trouble = node.background.trouble
        return f"a part of the node failed and was begun again ({trouble}); look at the log" if trouble else ""

    async def broker() -> str:
        assert node.rabbitmq is not None
        trouble = node.rabbitmq.trouble
        return f"RabbitMQ cannot be reached, and mail for its workers waits: {trouble}" if trouble else ""

    found: dict[str, Check] = {"broker": broker} if node.rabbitmq is not None else {}
    found |= {
        "background": background,
        "canary": canary,
        "ledger": ledger,
        "queue": queue_moves,
        "configuration": configuration,
    }
    return found | {"journal": journal_keeps_up} if node.config.journal.enabled else found
