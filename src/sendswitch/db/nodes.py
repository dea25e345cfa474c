"""The nodes of a database: each has a number of its own, and says now and then that it works and what it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from sendswitch.db.tables import nodes
from sendswitch.errors import NotFound, Refused, Temporary
from sendswitch.mail.ids import NODES

# Seconds between two heartbeats, and without one until a node is called silent.
BEAT, SILENT = 15.0, 60.0
# Seconds without a heartbeat after which a node that was not stopped in order can be forgotten.
GONE = 3600.0
# Nodes that ask for a number at once, before one of them is told to try again.
TRIES = 10


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The facts that a node tells of itself. `web` is a URL; the last four are deliveries, and its workers."""

    number: int
    host: str
    data: str
    pid: int
    version: str
    web: str
    started: float
    draining: bool
    queued: int
    held: int
    quarantined: int
    workers: int


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A node: its spool's name, what it said of itself, its last heartbeat, and when it was stopped in order."""

    spool: str
    facts: NodeFacts
    seen: float
    ended: float | None


def register(engine: Engine, spool: str, wanted: int, now: float) -> int:
    """Return the number of the node with this spool: the wanted one, another one where that is another node's.

    Ids of messages have the number in them: two nodes with one number would give one id to two messages. Blocks.
    Raises Temporary when all numbers are taken.
    """
    for _ in range(TRIES):
        with engine.connect() as connection:
            taken = {str(name): int(number) for number, name in connection.execute(select(nodes.c.id, nodes.c.spool))}
        if spool in taken:
            return taken[spool]
        free = sorted(set(range(NODES)) - set(taken.values()), key=lambda n: (n - wanted) % NODES)
        if not free:
            raise Temporary(
                f"the database has {NODES} nodes; remove those that are gone: sendswitch node forget NUMBER"
            )
        facts = NodeFacts(free[0], "", "", 0, "", "", now, draining=False, queued=0, held=0, quarantined=0, workers=0)
        try:
            with engine.begin() as connection:
                connection.execute(insert(nodes).values(_row(spool, facts, now, ended=True)))
        except IntegrityError:  # another node was quicker
            continue
        return free[0]
    raise Temporary("other nodes took each number that was tried; start again")


def tell(engine: Engine, spool: str, facts: NodeFacts, now: float, *, ended: bool = False) -> None:
    """Write down what a node says of itself. Blocks.

    Raises Refused when the node was forgotten and its number is another node's now.
    """
    row = _row(spool, facts, now, ended=ended)
    try:
        with engine.begin() as connection:
            if connection.execute(update(nodes).where(nodes.c.spool == spool).values(row)).rowcount == 0:
                connection.execute(insert(nodes).values(row))
    except IntegrityError as error:
        raise Refused(f"this node was forgotten, and {facts.number} is another one's number; restart it") from error


def _row(spool: str, facts: NodeFacts, now: float, *, ended: bool) -> dict[str, object]:
    said = asdict(facts)
    known = {"id": said.pop("number"), "spool": spool, "seen": now, "ended": now if ended else None, "adopter": ""}
    return known | said


def known(engine: Engine) -> Sequence[KnownNode]:
    """Return the nodes by host and data folder. Blocks."""
    with engine.connect() as connection:
        rows = connection.execute(select(nodes).order_by(nodes.c.host, nodes.c.data, nodes.c.id)).mappings().all()
    return [_known({**row, "number": row["id"]}) for row in rows]


def _known(row: dict[str, object]) -> KnownNode:
    facts = NodeFacts(**{name: row[name] for name in NodeFacts.__dataclass_fields__})  # type: ignore[arg-type]
    return KnownNode(str(row["spool"]), facts, float(row["seen"]), row["ended"])  # type: ignore[arg-type]


def claim(engine: Engine, spool: str, adopter: str) -> bool:
    """Note that a node, by the name of its spool, adopts another one's. Blocks.

    Return False when that is unknown here, or another node's to adopt. The claim ends when the spool's node runs again.
    """
    with engine.begin() as connection:
        mine = nodes.c.adopter.in_(("", adopter))
        done = connection.execute(update(nodes).where(nodes.c.spool == spool, mine).values(adopter=adopter))
        if done.rowcount == 0:  # MariaDB counts rows that changed only
            found = select(nodes.c.id).where(nodes.c.spool == spool, nodes.c.adopter == adopter)
            return connection.execute(found).first() is not None
        return True


def adopter_of(engine: Engine, spool: str) -> str:
    """Return the name of the spool whose node adopts this one, '' for none. Blocks."""
    with engine.connect() as connection:
        return str(connection.execute(select(nodes.c.adopter).where(nodes.c.spool == spool)).scalar() or "")


def forget(engine: Engine, number: int, now: float) -> None:
    """Remove a node that was stopped, or is silent for GONE seconds. Blocks. Raises NotFound and Refused."""
    with engine.begin() as connection:
        row = connection.execute(select(nodes).where(nodes.c.id == number)).mappings().first()
        if row is None:
            raise NotFound(f"there is no node {number}; sendswitch node list shows them")
        if row["ended"] is None and row["seen"] > now - GONE:
            raise Refused(f"node {number} had a heartbeat {now - row['seen']:.0f} seconds ago; stop it first")
        connection.execute(nodes.delete().where(nodes.c.id == number))
