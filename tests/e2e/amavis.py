"""A real amavis on a port of its own, and a Postfix that hands its mail to it as amavis's documents say."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sendswitch.bench.peers import Postfix, free_port, stop, wait_for_port
from tests.conftest import need, need_root


@contextmanager
def amavis(folder: Path, back: int) -> Iterator[int]:
    """An amavis that scans for programs in attachments, and tells of them in the header; gives its port.

    What it scanned goes to port `back`. It must be root's to be started, and runs as its own user.
    """
    need("amavisd", "amavisd-new")
    need_root()
    home, port, user = folder / "home", free_port(), pwd.getpwnam("amavis")
    for part in (home, home / "tmp", home / "db"):
        part.mkdir(parents=True)
        os.chown(part, user.pw_uid, user.pw_gid)
    (folder / "amavisd.conf").write_text(f"""
use strict;
$MYHOME = '{home}';
$TEMPBASE = "$MYHOME/tmp";
$db_home = "$MYHOME/db";
$pid_file = "$MYHOME/pid";
$lock_file = "$MYHOME/lock";
$daemon_user = '{user.pw_name}';
$daemon_group = '{user.pw_name}';
$daemonize = 0;
$do_syslog = 0;
$LOGFILE = "$MYHOME/log";
$unix_socketname = undef;
$inet_socket_bind = '127.0.0.1';
$inet_socket_port = {port};
$max_servers = 2;
$enable_db = 0;
$myhostname = 'mx.example.test';
@local_domains_maps = (['.example.test', '.example.com']);
@bypass_virus_checks_maps = (1);
@bypass_spam_checks_maps = (1);
@decoders = ();
$forward_method = $notify_method = 'smtp:[127.0.0.1]:{back}';
$banned_filename_re = new_RE(qr'\\.exe$'i);
$banned_quarantine_to = undef;
$final_banned_destiny = D_PASS;
1;
""")
    with (folder / "said").open("wb") as out:
        process = subprocess.Popen(["amavisd", "-c", folder / "amavisd.conf", "foreground"], stdout=out, stderr=out)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        stop(process)


class BehindAmavis(Postfix):
    """A Postfix with an amavis in front of its re-injection service."""

    def __init__(self, folder: Path, port: int, back: int) -> None:
        super().__init__(folder, extra=f"content_filter = smtp-amavis:[127.0.0.1]:{port}\n")
        self.reinject = back

    def _master(self) -> str:
        return super()._master() + (
            "smtp-amavis unix - - n - 2 smtp\n"
            "  -o smtp_data_done_timeout=1200\n"
            "  -o smtp_send_xforward_command=yes\n"
            "  -o disable_dns_lookups=yes\n"
            "  -o max_use=20\n"
        )
