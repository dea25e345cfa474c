"""Workers of users' own, as on a laptop: over the web port with a key, or over RabbitMQ with an account, and mail while
they are away.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node
from sendswitch.bench.rabbitmq import RabbitMQ
from tests.conftest import need
from tests.e2e.laptop import Laptop
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, send, until
from tests.servers import rabbitmq, slapd

JOE, ANN = "joe@example.test", "ann@example.test"
# A user's program, which no machine of the site has.
PROGRAM = """
import asyncio

from sendswitch.mail.verdict import Verdict

async def process(mail, context):
    if "slow" in mail.subject:
        await asyncio.sleep(60)
    return Verdict.tagged("SEEN", reason=f"{mail.size} bytes")
"""
SETTINGS = QUICK | {"worker": {"processes": 1, "offline_after": "1.5s"}}


@contextlib.contextmanager
def laptop(node: Node, key: str, *options: str, name: str = "laptop") -> Iterator[Laptop]:
    one = Laptop(node, key, *options, name=name)
    try:
        until(lambda: name in names(node), node=node)
        yield one
    finally:
        one.stop(signal.SIGKILL)


def names(node: Node) -> list[str]:
    return [one["name"] for one in said(node, "worker", "list")]


@pytest.fixture(params=["web", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> RabbitMQ | None:
    """The way of the workers: a RabbitMQ, or None for the web port."""
    if request.param == "web":
        return None
    server: RabbitMQ = request.getfixturevalue("managed_rabbit")
    return server


def settings(server: RabbitMQ | None) -> dict[str, Any]:
    broker = {"urls": [server.url], "management": server.management} if server is not None else {}
    return SETTINGS | {"broker": broker}


def own(node: Node, address: str, when_offline: str = "pass", server: RabbitMQ | None = None) -> str:
    """Have a user's mail go to workers of the user's own; return a key or the URL of an account for them."""
    node.run("user", "add", address, check=False)
    if server is not None:
        line = ("route", "install", address, "--new-password", "--when-offline", when_offline)
        return str(said(node, *line)["url"])
    said(node, "route", "set", address, "--run-by", "own", "--when-offline", when_offline)
    made: dict[str, Any] = said(node, "key", "add", address, "--name", "laptop")
    return str(made["key"])


def subjects(hop: NextHop) -> int:
    """Return how many different messages have arrived."""
    return len({line for parcel in hop.parcels for line in parcel.data.split(b"\r\n") if line.startswith(b"Subject:")})


def program(node: Node, text: str = PROGRAM) -> Path:
    (node.folder / "program.py").write_text(text)
    file = node.folder / "own.toml"
    file.write_text(f"[[step]]\nuse = 'python'\nfile = '{node.folder}/program.py'\n")
    return file


def story(node: Node, number: int = 0) -> str:
    """Return the story of the message of this number, the newest first."""
    listed = said(node, "message", "list")
    return node.run("message", "explain", listed[number]["id"]).stdout if len(listed) > number else ""


def test_a_laptop_runs_its_own_pipeline(tmp_path: Path, server: RabbitMQ | None) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings(server)) as node:
        key, file = own(node, JOE, server=server), program(node)
        with laptop(node, key, "--pipeline", str(file), "--reload") as worker:
            send(node.port)
            send(node.port, body=b"x" * 70 + b"\r\n" + b"long line\r\n" * 300_000)  # too large to come with the task
            until(lambda: len(hop.parcels) == 2, node=node)
            assert all(b"SEEN" in parcel.data for parcel in hop.parcels)
            until(lambda: "laptop" in story(node), node=node)
            assert f"The worker laptop of {JOE} ran a pipeline from a file, digest " in story(node)
            (one,) = [one for one in said(node, "worker", "list") if one["name"] == "laptop"]
            assert (one["queues"], one["done"]) == ([f"{'web' if server is None else 'tasks'}.{JOE}"], 2)
            file.write_text("[[step]]\nuse = 'quarantine'\n")
            until(lambda: "pipeline_read" in worker.log.read_text())
            send(node.port)
            until(lambda: said(node, "quarantine", "list"), node=node)
            file.write_text("[[step]]\nuse = 'quarantin'\n")
            until(lambda: "did you mean 'quarantine'" in worker.log.read_text())
            assert worker.stop() == 0
        clean(node)


def test_a_worker_runs_the_pipeline_that_the_node_has(tmp_path: Path, server: RabbitMQ | None) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings(server)) as node:
        key = own(node, JOE, server=server)
        with laptop(node, key):
            send(node.port)
            until(lambda: "start the worker with --pipeline" in node.log.read_text(), node=node)
            said(node, "list", "add", "deny", "sender@example.org", "--for", JOE)
            node.add_pipeline(JOE, "deny = 'quarantine'\n[[step]]\nuse = 'lists'\n")
            until(lambda: said(node, "quarantine", "list"), node=node)
            until(lambda: "ran version 1 of the pipeline" in story(node), node=node)


def test_mail_of_a_worker_that_went_never_passes(tmp_path: Path, server: RabbitMQ | None) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings(server)) as node:
        key, file = own(node, JOE, "pass", server), program(node)
        with laptop(node, key, "--pipeline", str(file)) as worker:
            send(node.port, subject="slow")
            until(lambda: any(one["leased"] for one in said(node, "worker", "list")), node=node)
            worker.stop(signal.SIGKILL)
        # What comes while nobody is there passes, as configured; what the worker had waits.
        until(lambda: '"event":"workers_offline"' in node.log.read_text(), node=node)
        send(node.port, subject="quick")
        until(lambda: hop.parcels, node=node)
        until(lambda: f"no worker of {JOE} is online, and when_offline is pass" in story(node), node=node)
        node.kill()  # and it still does after a restart
        node.start()
        until(lambda: node.log.read_text().count('"event":"workers_offline"') == 2, node=node)
        send(node.port, subject="quick")
        until(lambda: len(hop.parcels) == 2, node=node)
        assert [row["recipient"] for row in said(node, "queue", "list")] == [JOE]
        program(node, PROGRAM.replace("60", "0"))
        with laptop(node, key, "--pipeline", str(file)):
            until(lambda: len(hop.parcels) == 3, node=node)
        assert [b"slow" in parcel.data for parcel in hop.parcels] == [False, False, True]
        clean(node)


def test_deferred_mail_comes_as_soon_as_the_laptop_is_open(tmp_path: Path, server: RabbitMQ | None) -> None:
    patient = settings(server) | {"next_hop": {"first_retry": "1h", "last_retry": "2h"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=patient) as node:
        key, file = own(node, JOE, "defer", server), program(node)
        for _ in range(5):
            send(node.port)
        until(lambda: node.log.read_text().count('"event":"deferred"') == 5, node=node)
        send(node.port, ANN)  # nobody else waits
        until(lambda: len(hop.parcels) == 1, node=node)
        with laptop(node, key, "--pipeline", str(file)):
            until(lambda: len(hop.parcels) == 6, node=node)
        clean(node)


def test_a_key_lets_its_user_in_until_it_is_removed(tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=SETTINGS) as node:
        key, file = own(node, JOE), program(node)
        wrong = Laptop(node, "ssk_" + "x" * 43, "--pipeline", str(file), name="wrong")
        assert wrong.process.wait(30) != 0
        assert "this key is not valid" in wrong.log.read_text()
        with laptop(node, key, "--pipeline", str(file)) as worker:
            (one,) = said(node, "key", "list")
            assert (one["address"], one["scope"], one["name"]) == (JOE, "work", "laptop")
            assert key not in node.run("key", "list", "--json").stdout + node.log.read_text() + worker.log.read_text()
            said(node, "key", "rm", str(one["number"]))
            until(lambda: "laptop" not in names(node), node=node)
            until(lambda: "this key is not valid" in worker.log.read_text())
            assert worker.process.poll() is None  # it waits for its key to come back
            send(node.port)
            until(lambda: hop.parcels, node=node)


def test_a_node_and_its_workers_lose_each_other(tmp_path: Path, server: RabbitMQ | None) -> None:
    patient = settings(server) | {"worker": {"offline_after": "60s"}}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=patient) as node:
        key, file = own(node, JOE, server=server), program(node)
        with laptop(node, key, "--pipeline", str(file)):
            for number in range(4):
                node.kill()
                node.start()
                for n in range(5):
                    send(node.port, subject=f"message {number}.{n}")
                # One whose reply was lost with the node may come twice.
                until(lambda number=number: subjects(hop) == 5 * number + 5, node=node)  # type: ignore[misc]
        assert said(node, "quarantine", "list") == []
        clean(node)


def test_accounts_in_rabbitmq_come_and_go(tmp_path: Path, managed_rabbit: RabbitMQ) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=settings(managed_rabbit)) as node:
        url, file = own(node, JOE, server=managed_rabbit), program(node)
        assert said(node, "route", "install", JOE) == {"address": JOE, "when_offline": "pass"}  # it has its password
        with laptop(node, url, "--pipeline", str(file)) as worker:
            send(node.port, subject="slow")
            until(lambda: any(one["leased"] for one in said(node, "worker", "list")), node=node)
            # Who waits for other workers waits no more when the site's are to do it.
            node.add_pipeline(JOE, "[[step]]\nuse = 'tag'\ntags = ['SITE']\n")
            said(node, "route", "set", JOE, "--run-by", "site")
            until(lambda: hop.parcels, node=node)
            assert b"SITE" in hop.parcels[0].data
            assert "route install" in str(said(node, "route", "set", JOE, "--run-by", "own-rabbitmq", code=4))
            said(node, "route", "install", JOE, "--no-account", "--when-offline", "defer")
            assert said(node, "broker", "check") == {"well": True}
            assert worker.process.poll() is None
            said(node, "user", "rm", JOE, "--yes")
            until(lambda: "ACCESS_REFUSED" in worker.log.read_text())
        managed_rabbit.control("add_user", ANN, "secret")
        managed_rabbit.control("set_permissions", ANN, "", "", "")
        assert f"the account {ANN} is of no route" in str(said(node, "broker", "check", code=75))
        said(node, "route", "uninstall", ANN)
        assert said(node, "broker", "check") == {"well": True}
        for nobody in ("pool", "guest"):
            said(node, "route", "uninstall", nobody, code=2)
        assert said(node, "broker", "check") == {"well": True}
        secret = url.partition(":")[2].partition("@127")[0].rpartition(":")[2]
        assert len(secret) > 20
        assert secret not in node.log.read_text() + worker.log.read_text()


def test_mail_waits_while_rabbitmq_is_away(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """That nobody knows of a worker is not that there is none."""
    folder = tmp_path_factory.mktemp("rabbitmq")
    with (
        rabbitmq(folder, plugins=("rabbitmq_management",)) as server,
        NextHop() as hop,
        Node(
            tmp_path, f"127.0.0.1:{hop.port}", settings=settings(server) | {"worker": {"offline_after": "8s"}}
        ) as node,
    ):
        url, file = own(node, JOE, server=server), program(node)
        with laptop(node, url, "--pipeline", str(file)):
            server.kill()
            until(lambda: "broker_away" in node.log.read_text(), node=node)
            send(node.port)
            time.sleep(9)  # longer than the time after which mail would pass
            assert hop.parcels == []
            server.start()
            until(lambda: hop.parcels, node=node)
            assert b"SEEN" in hop.parcels[0].data
        clean(node)


def test_users_of_a_directory_get_their_own_mail_only(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    need("slapd", "slapd")
    page = (Path(__file__).parents[2] / "docs/howto/run-your-pipeline-over-rabbitmq.md").read_text()
    advanced = page.partition("```erlang\n")[2].partition("```")[0]
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(slapd(tmp_path_factory.mktemp("slapd")))
        for there, here in (
            ('"ldap.example.com"', '"127.0.0.1"'),
            ("{port, 389}", f"{{port, {port}}}"),
            ("{use_starttls, true}", "{use_starttls, false}"),
            ("dc=com", "dc=test"),
        ):
            assert there in advanced
            advanced = advanced.replace(there, here)
        plugins = ("rabbitmq_auth_backend_ldap",)
        server = stack.enter_context(rabbitmq(tmp_path_factory.mktemp("rabbitmq"), plugins=plugins, advanced=advanced))
        hop = stack.enter_context(NextHop())
        broker: dict[str, Any] = {"broker": {"urls": [server.url]}}
        node = stack.enter_context(Node(tmp_path, f"127.0.0.1:{hop.port}", settings=SETTINGS | broker))
        for address in (JOE, ANN):
            node.run("user", "add", address)
            assert "url" not in said(node, "route", "install", address, "--no-account", "--when-offline", "defer")

        def url(user: str, password: str) -> str:
            return f"amqp://{user}%40example.test:{password}@127.0.0.1:{server.port}/"

        wrong = Laptop(node, url("joe", "pw-ann"), name="wrong")
        until(lambda: "ACCESS_REFUSED" in wrong.log.read_text())
        wrong.stop()
        program(node)
        with laptop(node, url("joe", "pw-joe"), "--pipeline", str(node.folder / "own.toml")):
            send(node.port)
            until(lambda: hop.parcels, node=node)
            assert b"SEEN" in hop.parcels[0].data
            # What another user's worker wants is refused.
            thief = Laptop(node, url("ann", "pw-ann"), "--queue", f"tasks.{JOE}", name="thief")
            until(lambda: "ACCESS_REFUSED" in thief.log.read_text() or "refused" in thief.log.read_text())
            thief.stop()
            assert "thief" not in names(node)
