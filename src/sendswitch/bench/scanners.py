"""Real scanners, started privately on free ports in folders of their own, stopped by pid."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sendswitch.bench.peers import free_port, stop, wait_for_port


def own(folder: Path, user: str) -> dict[str, object]:
    """Change the owner of a folder to the scanner's user, and return that user: both scanners refuse to run as root."""
    if os.getuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": str(folder)}


# What a test file for virus scanners is made of, in two halves so that none of our files is one.
EICAR = "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR" + "-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"


@contextmanager
def clamd(
    folder: Path, *, largest: str = "25M", port: int | None = None, signatures: int = 0
) -> Iterator[tuple[str, int]]:
    """Run a clamd that knows EICAR, and so many signatures that match nothing. Yield its socket's path and its port."""
    (folder / "db").mkdir(parents=True, exist_ok=True)
    others = "".join(f"Nothing-{n}:0:*:{f'nothing {n} at all'.encode().hex()}\n" for n in range(signatures))
    (folder / "db" / "local.ndb").write_text(f"Eicar-Test-Signature:0:*:{EICAR.encode().hex()}\n{others}")
    port = port or free_port()
    (folder / "clamd.conf").write_text(
        f"Foreground yes\nDatabaseDirectory {folder}/db\nTemporaryDirectory {folder}\nLocalSocket {folder}/clamd.sock\n"
        f"LocalSocketMode 666\nFixStaleSocket yes\nTCPSocket {port}\nTCPAddr 127.0.0.1\nLogFile {folder}/clamd.log\n"
        f"MaxThreads 8\nStreamMaxLength {largest}\nSelfCheck 3600\nUser root\n"
    )
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(["clamd", "-c", str(folder / "clamd.conf")], stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        yield f"{folder}/clamd.sock", port
    finally:
        stop(process)


# What SpamAssassin takes for spam whatever its rules say, in two halves so that none of our files is it.
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*" + "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"


@contextmanager
def spamd(folder: Path, *, port: int | None = None) -> Iterator[tuple[str, int]]:
    """Run a spamd with Debian's rules and no network tests. Yield its socket's path and its port.

    Preferences of ann@example.test are in the folder, in users/ann@example.test/user_prefs.
    """
    for name in ("site", "users/ann@example.test", "run"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for file in Path("/etc/spamassassin").glob("*.pre"):
        shutil.copy(file, folder / "site")
    (folder / "site" / "local.cf").write_text(
        "required_score 5.0\nuse_bayes 0\nbayes_auto_learn 0\ndns_available no\nskip_rbl_checks 1\n"
    )
    (folder / "users/ann@example.test/user_prefs").write_text("required_score 4000\n")
    port, root = port or free_port(), bool(own(folder, "debian-spamd"))
    user = "debian-spamd" if root else pwd.getpwuid(os.getuid()).pw_name
    line = [
        "spamd",
        "-L",
        "-x",
        "-s",
        "stderr",
        "-u",
        user,
        f"--virtual-config-dir={folder}/users/%u",
        f"--socketpath={folder}/run/spamd.sock",
    ]
    line += ["-i", "127.0.0.1", "-A", "127.0.0.1", "-p", str(port), "--min-children=2", "--max-children=4"]
    line += ["--min-spare=1", f"--siteconfigpath={folder}/site", f"--helper-home-dir={folder}"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        _until(lambda: _says(port, b"PING SPAMC/1.5\r\n\r\n", b"PONG"))
        yield f"{folder}/run/spamd.sock", port
    finally:
        stop(process)


# Modules that ask the world outside, and history that nobody reads.
_NEEDS_NETWORK = (
    *("rbl", "surbl", "spf", "dkim", "dmarc", "arc", "asn", "fuzzy_check", "phishing", "mx_check", "bimi"),
    *("url_redirector", "rspamd_update", "whitelist", "greylist", "ratelimit", "replies", "neural"),
    *("history_redis", "bayes_expiry", "hfilter", "once_received"),
)


def _rspamd_files(folder: Path, port: int) -> dict[str, str]:
    """Return the configuration of Rspamd beyond Debian's, by file."""
    files = {
        "options.inc": 'filters = "chartable,regexp";\ngtube_patterns = "all";\nenable_test_patterns = true;\n'
        'dns { nameserver = ["127.0.0.1:1"]; timeout = 0.1s; retransmits = 0; }\n'
        f'tempdir = "{folder}/scratch";\ncontrol_socket = "{folder}/run/sock mode=0600";\n'
        f'hs_cache_dir = "{folder}/db/";\n'
        f'url_tld = "{folder}/conf/tld";\ndisable_hyperscan = true;\n',
        "worker-normal.inc": f'bind_socket = "127.0.0.1:{port}"; count = 2;\n',
        "worker-controller.inc": f'bind_socket = "127.0.0.1:{free_port()}";\n',
        "worker-proxy.inc": "enabled = false;\n",
        "milter_headers.conf": 'use = ["x-test", "remove-headers"];\nskip_local = false;\nroutines {\n'
        'remove-headers { headers { "X-Other" = 0; } }\n}\ncustom { "x-test" = <<EOD\n'
        'return function(task, common_meta)\n  if not task:get_header("X-Other") then return nil, {}, {}, {} end\n'
        '  local add = {["X-Test"] = tostring(task:get_from_ip()) .. " " .. (task:get_helo() or "")\n'
        '    .. " " .. ((task:get_from("smtp") or {{addr = ""}})[1].addr)\n'
        '    .. " " .. task:get_recipients("smtp")[1].addr\n'
        '    .. " " .. (task:get_queue_id() or "") .. " " .. (task:get_user() or "")}\n'
        "  return nil, add, {}, {}\nend\nEOD;\n}\n",
    }
    return files | {f"{module}.conf": "enabled = false;\n" for module in _NEEDS_NETWORK}


@contextmanager
def rspamd(folder: Path, *, port: int | None = None) -> Iterator[tuple[str, int]]:
    """Run an rspamd without anything that needs a network. Yield its folder and its port.

    Of mail with X-Other it takes that away and adds X-Test with the envelope.
    """
    port, config = port or free_port(), folder / "conf"
    for name in ("conf/local.d", "conf/override.d", "run", "db", "log", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (config / "tld").write_text("com\nnet\norg\nexample\ntest\n")
    for name, text in _rspamd_files(folder, port).items():
        (config / "override.d" / name).write_text(text)
    line = ["rspamd", "-f", "-c", "/etc/rspamd/rspamd.conf"]
    if own(folder, "_rspamd"):
        line += ["-u", "_rspamd", "-g", "_rspamd"]
    line += [f"--var=LOCAL_CONFDIR={config}", f"--var=RUNDIR={folder}/run", f"--var=DBDIR={folder}/db"]
    line += [f"--var=LOGDIR={folder}/log"]
    with (folder / "stdout").open("ab") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_port(port, process)
        _until(lambda: _says(port, b"GET /ping HTTP/1.0\r\n\r\n", b"pong"))
        yield str(folder), port
    finally:
        stop(process)


def _says(port: int, question: bytes, answer: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as asking:
            asking.sendall(question)
            return answer in asking.recv(4096)
    except OSError:
        return False


def _until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)
