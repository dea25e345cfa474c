"""Backups while mail flows, restored elsewhere; and the doctor on healthy and sick installations."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sendswitch.bench.peers import Node, free_port
from sendswitch.db.connect import open_database
from sendswitch.processors.base import Notice
from sendswitch.reply import Reply
from sendswitch.webhooks.outbox import PLACE, Outbox
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, Stream, queue, said, send, until

LARGE = b"x" * 400_000 + b"\r\n"


def test_a_backup_is_made_while_mail_flows_and_restored_elsewhere(tmp_path: Path, database: str) -> None:
    """From SQLite into each kind of database; what was on its way goes nowhere before somebody says so."""
    file = tmp_path / "backup.tar"
    with NextHop() as hop, Node(tmp_path / "old", f"127.0.0.1:{hop.port}", settings=QUICK) as old:
        old.add_pipeline("ann@example.test", '[[step]]\nuse = "quarantine"\n')
        hop.refuse = {"later@example.test": Reply(450, "4.2.1", "busy")}
        send(old.port, "ann@example.test", subject="large, quarantined", body=LARGE)
        send(old.port, "later@example.test", subject="large, waiting", body=LARGE)
        until(lambda: len(said(old, "quarantine", "list")) == 1, node=old)
        outbox = Outbox(tmp_path / "old" / "data" / PLACE)
        outbox.put(Notice("msg_1", "https://192.0.2.1/", "ann@example.test", ("whsec_x",), "0" * 13, False, "{}"), 1.0)
        outbox.close()
        with Stream(old.port) as stream:
            until(lambda: stream.sent > 30)
            made = said(old, "backup", "create", str(file))
            before = stream.sent
            until(lambda: stream.sent > before + 10)
        assert made["messages"] > 30
        assert file.stat().st_mode & 0o777 == 0o600
        assert "there already" in said(old, "backup", "create", str(file), code=4)["errors"][0]
        until(lambda: len(queue(old)) == 1, node=old)
    with NextHop() as hop:
        new = Node(tmp_path / "new", f"127.0.0.1:{hop.port}", settings=QUICK | {"database": {"url": database}})
        restored = said(new, "backup", "restore", str(file))
        assert restored["messages"] == made["messages"]
        assert [event["id"] for event in said(new, "webhook", "events")] == ["msg_1"]
        assert said(new, "audit")["findings"] == []
        assert "spool already" in said(new, "backup", "restore", str(file), code=4)["errors"][0]
        with new:
            until(lambda: said(new, "queue", "list", "to:later")[0]["reply"].startswith("suspended"), node=new)
            assert not hop.parcels
            assert [row["address"] for row in said(new, "user", "list")] == ["ann@example.test"]
            # What comes now is not held back, and the database goes on counting where it was.
            send(new.port, "now@example.test", subject="came after the restore")
            until(lambda: any(b"came after the restore" in parcel.data for parcel in hop.parcels), node=new)
            hop.parcels.clear()
            assert "before:0s" in str(found(new, 0)["rules"])
            said(new, "user", "add", "dave@example.test")
            new.add_pipeline("dave@example.test", '[[step]]\nuse = "pass"\n')
            new.add_pipeline("ann@example.test", '[[step]]\nuse = "quarantine"\nreason = "again"\n')
            said(new, "queue", "resume")
            until(lambda: any(b"large, waiting" in parcel.data for parcel in hop.parcels), node=new)
            (kept,) = said(new, "quarantine", "list")
            said(new, "quarantine", "release", kept["id"])
            until(lambda: any(b"large, quarantined" in parcel.data for parcel in hop.parcels), node=new)
            send(new.port, "ann@example.test", subject="a new one")
            until(lambda: len(said(new, "quarantine", "list")) == 1, node=new)
            assert said(new, "audit")["findings"] == []


def test_what_is_no_backup_changes_nothing(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path / "old", f"127.0.0.1:{hop.port}", settings=QUICK) as old:
        send(old.port)
        until(lambda: said(old, "message", "list", "state:delivered"), node=old)
        said(old, "backup", "create", str(tmp_path / "good.tar"))
    good = (tmp_path / "good.tar").read_bytes()
    new = Node(tmp_path / "new", "127.0.0.1:1")
    place = good.index(b'"accepted"')
    for name, data, code in (
        ("none.tar", None, 3),
        ("empty.tar", b"", 1),
        ("rubbish.tar", b"rubbish" * 1000, 1),
        ("cut.tar", good[: len(good) // 2], 1),
        ("changed.tar", good[:place] + b'"Accepted"' + good[place + 10 :], 1),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        assert said(new, "backup", "restore", str(tmp_path / name), code=code)["errors"], name
        assert not (new.data / "spool").exists()
    other = Node(tmp_path / "other", "127.0.0.1:1")
    open_database(f"sqlite:///{other.data}/sendswitch.db").dispose()
    other.run("user", "add", "ann@example.test")
    assert "into an empty one" in said(other, "backup", "restore", str(tmp_path / "good.tar"), code=4)["errors"][0]
    assert not (other.data / "spool").exists()
    assert said(new, "backup", "restore", str(tmp_path / "good.tar"))["messages"] == 1


# The doctor


def found(node: Node, code: int = 1) -> dict[str, list[dict[str, str]]]:
    out: dict[str, list[dict[str, str]]] = {}
    for row in said(node, "doctor", code=code):
        out.setdefault(row["what"], []).append(row)
    return out


def test_the_doctor_finds_nothing_wrong_with_a_healthy_node(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "pass"\n')
        send(node.port, "ann@example.test")
        until(lambda: hop.parcels and not queue(node), node=node)
        rows = said(node, "doctor")
        assert {row["what"] for row in rows if row["status"] == "ok"} >= {
            *("configuration", "disk", "ledger", "database", "pipelines", "node", "next hop"),
        }
        assert not [row for row in rows if row["status"] == "problem"]
        assert all(row["do"] for row in rows if row["status"] != "ok")
        assert "next hop" in node.run("doctor").stdout


def test_the_doctor_finds_what_is_broken(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "pass"\n')
        send(node.port)
        until(lambda: hop.parcels and not queue(node), node=node)
        node.run("node", "drain")
        assert "node resume" in found(node, 0)["node"][1]["do"]
    text = node.config.read_text()
    sick = found(node)
    assert sick["node"][0]["status"] == "problem"
    assert sick["next hop"][0]["status"] == "problem"
    node.config.write_text(text + f'[database]\nurl = "postgresql+psycopg://joe:hidden@127.0.0.1:{free_port()}/x"\n')
    node.config.chmod(0o644)
    sick = found(node)
    assert "chmod 640" in sick["secrets"][0]["do"]
    assert any(row["status"] == "problem" for row in sick["database"])
    assert "hidden" not in str(sick)
    folder = node.config.parent / "conf.d"
    folder.mkdir()
    node.config.write_text(text)
    (folder / "db.toml").write_text(
        f'[database]\nurl = "postgresql+psycopg://127.0.0.1:{free_port()}/x?user=joe&password=hidden"\n'
    )
    (folder / "db.toml").chmod(0o644)
    sick = found(node)
    assert "db.toml" in sick["secrets"][0]["found"]
    assert "hidden" not in str(sick)
    assert "hidden" not in node.run("user", "list", check=False).stderr
    (folder / "db.toml").unlink()
    node.config.write_text(text)
    with closing(sqlite3.connect(node.data / "sendswitch.db")) as connection, connection:
        connection.execute("UPDATE pipelines SET text = '[[step]]\nuse = \"gone\"\n'")
    with closing(sqlite3.connect(node.data / "spool" / "spool.db")) as connection, connection:
        connection.execute("DELETE FROM outbox WHERE event = 'delivered'")
    sick = found(node)
    assert "no processor 'gone'" in sick["pipeline"][0]["found"]
    assert sick["ledger"][0]["status"] == "problem"
    node.config.write_text(text + "[nodes]\n")
    assert "did you mean 'node'" in found(node)["configuration"][0]["found"]
    node.config.write_text(text)
    # In the middle of the file, past what is read at opening.
    with (node.data / "spool" / "spool.db").open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 16384)
    assert "spool" in found(node)


def test_the_doctor_changes_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path, f"maildir:{tmp_path}/mail")
    before = sorted(tmp_path.rglob("*"))
    found(node)
    assert sorted(tmp_path.rglob("*")) == before
