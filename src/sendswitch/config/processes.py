"""One configuration for several nodes on one machine (`node.processes`): which part of it each of them has.

The first node is where one alone would be. The others have folders below its own and the web ports behind its own. All
of them listen on the same ports and use the same database. Limits are those of all together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr

from sendswitch.config.model import Config, ListenerSection, Section

S = TypeVar("S", bound=Section)


def folder_of(data: Path, number: int) -> Path:
    """Return the data folder of a node by its number, from 1."""
    return data if number == 1 else data / "nodes" / str(number)


def numbers_in(data: Path) -> list[int]:
    """Return the numbers of the nodes that have a spool here, the first among them in any case."""
    others = (path.name for path in (data / "nodes").glob("*") if (path / "spool" / "spool.db").exists())
    return [1, *sorted(int(name) for name in others if name.isdigit() and int(name) > 1)]


def folders_in(data: Path) -> list[Path]:
    """Return the data folders of the nodes that have a spool here, the first one's in any case."""
    return [folder_of(data, number) for number in numbers_in(data)]


def of_process(config: Config, number: int, processes: int) -> Config:
    """Return the configuration of one of so many nodes. One with a higher number takes no mail."""
    if processes == 1 and number == 1:
        return config

    def share(total: int) -> int:
        return max(1, total // processes + (number <= total % processes)) if total else 0

    def shared(section: ListenerSection) -> ListenerSection:
        return _with(
            section,
            connections=share(section.connections),
            connections_per_address=share(section.connections_per_address),
        )

    data, memory = folder_of(config.node.data, number), share(config.node.max_memory)
    return config.model_copy(
        update={
            "node": _with(config.node, data=data, max_memory=memory),
            "listener": tuple(map(shared, config.listener)) if number <= processes else (),
            "next_hop": _with(config.next_hop, connections=share(config.next_hop.connections)),
            "web": _with(config.web, bind=web_of(config, number, processes)),
            "database": _with(config.database, url=SecretStr(config.database_url)),
            "recording": _with(config.recording, most=share(config.recording.most)),
            "canary": config.canary if number == 1 else _with(config.canary, to=""),
            "worker": _with(config.worker, processes=share(config.worker.processes or os.cpu_count() or 1)),
        }
    )


def web_of(config: Config, number: int, processes: int) -> str:
    """Return the address of a node's web port: those of the others are behind the first one's. One with a higher number
    has any free port, because others may need those behind.
    """
    if number == 1:
        return config.web.bind
    if number > processes:
        return "127.0.0.1:0"
    host, _, port = config.web.bind.rpartition(":")
    return f"{host}:{int(port) + number - 1}"


def _with(section: S, **values: object) -> S:
    return section.model_copy(update=values)
