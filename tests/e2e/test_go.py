"""A client that is none of ours and not Postfix: Go's net/smtp, as programs use it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node
from tests.conftest import need
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, until

CONTENT = "From: joe@example.test\r\nSubject: from Gö\r\n\r\n.\r\n..two dots\r\n" + "grüße " * 2000 + "\r\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled."""
    need("go", "golang-go")
    folder = tmp_path_factory.mktemp("go")
    source = shutil.copy(Path(__file__).with_name("client.go"), folder)
    env = os.environ | {
        "GOCACHE": str(folder / "cache"),
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
    }
    subprocess.run(["go", "build", "-o", folder / "client", source], cwd=folder, env=env, check=True)
    return folder / "client"


def _send(client: Path, node: Node, *arguments: str) -> list[str]:
    """Send CONTENT; return what the program said of each recipient."""
    line = [str(client), f"127.0.0.1:{node.port}", "127.0.0.1", *arguments]
    done = subprocess.run(line, input=CONTENT.encode(), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.decode().splitlines()


def test_a_go_program_logs_in_and_every_byte_arrives(
    client: Path, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    listener = {"auth": "require", "tls_certificate": str(cert), "tls_key": str(key)}
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK, listener=listener) as node:
        node.run("user", "add", "joe@example.test")
        password = said(node, "user", "password", "joe@example.test")["password"]
        who = [str(cert), "joe@example.test", password, "joe@example.test"]
        assert _send(client, node, *who, "ann@example.test", "dörte@example.test") == ["ok", "ok"]
        until(lambda: len(hop.parcels) == 2, node=node)
        for parcel in hop.parcels:
            assert parcel.data.endswith(CONTENT.encode())
            assert b"with UTF8SMTPSA id " in parcel.data
            assert (parcel.envelope.body, parcel.envelope.smtputf8) == ("8BITMIME", True)
        assert {parcel.envelope.recipients[0].address for parcel in hop.parcels} == {
            "ann@example.test",
            "dörte@example.test",
        }
        clean(node)


def test_a_go_program_reads_each_refusal_and_goes_on(client: Path, tmp_path: Path) -> None:
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK, mode="proxy") as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "deny"\nreply = "550 5.7.1 Not from you"\n')
        nobody = ["-", "", "", "joe@example.test"]
        assert _send(client, node, *nobody, "ann@example.test", "bob@example.test", "ann@example.test") == [
            "550 5.7.1 Not from you",
            "ok",
            "550 5.7.1 Not from you",
        ]
        assert [parcel.envelope.recipients[0].address for parcel in hop.parcels] == ["bob@example.test"]
        clean(node)
