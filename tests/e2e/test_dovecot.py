"""Dovecot's LMTP as the next hop: one reply for each recipient, one of them over quota or unknown."""

from __future__ import annotations

import os
import smtplib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node, free_port, stop, wait_for_port
from tests.conftest import need
from tests.servers import as_of_dovecot_2_4

_BOTH = """
protocols = lmtp
listen = 127.0.0.1
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
ssl = no
default_internal_user = {internal}
default_login_user = {login}
first_valid_uid = 1
first_valid_gid = 1
mail_uid = {user}
mail_gid = {group}
postmaster_address = postmaster@example.test
service lmtp {{
  inet_listener lmtp {{
    port = {port}
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""
_BEFORE_2_4 = """
mail_location = maildir:{folder}/mail/%n/Maildir
mail_plugins = quota
plugin {{
  quota = maildir:User quota
  quota_exceeded_message = Mailbox is full
}}
passdb {{
  driver = passwd-file
  args = username_format=%u {folder}/passwd
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {folder}/passwd
  override_fields = uid={user} gid={group} home={folder}/mail/%n
}}
"""
_AS_OF_2_4 = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
mail_driver = maildir
mail_path = {folder}/mail/%{{user | username}}/Maildir
mail_plugins {{
  quota = yes
}}
quota "User quota" {{
  driver = maildir
}}
quota_storage_size = 100M
quota_storage_grace = 0
quota_exceeded_message = Mailbox is full
passdb passwd-file {{
  passwd_file_path = {folder}/passwd
}}
userdb passwd-file {{
  passwd_file_path = {folder}/passwd
  fields {{
    uid = {user}
    gid = {group}
    home = {folder}/mail/%{{user | username}}
  }}
}}
"""


class Dovecot:
    """A private Dovecot that takes mail for joe, ann and bob over LMTP."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()

    def start(self) -> None:
        folder = self.folder
        for part in ("run", "state", "mail", "home"):
            (folder / part).mkdir(parents=True)
        root = os.getuid() == 0
        user = "nobody" if root else str(os.getuid())
        if root:
            subprocess.run(["chown", "nobody", folder / "mail"], check=True)
        users = "".join(f"{name}@example.test:{{PLAIN}}x::::::\n" for name in ("joe", "ann", "bob"))
        users += "full@example.test:{PLAIN}x::::::userdb_quota_rule=*:bytes=100 userdb_quota_storage_size=100B\n"
        (folder / "passwd").write_text(users)
        (folder / "passwd").chmod(0o644)
        form = _AS_OF_2_4 if as_of_dovecot_2_4() else _BEFORE_2_4
        values = {
            "folder": folder,
            "port": self.port,
            "user": user,
            "group": "nogroup" if root else user,
            "internal": "dovecot" if root else user,
            "login": "dovenull" if root else user,
        }
        (folder / "dovecot.conf").write_text(form.format(**values) + _BOTH.format(**values))
        with (folder / "stdout").open("wb") as out:
            line = ["dovecot", "-F", "-c", str(folder / "dovecot.conf")]
            self.process = subprocess.Popen(line, stdout=out, stderr=out)
        wait_for_port(self.port, self.process)

    def messages(self, user: str) -> list[bytes]:
        new = self.folder / "mail" / user / "Maildir" / "new"
        return [path.read_bytes() for path in new.iterdir()] if new.exists() else []


@pytest.fixture
def dovecot(public: Path) -> Iterator[Dovecot]:
    need("dovecot", "dovecot-lmtpd")
    server = Dovecot(public / "dovecot")
    server.start()
    yield server
    stop(server.process)


def test_lmtp_next_hop(dovecot: Dovecot, tmp_path: Path) -> None:
    settings = {"next_hop": {"protocol": "lmtp", "first_retry": "1s"}}
    with Node(tmp_path, f"127.0.0.1:{dovecot.port}", settings=settings) as node:
        node.add_pipeline("bob@example.test", '[[step]]\nuse = "tag"\ntags = ["SEEN"]\n')
        with smtplib.SMTP("127.0.0.1", node.port) as client:
            to = ["joe@example.test", "bob@example.test", "ann@example.test", "nobody@example.test"]
            client.sendmail("joe@example.test", to, b"Subject: lmtp\r\n\r\n.dot\r\nline\r\n")
        deadline = time.monotonic() + 20
        while not (dovecot.messages("ann") and dovecot.messages("bob") and len(dovecot.messages("joe")) == 2):
            assert time.monotonic() < deadline, node.log.read_text() + (dovecot.folder / "dovecot.log").read_text()
            time.sleep(0.1)
        assert all(raw.replace(b"\r\n", b"\n").endswith(b"\n\n.dot\nline\n") for raw in dovecot.messages("ann"))
        assert b"X-SendSwitch-Tags: SEEN" in dovecot.messages("bob")[0]
        report = next(raw for raw in dovecot.messages("joe") if b"Undelivered" in raw)
        assert b"Final-Recipient: rfc822; nobody@example.test" in report
        assert node.run("audit", check=False).returncode == 0


@pytest.mark.parametrize("size", [200, 300_000])
def test_a_full_mailbox_is_that_recipient_s_alone(size: int, dovecot: Dovecot, tmp_path: Path) -> None:
    """Dovecot refuses one of two recipients behind the end of data; only that one is reported."""
    settings = {"next_hop": {"protocol": "lmtp", "first_retry": "1s"}, "node": {"lifetime": "2s"}}
    with Node(tmp_path, f"127.0.0.1:{dovecot.port}", settings=settings) as node:
        with smtplib.SMTP("127.0.0.1", node.port) as client:
            to = ["full@example.test", "ann@example.test"]
            client.sendmail("joe@example.test", to, b"Subject: large\r\n\r\n" + b"x" * 70 * (size // 70) + b"\r\n")
        deadline = time.monotonic() + 20
        while not (dovecot.messages("ann") and dovecot.messages("joe")):
            assert time.monotonic() < deadline, node.log.read_text() + (dovecot.folder / "dovecot.log").read_text()
            time.sleep(0.1)
        (report,) = dovecot.messages("joe")
        assert b"Final-Recipient: rfc822; full@example.test" in report
        assert b"Mailbox is full" in report
        assert b"ann@example.test" not in report
        assert len(dovecot.messages("ann")) == 1
        assert dovecot.messages("full") == []
        assert node.run("audit", check=False).returncode == 0
