"""Several nodes on one machine (`node.processes`): they share ports, and every command sees them as one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import smtplib
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node, free_port
from sendswitch.config.processes import folder_of, numbers_in
from sendswitch.mail.ids import from_text, node_of
from sendswitch.reply import Reply
from tests.e2e.laptop import Laptop
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, queue, said, send, until

HOLD = "[[step]]\nuse = 'hold'\n"


@contextlib.contextmanager
def nodes(folder: Path, hop: NextHop, processes: int = 2, **settings: Any) -> Iterator[Node]:
    several = QUICK | {"node": {"processes": processes}} | settings
    with Node(folder, f"127.0.0.1:{hop.port}", settings=several) as node:
        said(node, "node", "ready", "--wait", "60s")
        yield node


def makers(rows: list[dict[str, object]]) -> set[int]:
    """Return the numbers of the nodes that took these deliveries."""
    return {node_of(from_text(str(row["id"]).partition(".")[0])) for row in rows}


def send_until_both(node: Node, to: str, count: int = 12) -> list[dict[str, object]]:
    """Send until both nodes hold mail: the kernel deals connections out as it likes."""
    for n in range(200):
        send(node.port, to, subject=f"number {n}")
        if n + 1 >= count and len(makers(held := said(node, "hold", "list"))) == 2:
            return held  # type: ignore[no-any-return]
    raise AssertionError("one node gets everything")


def pids(node: Node) -> list[int]:
    return [int(one["pid"]) for one in said(node, "node", "list") if one["state"] in ("running", "draining")]


def test_every_command_sees_them_as_one(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop) as node:
        node.add_pipeline("joe@example.test", HOLD)
        held = send_until_both(node, "joe@example.test")
        ids = [str(row["id"]) for row in held]
        assert ids == sorted(ids)  # the oldest first, whichever node has them
        assert [row["id"] for row in said(node, "hold", "list", "--limit", "3")] == ids[:3]
        assert [row["id"] for row in queue(node)] == ids
        assert said(node, "node", "status")["held"] == len(ids)
        assert [(one["name"], one["deliveries"]) for one in top(node)] == [("example.test", len(ids))]
        of_each = {node_of(from_text(id_.partition(".")[0])): id_ for id_ in ids}
        for id_ in of_each.values():
            assert said(node, "queue", "show", id_)["id"] == id_
            assert b"Subject: number" in node.run("message", "raw", id_).stdout.encode()
            assert said(node, "message", "explain", id_)[0]["id"] == id_
        answered = said(node, "hold", "answer", "pass", *of_each.values())
        assert {row["id"] for row in answered} == set(of_each.values())
        until(lambda: len(hop.parcels) == 2, node=node)
        left = next(id_ for id_ in ids if id_ not in of_each.values())
        done = json.loads(node.run("hold", "answer", "pass", left, "7zzzzzzzzzzzz.0", "--json", check=False).stdout)
        assert [(row["id"], row["result"] == "answered") for row in done] == [(left, True), ("7zzzzzzzzzzzz.0", False)]
        said(node, "hold", "answer", "deny", "--where", "to:joe")
        until(lambda: not queue(node), node=node)
        clean(node)


def top(node: Node) -> list[dict[str, Any]]:
    rows = said(node, "queue", "top")
    return [{"name": row["domain"], "deliveries": row["deliveries"]} for row in rows]


def test_a_rule_has_one_number_and_applies_to_all(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop) as node:
        first = said(node, "queue", "suspend", "to:joe@example.test")
        second = said(node, "queue", "suspend", "to:ann@example.test")
        assert [rule["rule"] for rule in said(node, "queue", "rules")] == [first["rule"], second["rule"]] == [1, 2]
        for _ in range(30):
            send(node.port, "joe@example.test")
        until(lambda: all("suspended" in str(row["reply"]) for row in queue(node)), node=node)
        assert len(queue(node)) == 30
        assert not hop.parcels
        assert said(node, "queue", "cancel", "1")["resumed"] == 30
        assert [rule["rule"] for rule in said(node, "queue", "rules")] == [2]
        until(lambda: len(hop.parcels) == 30, node=node)
        assert said(node, "queue", "cancel", "1", code=3)
        clean(node)


def test_a_node_that_is_added_has_the_rules_of_the_others(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop, 3) as node:
        several, webs = node.config.read_text(), node.webs
        node.stop()
        shutil.rmtree(node.data / "nodes")
        node.config.write_text(several.replace("processes = 3", "processes = 1"))
        node.webs = webs[:1]
        node.start()
        for word in ("ann", "joe"):
            said(node, "queue", "suspend", f"to:{word}@example.test")
        said(node, "queue", "cancel", "1")
        node.stop()
        node.config.write_text(several)
        node.webs = webs
        node.start()
        said(node, "node", "ready", "--wait", "60s")
        assert [rule["rule"] for rule in said(node, "queue", "rules")] == [2]
        for _ in range(30):
            send(node.port, "joe@example.test")
        until(lambda: all("suspended by rule 2" in str(row["reply"]) for row in queue(node)), node=node)
        assert (len(makers(queue(node))), hop.parcels) == (3, [])
        assert said(node, "queue", "suspend", "to:bob@example.test")["rule"] == 3
        assert said(node, "queue", "cancel", "2")["resumed"] == 30
        until(lambda: len(hop.parcels) == 30, node=node)
        clean(node)


def test_draining_and_reload_reach_all(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop) as node:
        said(node, "node", "drain")
        with pytest.raises(ConnectionRefusedError):
            send(node.port)
        assert {one["state"] for one in said(node, "node", "list")} <= {"running", "draining"}
        said(node, "node", "resume")
        send(node.port)
        node.config.write_text(node.config.read_text() + '\n[log]\nlevel = "debug"\n')
        assert said(node, "reload") == {"restart": []}
        assert node.log.read_text().count('"event":"configured"') == 2
        trace = said(node, "node", "list")
        assert sorted(Path(str(one["data"])) for one in trace) == [node.data, folder_of(node.data, 2)]


def test_a_node_that_is_killed_starts_again_and_loses_nothing(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop) as node:
        node.add_pipeline("joe@example.test", HOLD)
        held = send_until_both(node, "joe@example.test")
        before = pids(node)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: '"event":"node_restarted"' in node.log.read_text(), node=node)
        # Meanwhile the other one takes mail, and the commands read the files of the one that is gone.
        assert [row["id"] for row in said(node, "hold", "list")] == [row["id"] for row in held]
        said(node, "node", "ready", "--wait", "60s")
        until(lambda: len(set(pids(node)) - set(before)) == 1, node=node)
        said(node, "hold", "answer", "pass", "--where", "to:joe")
        until(lambda: len(hop.parcels) == len(held), node=node)
        until(lambda: not queue(node), node=node)
        clean(node)


def test_mail_of_a_node_that_is_no_more_configured_is_delivered(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop) as node:
        node.add_pipeline("joe@example.test", HOLD)
        held = send_until_both(node, "joe@example.test")
        node.stop()
        node.config.write_text(node.config.read_text().replace("processes = 2", "processes = 1"))
        node.webs = node.webs[:1]
        node.start()
        until(lambda: len(pids(node)) == 2, node=node)
        for _ in range(30):
            send(node.port, "ann@example.test")
        said(node, "hold", "answer", "pass", *(str(row["id"]) for row in held))
        until(lambda: len(hop.parcels) == 30 + len(held), node=node)
        journal = said(node, "message", "list", "to:ann@example.test", "--limit", "100")
        assert makers(journal) == {numbered(node, 1)}
        clean(node)
        node.stop()
        forget_all(folder_of(node.data, 2))
        node.start()  # now there is nothing left to do for it
        until(lambda: len(pids(node)) == 1, node=node)
        assert numbers_in(node.data) == [1, 2]


def forget_all(data: Path) -> None:
    """Remove the final mail of a spool, as the node does after `node.keep`."""
    with contextlib.closing(sqlite3.connect(data / "spool" / "spool.db", isolation_level=None)) as spool:
        for table in ("delivery", "message", "outbox", "recorded", "content"):
            spool.execute(f"DELETE FROM {table}")


def numbered(node: Node, number: int) -> int:
    """Return the number in the ids of a node's messages."""
    folder = str(folder_of(node.data, number))
    return next(int(one["number"]) for one in said(node, "node", "list") if one["data"] == folder)


def test_a_backup_has_the_spools_of_all(tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    with NextHop() as hop:
        with nodes(tmp_path / "old", hop) as node:
            node.add_pipeline("joe@example.test", HOLD)
            held = send_until_both(node, "joe@example.test")
            assert said(node, "backup", "create", str(file))["messages"] == len(held)
        again = Node(tmp_path / "new", f"127.0.0.1:{hop.port}", settings={"node": {"processes": 2}})
        assert said(again, "backup", "restore", str(file))["messages"] == len(held)
        assert [row["id"] for row in said(again, "hold", "list")] == [row["id"] for row in held]
        assert said(again, "queue", "rules")[0]["kind"] == "suspend"


def test_they_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop) as node:
        running = pids(node)
        node.kill()
        until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in running))
        assert node.log.read_text().count('"event":"stopped"') == 2  # in order


def test_an_address_that_another_program_has_is_not_shared_with_it(tmp_path: Path) -> None:
    with NextHop() as hop, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        bind = {"bind": f"127.0.0.1:{other.getsockname()[1]}"}
        node = Node(tmp_path, f"127.0.0.1:{hop.port}", settings={"node": {"processes": 2}}, listener=bind)
        done = node.run("run", check=False)
        assert done.returncode == 75
        assert bind["bind"] in done.stderr


def test_one_that_cannot_start_ends_all(tmp_path: Path) -> None:
    with NextHop() as hop, socket.socket() as other:
        node = Node(tmp_path, f"127.0.0.1:{hop.port}", settings={"node": {"processes": 2}})
        other.bind(("127.0.0.1", node.web + 1))
        other.listen()
        done = node.run("run", check=False)
        assert done.returncode == 75
        assert f"web.bind 127.0.0.1:{node.web + 1}" in done.stderr
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", node.port))


def test_limits_are_those_of_all_together(tmp_path: Path) -> None:
    """Of two connections to the next hop each node has one."""
    hop_limit = QUICK["next_hop"] | {"connections": 2}
    with NextHop() as hop, nodes(tmp_path, hop, next_hop=hop_limit) as node:
        hop.delay = 0.2
        for _ in range(20):
            send(node.port)
        until(lambda: len(hop.parcels) == 20, node=node)
        assert hop.most_at_once <= 2
        clean(node)


def test_the_log_says_which_node_it_was(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop) as node:
        send(node.port)
        until(lambda: len(hop.parcels) == 1, node=node)
        lines = [json.loads(line) for line in node.log.read_text().splitlines()]
        assert {line["node"] for line in lines if line["event"] == "started"} == {1, 2}
        assert all("node" in line for line in lines if line["event"] == "accepted")


def test_ports_are_refused_that_cannot_be_shared(tmp_path: Path) -> None:
    port = free_port()
    for extra in ('[web]\nbind = "127.0.0.1:0"\n', f'[web]\nbind = "127.0.0.1:{port - 1}"\n'):
        file = tmp_path / "sendswitch.toml"
        file.write_text(f'{extra}[node]\nprocesses = 2\n[[listener]]\nbind = "127.0.0.1:{port}"\n')
        node = Node(tmp_path / "x", "127.0.0.1:1")
        node.config = file
        done = node.run("check", check=False)
        assert done.returncode == 2, done.stdout
        assert "processes" in done.stderr or "web port of one of 2 nodes" in done.stderr


def test_smtp_goes_to_both(tmp_path: Path) -> None:
    with NextHop() as hop, nodes(tmp_path, hop, 3) as node:
        for n in range(60):
            with smtplib.SMTP("127.0.0.1", node.port) as client:
                client.sendmail("a@example.org", ["joe@example.test"], f"Subject: {n}\r\n\r\nx\r\n")
        until(lambda: len(hop.parcels) == 60, node=node)
        until(lambda: len(said(node, "message", "list", "state:delivered", "--limit", "100")) == 60, node=node)
        assert len(makers(said(node, "message", "list", "--limit", "100"))) == 3
        clean(node)


@contextlib.contextmanager
def two_machines(tmp_path: Path, hop: NextHop) -> Iterator[tuple[Node, Node]]:
    """Two nodes with one database, the first of them running with three held messages and two deferred ones."""
    shared = QUICK | {"database": {"url": f"sqlite:///{tmp_path}/shared.db"}}
    dead, alive = (Node(tmp_path / name, f"127.0.0.1:{hop.port}", settings=shared) for name in ("dead", "alive"))
    with alive, dead:
        dead.add_pipeline("joe@example.test", HOLD)
        until(lambda: len(said(dead, "node", "list")) == 2, node=dead)
        hop.refuse["ann@example.test"] = Reply(451, "4.0.0", "later")
        for _ in range(3):
            send(dead.port, "joe@example.test")
        for _ in range(2):
            send(dead.port, "ann@example.test")
        until(lambda: len(said(dead, "hold", "list")) == 3, node=dead)
        until(lambda: sum("later" in str(row["reply"]) for row in queue(dead)) == 2, node=dead)
        yield dead, alive


def silence(tmp_path: Path, node: Node) -> None:
    """Let the last heartbeat of a node be an hour ago."""
    with contextlib.closing(sqlite3.connect(tmp_path / "shared.db")) as database:
        database.execute("UPDATE nodes SET seen = seen - 3600 WHERE data = ?", (str(node.data),))
        database.commit()


def test_the_mail_of_a_dead_machine_is_adopted(tmp_path: Path) -> None:
    with NextHop() as hop, two_machines(tmp_path, hop) as (dead, alive):
        before = {str(row["id"]) for row in queue(dead)}
        said(dead, "queue", "suspend", "to:nobody@example.test")
        said(alive, "queue", "suspend", "to:nobody@example.test")
        refused = alive.run("node", "adopt", str(dead.data), check=False)
        assert (refused.returncode, "is in use" in refused.stderr) == (4, True)
        dead.kill()
        refused = alive.run("node", "adopt", str(dead.data), check=False)
        assert (refused.returncode, "seconds ago" in refused.stderr) == (4, True)
        silence(tmp_path, dead)
        assert [one["state"] for one in said(alive, "node", "list") if one["data"] == str(dead.data)] == ["silent"]
        os.chown(alive.data, 65_534, 65_534)
        (taken,) = said(alive, "node", "adopt", str(dead.data))
        assert (taken["deliveries"], taken["data"]) == (5, str(folder_of(alive.data, 2)))
        made = folder_of(alive.data, 2)
        assert {path.stat().st_uid for path in (made.parent, made, *made.rglob("*"))} == {65_534}
        os.chown(alive.data, 0, 0)
        assert alive.run("node", "adopt", str(dead.data), check=False).returncode == 3  # done is done
        alive.stop()
        alive.start()
        until(lambda: len(pids(alive)) == 2, node=alive)
        assert {str(row["id"]) for row in queue(alive)} == before
        assert {one["number"] for one in said(alive, "node", "list")} == {numbered(alive, 1), taken["number"]}
        assert [rule["rule"] for rule in said(alive, "queue", "rules")] == [1, 2]
        hop.refuse.clear()
        said(alive, "hold", "answer", "pass", "--where", "to:joe")
        until(lambda: len(hop.parcels) == 5, node=alive)
        until(lambda: not queue(alive), node=alive)
        clean(alive)
        dead.start()  # the old machine comes back: with an empty spool and another number
        send(dead.port, "carol@example.test")
        until(lambda: len(hop.parcels) == 6, node=dead)
        assert len(said(dead, "node", "list")) == 3
        assert not queue(dead)
        dead.kill()
        silence(tmp_path, dead)
        assert len(said(alive, "node", "adopt", str(dead.data))) == 1  # and it may die again


def test_a_crash_while_adopting_costs_only_time(tmp_path: Path) -> None:
    """The dead machine had two nodes; the crash came when the first one was copied, and the second one half."""
    with NextHop() as hop:
        shared: dict[str, Any] = {"database": {"url": f"sqlite:///{tmp_path}/shared.db"}}
        alive = Node(tmp_path / "alive", f"127.0.0.1:{hop.port}", settings=QUICK | shared)
        third = Node(tmp_path / "third", f"127.0.0.1:{hop.port}", settings=QUICK | shared)
        with alive, third, nodes(tmp_path / "dead", hop, **shared) as dead:
            dead.add_pipeline("joe@example.test", HOLD)
            held = send_until_both(dead, "joe@example.test")
            dead.stop()
            with contextlib.closing(sqlite3.connect(alive.data / "spool" / "spool.db")) as spool:
                (name,) = spool.execute("SELECT value FROM meta WHERE key = 'name'").fetchone()
            for folder in (dead.data, folder_of(dead.data, 2)):
                with contextlib.closing(sqlite3.connect(folder / "spool" / "spool.db")) as spool:
                    (own,) = spool.execute("SELECT value FROM meta WHERE key = 'name'").fetchone()
                with contextlib.closing(sqlite3.connect(tmp_path / "shared.db")) as database:
                    database.execute("UPDATE nodes SET adopter = ? WHERE spool = ?", (name, own))
                    database.commit()
                (folder / "spool").rename(folder / f"spool.adopted.{own}")
                half = alive.data / "nodes" / f".adopting.{own}" / "spool"
                half.mkdir(parents=True)
                (half / "spool.db").write_bytes(b"half of it")
            refused = third.run("node", "adopt", str(dead.data), check=False)
            assert (refused.returncode, "another node's to adopt" in refused.stderr) == (4, True)
            taken = said(alive, "node", "adopt", str(dead.data))
            assert sum(one["deliveries"] for one in taken) == len(held)
            assert numbers_in(alive.data) == [1, 2, 3]
            assert third.run("node", "adopt", str(dead.data), check=False).returncode == 3


def test_a_spool_of_another_database_is_not_adopted(tmp_path: Path) -> None:
    with NextHop() as hop:
        with Node(tmp_path / "other", f"127.0.0.1:{hop.port}") as other:
            send(other.port)
            until(lambda: len(hop.parcels) == 1, node=other)
        with Node(tmp_path / "here", f"127.0.0.1:{hop.port}") as node:
            refused = node.run("node", "adopt", str(other.data), check=False)
            assert (refused.returncode, "none of this database" in refused.stderr) == (4, True)
            assert (other.data / "spool" / "spool.db").exists()
            refused = node.run("node", "adopt", str(tmp_path), check=False)
            assert (refused.returncode, "there is no spool" in refused.stderr) == (3, True)
            refused = node.run("node", "adopt", str(node.data), check=False)
            assert refused.returncode == 4
            damaged = (other.data / "spool" / "spool.db").read_bytes()[:5000]
            (other.data / "spool" / "spool.db").write_bytes(damaged)
            assert node.run("node", "adopt", str(other.data), check=False).returncode in (1, 75)
            assert numbers_in(node.data) == [1]


def test_a_worker_of_a_users_own_serves_all_of_them(tmp_path: Path) -> None:
    """Over one address; a node that is killed is served again."""
    worker = {"worker": {"processes": 1, "offline_after": "60s"}}
    with NextHop() as hop, nodes(tmp_path, hop, 3, **worker) as node:
        node.add_pipeline("joe@example.test", "[[step]]\nuse = 'tag'\ntags = ['SEEN']\n")
        said(node, "route", "set", "joe@example.test", "--run-by", "own")
        key = said(node, "key", "add", "joe@example.test")["key"]
        laptop = Laptop(node, key)
        try:
            until(lambda: len([one for one in said(node, "worker", "list") if one["user"]]) == 3, node=node)
            deliver(node, hop, 30)
            os.kill(next(pid for pid in pids(node) if pid != first_pid(node)), signal.SIGKILL)
            until(lambda: len([one for one in said(node, "worker", "list") if one["user"]]) == 3, 60, node)
            deliver(node, hop, 30)
            direct = subprocess.run(
                node.line("work", "--url", f"http://127.0.0.1:{node.webs[1]}", "--token", key),
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert direct.returncode != 0
            assert "connect to the first one's web port" in direct.stderr
        finally:
            assert laptop.stop() == 0, laptop.log.read_text()
        assert "Traceback" not in laptop.log.read_text()
        clean(node)


def first_pid(node: Node) -> int:
    return next(int(one["pid"]) for one in said(node, "node", "list") if one["data"] == str(node.data))


def deliver(node: Node, hop: NextHop, count: int) -> None:
    """Send mail to Joe, and see that his worker has seen all of it."""
    before = len(hop.parcels)
    for _ in range(count):
        send(node.port, "joe@example.test", body=b"x" * 300_000 + b"\r\n")
    until(lambda: len(hop.parcels) == before + count, node=node)
    assert all(b"SEEN" in parcel.data[:2000] for parcel in hop.parcels[before:])


def test_a_damaged_spool_that_is_left_over_stops_no_other(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.stop()
        left = folder_of(node.data, 5) / "spool"
        left.mkdir(parents=True)
        (left / "spool.db").write_bytes(b"rubbish" * 1000)
        node.start()
        send(node.port)
        until(lambda: len(hop.parcels) == 1, node=node)
        until(lambda: '"event":"node_restarted","node":5' in node.log.read_text(), node=node)
