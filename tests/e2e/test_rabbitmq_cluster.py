"""A RabbitMQ of three hosts, of which one is killed while mail goes through its workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node
from sendswitch.bench.rabbitmq import RABBITMQ, Names, RabbitMQ
from tests.conftest import missing
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, Stream, clean, programmed, queue, said, until


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RabbitMQ]]:
    if not RABBITMQ.exists():
        missing("RabbitMQ is missing; as root: apt-get install rabbitmq-server")
    names = Names()
    hosts = [RabbitMQ(tmp_path_factory.mktemp(one), name=one, names=names) for one in ("one", "two", "three")]
    names.start()
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(RabbitMQ.start, hosts))
        for host in hosts[1:]:
            host.join(hosts[0])
        yield hosts
    finally:
        for host in hosts:
            host.kill()
        names.kill()


def leader(host: RabbitMQ) -> str:
    """Return the name of the host that leads the queue of the site's tasks."""
    return leaders(host)["tasks.pool"]


def leaders(host: RabbitMQ) -> dict[str, str]:
    """Return the leader of each queue that a host knows."""
    listed = host.control("list_queues", "name", "leader", "--no-table-headers").splitlines()
    return dict(line.split("\t") for line in listed)


def test_mail_goes_on_while_one_of_three_hosts_is_away(tmp_path: Path, cluster: list[RabbitMQ]) -> None:
    """The one that leads the queue is killed, and when it is back, the one that leads it then."""
    urls = [host.url for host in cluster]
    broker: dict[str, Any] = {"urls": urls, "queue_type": "quorum"}
    settings = QUICK | {"broker": broker, "worker": {"processes": 2}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings) as node:
        programmed(node, "joe@example.test", "deadline = '5s'\n")
        with Stream(node.port, 0.02) as stream:
            until(lambda: len(hop.parcels) > 20, node=node)
            for _ in range(2):
                name = leader(cluster[0])
                (away,) = [host for host in cluster if host.name == name]
                away.kill()
                wanted = stream.sent + 50
                until(partial(_came, hop, wanted), 60, node)
                away.start()
                until(partial(leaders, away), 60, node)
        until(lambda: len(hop.parcels) == stream.sent, 60, node)
        assert len({parcel.data for parcel in hop.parcels}) == stream.sent  # each of them once
        assert said(node, "quarantine", "list") == []
        until(lambda: not queue(node), node=node)
        clean(node)


def _came(hop: NextHop, count: int) -> bool:
    return len(hop.parcels) > count
