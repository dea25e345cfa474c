"""Each of several nodes on one machine: its part of one configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from sendswitch.config.model import Config
from sendswitch.config.processes import folder_of, folders_in, numbers_in, of_process, web_of


def config(processes: int, **more: object) -> Config:
    return Config.model_validate({"node": {"data": "/data", "processes": processes}} | more)


def test_one_alone_has_all() -> None:
    one = config(1)
    assert of_process(one, 1, 1) is one


def test_each_has_its_place_and_its_share() -> None:
    whole = config(
        3,
        next_hop={"connections": 10},
        worker={"processes": 2},
        canary={"to": "x@example.test"},
        web={"bind": "[::1]:80"},
        listener=[{"bind": "127.0.0.1:25", "connections": 7}],
    )
    parts = [of_process(whole, n, 3) for n in (1, 2, 3)]
    assert [part.node.data for part in parts] == [Path("/data"), Path("/data/nodes/2"), Path("/data/nodes/3")]
    assert [part.next_hop.connections for part in parts] == [4, 3, 3]
    assert [part.listener[0].connections for part in parts] == [3, 2, 2]
    assert [part.worker.processes for part in parts] == [1, 1, 1]  # at least one each
    assert [part.web.bind for part in parts] == ["[::1]:80", "[::1]:81", "[::1]:82"]
    assert [part.canary.to for part in parts] == ["x@example.test", "", ""]
    assert {part.database_url for part in parts} == {"sqlite:////data/sendswitch.db"}
    assert sum(part.node.max_memory for part in parts) == whole.node.max_memory


def test_no_limit_stays_none() -> None:
    assert of_process(config(2, node={"processes": 2, "max_memory": 0}), 2, 2).node.max_memory == 0


def test_one_too_many_takes_no_mail() -> None:
    left = of_process(config(1), 2, 1)
    assert left.listener == ()
    assert left.web.bind == "127.0.0.1:0"  # those behind the first one's may be another program's
    assert web_of(config(1, web={"bind": "127.0.0.1:0"}), 1, 1) == "127.0.0.1:0"
    assert left.node.data == Path("/data/nodes/2")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"web": {"bind": "127.0.0.1:0"}}, "127.0.0.1:0 cannot be shared by 3 nodes"),
        ({"listener": [{"bind": "unix:/run/x"}]}, "unix:/run/x cannot be shared"),
        ({"web": {"bind": "127.0.0.1:8023"}}, "127.0.0.1:8025 is the web port of one of 3 nodes"),
        ({"web": {"bind": "127.0.0.1:65534"}}, "there are not 3 ports"),
    ],
)
def test_what_cannot_be_shared_is_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(3, **more)


def test_spools_are_found(tmp_path: Path) -> None:
    assert numbers_in(tmp_path) == [1]
    for name in ("10", "2", "x", "1"):
        spool = tmp_path / "nodes" / name / "spool"
        spool.mkdir(parents=True)
        (spool / "spool.db").touch()
    (tmp_path / "nodes" / "3").mkdir()
    assert numbers_in(tmp_path) == [1, 2, 10]
    assert folders_in(tmp_path) == [folder_of(tmp_path, n) for n in (1, 2, 10)]
