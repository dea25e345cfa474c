"""Real peers on private ports and folders: Postfix, smtp-sink, our own node. Used by `bench` and by the tests.

Traps that cost others hours: ports are chosen below the ephemeral range, or a client that polls one can connect to
itself; Postfix waits until its files are over a second old; daemons stay our children, so that none becomes a zombie.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from sendswitch.errors import Temporary

POSTFIX_DAEMONS = Path("/usr/lib/postfix/sbin")


def free_port() -> int:
    """Return a free loopback TCP port below the ephemeral range."""
    return free_ports(1)[0]


def free_ports(count: int) -> range:
    """Return free loopback TCP ports below the ephemeral range, one behind the other."""
    for _ in range(1000):
        first = random.randrange(10000, 32000)  # noqa: S311 - no secret
        ports = range(first, first + count)
        with contextlib.ExitStack() as stack:
            try:
                for port in ports:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return ports
    raise Temporary("no free port between 10000 and 32000")


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None, *, host: str = "127.0.0.1") -> None:
    """Wait until a program listens. Raises Temporary after 30 s, or when the process ends first."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise Temporary(f"{process.args!r} ended with {process.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1) as probe:
            if probe.getsockname() != probe.getpeername():
                return
        time.sleep(0.02)
    raise Temporary(f"nobody listens on {host}:{port}")


def stop(process: subprocess.Popen[bytes], limit: float = 15.0) -> None:
    """End a child: TERM, then KILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Sink:
    """Postfix's smtp-sink: takes everything as fast as C can, keeps nothing unless `dump` says where."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        self.process = subprocess.Popen(
            ["smtp-sink", *user, *options, f"127.0.0.1:{self.port}", "1000"], stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port, self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self.process)


def source(
    port: int,
    *,
    messages: int,
    sessions: int,
    size: int,
    reuse: bool = True,
    to: str = "b@example.test",
    file: Path | None = None,
) -> float:
    """Send with Postfix's smtp-source. Return the seconds it took. Raises Temporary when it fails."""
    command = ["smtp-source", "-s", str(sessions), "-m", str(messages)]
    command += ["-F", str(file)] if file else ["-l", str(size)]
    command += ["-f", "a@example.org", "-t", to, *(["-d"] if reuse else []), f"127.0.0.1:{port}"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise Temporary(f"smtp-source failed: {done.stderr.decode()[-500:]}")
    return time.perf_counter() - began


class Node:
    """Our own node as users start it, in a process of its own."""

    def __init__(
        self,
        folder: Path,
        next_hop: str,
        *,
        command: str = "run",
        options: Sequence[str] = (),
        mode: str = "filter",
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        listener: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.data = folder, folder / "data"
        several = (settings or {}).get("node", {}).get("processes", 1)
        self.webs = free_ports(several)
        self.host, self.port, self.web = "127.0.0.1", free_port(), self.webs[0]
        self.config = folder / "sendswitch.toml"
        sections: dict[str, Any] = {
            "node": {"data": str(self.data), "host": "switch.example.test"},
            "next_hop": {"address": next_hop},
            "web": {"bind": f"127.0.0.1:{self.web}"},
        }
        for name, values in (settings or {}).items():
            sections[name] = sections.get(name, {}) | dict(values)
        folder.mkdir(parents=True, exist_ok=True)
        listening = {"mode": mode, "bind": f"{self.host}:{self.port}"} | dict(listener or {})
        self.config.write_text(f"{tomli_w.dumps(sections)}\n[[listener]]\n{tomli_w.dumps(listening)}")
        self._command = (command, *options)
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, or several if configured, and wait until all take mail."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sendswitch.cli.main", *self._command, "--config", str(self.config)],
                stderr=log,
                stdout=log,
            )
        try:
            for port in (*self.webs, self.port):
                wait_for_port(port, self.process, host=self.host if port == self.port else "127.0.0.1")
        except Temporary as error:
            raise Temporary(f"{error}\n{self.log.read_text()[-3000:]}") from error
        return self

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command against this node's configuration."""
        return subprocess.run(self.line(*arguments), capture_output=True, text=True, check=check)

    def line(self, *arguments: str) -> list[str]:
        """Return the command line of a command against this node's configuration."""
        return [sys.executable, "-m", "sendswitch.cli.main", *arguments, "--config", str(self.config)]

    def add_pipeline(self, address: str, text: str) -> None:
        """Set a user's pipeline, as an administrator would."""
        file = self.folder / f"{address.replace('@', '_at_')}.toml"
        file.write_text(text)
        self.run("user", "add", address, check=False)
        done = self.run("pipeline", "set", address, str(file), check=False)
        if done.returncode:
            raise Temporary(f"pipeline set failed: {done.stderr}")

    def worker_pids(self) -> list[int]:
        """Return the numbers of its worker processes."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return [int(pid) for pid in children.split()]

    def kill(self) -> None:
        """Kill it as a power cut would: SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop the node as systemd would."""
        if self.process is not None:
            stop(self.process, 40)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Postfix:
    """A private Postfix: nothing of it touches /etc/postfix or /var/spool/postfix.

    Ports: `smtp` with content_filter, `proxy` with smtpd_proxy_filter, `plain` without either, `reinject`. Mail for
    example.test goes to Maildirs under `mail`, or to `lmtp`; or all of it to `relay`. Needs root.
    """

    MAILBOXES = ("joe", "ann", "bob", "carol", "dave", "quar", "slow", "postmaster", "sender")

    def __init__(
        self,
        folder: Path,
        *,
        content_filter: int | None = None,
        proxy_filter: int | None = None,
        lmtp: str = "",
        relay: int | None = None,
        extra: str = "",
    ) -> None:
        self.folder = folder
        self.smtp, self.proxy, self.plain, self.reinject = (free_port() for _ in range(4))
        self.content_filter = content_filter or self.reinject
        self._proxy_filter = proxy_filter or self.reinject
        self._lmtp, self._relay, self._extra = lmtp, relay, extra
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        """Return whether Debian's Postfix is installed and we are root, which it needs."""
        return (POSTFIX_DAEMONS / "master").exists() and os.getuid() == 0

    def __enter__(self) -> Self:
        self.write_configuration()
        with (self.folder / "stdout").open("wb") as out:
            self.process = subprocess.Popen(
                [str(POSTFIX_DAEMONS / "master"), "-c", str(self.folder / "etc"), "-d"], stdout=out, stderr=out
            )
        for port in (self.smtp, self.proxy, self.plain, self.reinject):
            wait_for_port(port, self.process)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            stop(self.process)

    @property
    def maillog(self) -> str:
        """Return its log so far."""
        path = self.folder / "maillog"
        return path.read_text(errors="replace") if path.exists() else ""

    def messages(self, user: str) -> list[bytes]:
        """Return the messages in a user's Maildir."""
        new = self.folder / "mail" / user / "Maildir" / "new"
        return [path.read_bytes() for path in sorted(new.iterdir())] if new.exists() else []

    def count(self, user: str) -> int:
        """Return how many messages are in a user's Maildir."""
        new = self.folder / "mail" / user / "Maildir" / "new"
        return len(os.listdir(new)) if new.exists() else 0

    def put_aside(self, user: str) -> None:
        """Begin a new Maildir for a user. Counting what is in an old one takes time, and more of it each time."""
        maildir = self.folder / "mail" / user / "Maildir"
        if maildir.exists():
            maildir.rename(maildir.with_name(f"before-{time.time_ns()}"))

    def wait_for(self, user: str, count: int = 1, limit: float = 30.0) -> list[bytes]:
        """Return the user's messages once there are `count`.

        Raises Temporary with the log when there are not in time.
        """
        end = time.monotonic() + limit
        while time.monotonic() < end:
            found = self.messages(user)
            if len(found) >= count:
                return found
            time.sleep(0.05)
        raise Temporary(f"{len(self.messages(user))} of {count} messages for {user}\n{self.maillog[-3000:]}")

    def queue(self) -> str:
        """Return the queued messages, as `postqueue -j` shows them."""
        line = ["postqueue", "-c", str(self.folder / "etc"), "-j"]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=30).stdout

    def write_configuration(self) -> None:
        """Write the folders and files that this Postfix needs; it does not run yet."""
        folder = self.folder
        etc, spool = folder / "etc", folder / "spool"
        for part in (etc, spool, folder / "data", folder / "mail"):
            part.mkdir(parents=True)
        postfix = pwd.getpwnam("postfix")
        nobody = pwd.getpwnam("nobody")
        os.chown(folder / "data", postfix.pw_uid, 0)
        os.chown(folder / "mail", nobody.pw_uid, nobody.pw_gid)
        boxes = "".join(f"{user}@example.test {user}/Maildir/\n" for user in self.MAILBOXES)
        (etc / "mailboxes").write_text(boxes)
        (etc / "main.cf").write_text(self._main(nobody))
        (etc / "master.cf").write_text(self._master())
        past = time.time() - 60
        for path in etc.iterdir():
            os.utime(path, (past, past))
        for name in _QUEUES:
            (spool / name).mkdir(mode=0o700)
            os.chown(spool / name, postfix.pw_uid, 0)
        for name, mode in (("maildrop", 0o730), ("public", 0o710)):
            (spool / name).mkdir()
            (spool / name).chmod(mode)
            shutil.chown(spool / name, "postfix", "postdrop")
        (spool / "pid").mkdir(mode=0o755)

    # Nothing is set twice: each program would log a warning at its start, postlogd too, to itself, and wait for ever.
    def _main(self, nobody: pwd.struct_passwd) -> str:
        folder = self.folder
        boxes = "static:all" if self._lmtp else f"texthash:{folder}/etc/mailboxes"
        lines = f"""
compatibility_level = 3.6
config_directory = {folder}/etc
queue_directory = {folder}/spool
data_directory = {folder}/data
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
daemon_directory = {POSTFIX_DAEMONS}
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/maillog
maillog_file_prefixes = /var, /dev/stdout, {folder}
myhostname = mx.example.test
mydomain = example.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
alias_maps =
alias_database =
local_recipient_maps =
biff = no
smtp_host_lookup = native
smtp_dns_support_level = disabled
default_database_type = texthash
virtual_mailbox_domains = {"" if self._relay else "example.test"}
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = {boxes}
recipient_delimiter = +
virtual_minimum_uid = 100
virtual_uid_maps = static:{nobody.pw_uid}
virtual_gid_maps = static:{nobody.pw_gid}
minimal_backoff_time = 5s
maximal_backoff_time = 10s
queue_run_delay = 5s
smtpd_client_connection_count_limit = 0
"""
        if self._lmtp:
            lines += f"virtual_transport = lmtp:inet:{self._lmtp}\n"
        if self._relay:
            lines += f"default_transport = smtp:[127.0.0.1]:{self._relay}\nrelayhost = [127.0.0.1]:{self._relay}\n"
        return lines + self._extra

    def _master(self) -> str:
        back = """ inet n - n - 22 smtpd
  -o content_filter=
  -o smtpd_proxy_filter=
  -o receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters
  -o smtpd_client_restrictions=
  -o smtpd_helo_restrictions=
  -o smtpd_sender_restrictions=
  -o smtpd_relay_restrictions=permit_mynetworks,reject
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
  -o mynetworks=127.0.0.0/8
  -o smtpd_authorized_xforward_hosts=127.0.0.0/8
  -o syslog_name=postfix/reinject
"""
        return (
            f"127.0.0.1:{self.smtp} inet n - n - - smtpd\n"
            f"  -o content_filter=sendswitch:[127.0.0.1]:{self.content_filter}\n"
            f"127.0.0.1:{self.proxy} inet n - n - 20 smtpd\n"
            f"  -o smtpd_proxy_filter=127.0.0.1:{self._proxy_filter}\n"
            "  -o smtpd_proxy_options=speed_adjust\n"
            "  -o smtpd_authorized_xclient_hosts=127.0.0.0/8\n"
            f"127.0.0.1:{self.plain} inet n - n - - smtpd\n"
            f"127.0.0.1:{self.reinject}{back}"
            "sendswitch unix - - n - 20 smtp\n"
            "  -o smtp_send_xforward_command=yes\n"
            "  -o disable_mime_output_conversion=yes\n"
            "  -o smtp_generic_maps=\n"
        ) + _SERVICES


_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush"),
    *("hold", "incoming", "private", "saved", "trace"),
)
_SERVICES = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


@contextlib.contextmanager
def public_folder(name: str) -> Iterator[Path]:
    """Make a temporary folder that servers which change user can search, and remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"sendswitch-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
