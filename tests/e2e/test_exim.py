"""Exim on both sides: as the next hop, with CHUNKING and without, and as the MTA before us."""

from __future__ import annotations

import email
import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node, free_port, stop, wait_for_port
from tests.conftest import missing, need_root
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, until

EXIM = Path(__file__).parents[2] / ".exim" / "usr" / "sbin" / "exim4"

CONFIGURATION = """
exim_path = {path}
primary_hostname = exim.example.test
qualify_domain = example.test
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
exim_user = mail
exim_group = mail
never_users =
keep_environment =
smtp_accept_queue_per_connection = 0
tls_advertise_hosts =
chunking_advertise_hosts = {chunking}
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
log_selector = +smtp_protocol_error
acl_smtp_rcpt = rcpt
acl_smtp_data = accept

begin acl
rcpt:
  defer local_parts = later
        condition = ${{if !exists{{{folder}/now}}}}
        message = busy
  deny local_parts = never
       message = no such user here
  accept

begin routers
{router}

begin transports
box:
  driver = appendfile
  directory = {folder}/mail/$local_part_data
  maildir_format
  create_directory
  user = mail
  group = mail
  delivery_date_add
  envelope_to_add
out:
  driver = smtp
  port = {onward}
  allow_localhost
  hosts_try_chunking = *
  hosts_try_fastopen =

begin retry
* * F,1m,1s
"""
# What a client says is tainted; of the names in a list Exim makes file names.
DELIVER = "all:\n  driver = accept\n  local_parts = ann : later : joe\n  transport = box\n"
ONWARD = "all:\n  driver = manualroute\n  route_list = * 127.0.0.1\n  transport = out\n  self = send\n"


class Exim:
    """A private Exim. It delivers into Maildirs, or hands everything on to a port."""

    def __init__(self, folder: Path, *, chunking: bool = True, onward: int = 0) -> None:
        self.folder, self.port = folder, free_port()
        for part in ("spool", "log", "mail"):
            (folder / part).mkdir(parents=True)
        # Its processes that are not root's start it again, and the checkout may lie where only root may read.
        self._program = Path(shutil.copy(EXIM, folder / "exim4"))
        values = {
            "path": self._program,
            "folder": folder,
            "port": self.port,
            "chunking": "*" if chunking else "",
            "onward": onward or 25,
        }
        text = CONFIGURATION.format(**values, router=ONWARD if onward else DELIVER)
        (folder / "exim.conf").write_text(text)
        subprocess.run(["chown", "-R", "mail:mail", folder], check=True)
        subprocess.run(["chown", "root:root", folder / "exim.conf", self._program], check=True)

    def __enter__(self) -> Exim:
        line = [str(self._program), "-C", str(self.folder / "exim.conf"), "-bdf", "-q1s"]
        with (self.folder / "stdout").open("wb") as out:
            self._process = subprocess.Popen(line, stdout=out, stderr=out)
        wait_for_port(self.port, self._process)
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)

    def messages(self, user: str) -> list[bytes]:
        """Return what was delivered to a user."""
        new = self.folder / "mail" / user / "new"
        return [path.read_bytes() for path in new.iterdir()] if new.exists() else []


@pytest.fixture(autouse=True)
def _unpacked() -> None:
    need_root()
    if not EXIM.exists():
        missing("Exim is missing; tools/exim .exim unpacks it")


@pytest.fixture(params=[True, False], ids=["chunking", "no chunking"])
def hop(request: pytest.FixtureRequest, public: Path) -> Iterator[Exim]:
    """An Exim that mail ends at."""
    with Exim(public / "exim", chunking=request.param) as exim:
        yield exim


LINES = ["short", ".", "..two", "x" * 990, "\u00e4 \u2603", "", "last"]


def sent(port: int, *to: str, subject: str = "x") -> None:
    body = "\r\n".join(LINES) + "\r\n"
    head = f"From: joe@example.org\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\n"
    head += "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    with smtplib.SMTP("127.0.0.1", port, timeout=20, local_hostname="client.example") as client:
        client.sendmail("joe@example.org", list(to), (head + body).encode(), ["BODY=8BITMIME"])


def test_exim_gets_each_message_once_and_whole(tmp_path: Path, hop: Exim) -> None:
    one = {"next_hop": QUICK["next_hop"] | {"connections": 1}}
    with Node(tmp_path, f"127.0.0.1:{hop.port}", settings=one) as node:
        for n in range(40):
            sent(node.port, "ann@example.test", subject=f"number {n}")
        until(lambda: len(hop.messages("ann")) >= 40, node=node)
        clean(node)
        found = [email.message_from_bytes(data) for data in hop.messages("ann")]
        assert sorted(str(one["Subject"]) for one in found) == sorted(f"number {n}" for n in range(40))
        for mail in found:
            payload = mail.get_payload(decode=True)
            assert isinstance(payload, bytes)
            assert payload.decode().splitlines() == LINES


def test_each_of_exim_s_answers_is_its_recipient_s(tmp_path: Path, hop: Exim) -> None:
    with Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        sent(node.port, "ann@example.test", "later@example.test", "never@example.test")
        until(lambda: len(said(node, "message", "list", "to:later", "state:accepted")) == 1, node=node)
        until(lambda: said(node, "message", "list", "to:never", "state:bounced"), node=node)
        (never,) = said(node, "message", "list", "to:never")
        assert never["last_answer"].startswith("550")
        assert "no such user here" in never["last_answer"]
        (hop.folder / "now").touch()
        until(lambda: hop.messages("later"), node=node)
        until(lambda: hop.messages("joe"), node=node)  # the report
        clean(node)
        assert [len(hop.messages(name)) for name in ("ann", "later", "never", "joe")] == [1, 1, 0, 1]


def test_exim_before_us_hands_on_what_it_was_given(tmp_path: Path, public: Path) -> None:
    """Two recipients in one transaction, of which one has a pipeline."""
    with NextHop() as end, Node(tmp_path, f"127.0.0.1:{end.port}", settings=QUICK) as node:
        node.add_pipeline("bob@example.test", '[[step]]\nuse = "tag"\ntags = ["SEEN"]\n')
        with Exim(public / "exim", onward=node.port) as exim:
            sent(exim.port, "ann@example.test", "bob@example.test", subject="round")
            until(lambda: len(end.parcels) >= 2, node=node)
            clean(node)
        to = sorted(recipient.address for parcel in end.parcels for recipient in parcel.envelope.recipients)
        assert to == ["ann@example.test", "bob@example.test"]
        for parcel in end.parcels:
            assert parcel.data.partition(b"\r\n\r\n")[2].decode().splitlines() == LINES
        rows = said(node, "message", "list", "subject:round")
        assert {row["client"] for row in rows} == {"127.0.0.1"}
