"""Real databases, started privately on free ports in folders of their own, stopped by pid."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sendswitch.bench.peers import free_port, stop, wait_for_port

# Debian keeps PostgreSQL's programs out of PATH.
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))


def _own(folder: Path, user: str) -> dict[str, object]:
    """Both refuse to run as root: give the folder to their own user, and say whose process to be."""
    if os.getuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": str(folder)}


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL; gives the URL of an empty database in it."""
    folder.mkdir()
    (folder / "password").write_text("test")
    port, who = free_port(), _own(folder, "postgres")
    line = [POSTGRES / "initdb", "-D", folder / "data", "-U", "test", "--pwfile", folder / "password"]
    line += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
    subprocess.run(list(map(str, line)), check=True, capture_output=True, **who)  # type: ignore[call-overload]
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    line = [POSTGRES / "postgres", "-D", folder / "data"]
    for name, value in options.items():
        line += ["-c", f"{name}={value}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(list(map(str, line)), stdout=log, stderr=log, **who)  # type: ignore[call-overload]
    try:
        wait_for_port(port, process)
        url = f"postgresql+psycopg://test:test@127.0.0.1:{port}/postgres"
        _until_it_answers(url)
        yield url
    finally:
        stop(process)


@contextmanager
def mariadb(folder: Path) -> Iterator[str]:
    """A MariaDB; gives the URL of an empty database in it."""
    (folder / "data").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "init.sql").write_text(
        "create database test;\ncreate user test@'127.0.0.1' identified by 'test';\n"
        "grant all on *.* to test@'127.0.0.1';\n"
    )
    port, who = free_port(), _own(folder, "mysql")
    user = "mysql" if who else pwd.getpwuid(os.getuid()).pw_name
    line = ["mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={folder}/data", "--skip-test-db"]
    line += ["--auth-root-authentication-method=normal", "--innodb-log-file-size=16M"]
    subprocess.run(line, check=True, capture_output=True)
    server = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
    line = [server, "--no-defaults", f"--datadir={folder}/data", f"--tmpdir={folder}/tmp", f"--socket={folder}/sock"]
    line += [f"--port={port}", "--bind-address=127.0.0.1", f"--pid-file={folder}/pid", f"--init-file={folder}/init.sql"]
    line += [
        "--skip-log-bin",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-log-file-size=16M",
        "--skip-name-resolve",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, **who)  # type: ignore[call-overload]
    try:
        wait_for_port(port, process)
        url = f"mysql+pymysql://test:test@127.0.0.1:{port}/test"
        _until_it_answers(url)
        yield url
    finally:
        stop(process)


def _until_it_answers(url: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    engine, end = create_engine(url), time.monotonic() + 30
    while True:
        try:
            with engine.connect():
                break
        except OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
    engine.dispose()
