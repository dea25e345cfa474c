"""Real databases and RabbitMQ, started privately on free ports in folders of their own, stopped by pid."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sendswitch.bench.peers import free_port, stop, wait_for_port
from sendswitch.bench.postgresql import until_it_answers
from sendswitch.bench.rabbitmq import RabbitMQ
from sendswitch.bench.scanners import own


@contextmanager
def mariadb(folder: Path) -> Iterator[str]:
    """A MariaDB; gives the URL of an empty database in it."""
    (folder / "data").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "init.sql").write_text(
        "create database test;\ncreate user test@'127.0.0.1' identified by 'test';\n"
        "grant all on *.* to test@'127.0.0.1';\n"
    )
    port, who = free_port(), own(folder, "mysql")
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
        until_it_answers(url)
        yield url
    finally:
        stop(process)


def as_of_dovecot_2_4() -> bool:
    """Return whether this Dovecot wants its configuration in the form of version 2.4 (Debian 13)."""
    said = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()[0].split(".")[:2])) >= (2, 4)


@contextmanager
def slapd(folder: Path) -> Iterator[int]:
    """An OpenLDAP with joe, ann and bob below ou=people,dc=example,dc=test, whose passwords are pw-joe and so on; gives
    its port.
    """
    (folder / "db").mkdir(parents=True)
    (folder / "conf").write_text(
        "".join(f"include /etc/ldap/schema/{name}.schema\n" for name in ("core", "cosine", "inetorgperson"))
        + f"pidfile {folder}/pid\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\ndatabase mdb\n"
        f'suffix "dc=example,dc=test"\ndirectory {folder}/db\nmaxsize 10485760\ndbnosync\nindex mail eq\n'
        "access to attrs=userPassword by anonymous auth by * none\naccess to * by * read\n"
    )
    people = [
        "dn: dc=example,dc=test\nobjectClass: dcObject\nobjectClass: organization\no: Example\n",
        "dn: ou=people,dc=example,dc=test\nobjectClass: organizationalUnit\n",
        *(
            f"dn: uid={name},ou=people,dc=example,dc=test\nobjectClass: inetOrgPerson\ncn: {name}\nsn: {name}\n"
            f"mail: {name}@example.test\nuserPassword: pw-{name}\n"
            for name in ("joe", "ann", "bob")
        ),
    ]
    (folder / "ldif").write_text("\n".join(people))
    subprocess.run(["slapadd", "-q", "-f", folder / "conf", "-l", folder / "ldif"], check=True, capture_output=True)
    port = free_port()
    with (folder / "log").open("wb") as log:
        line = ["slapd", "-d", "none", "-f", folder / "conf", "-h", f"ldap://127.0.0.1:{port}"]
        process = subprocess.Popen(list(map(str, line)), stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        stop(process)


@contextmanager
def rabbitmq(folder: Path, **options: Any) -> Iterator[RabbitMQ]:
    """A RabbitMQ that runs; `options` are those of RabbitMQ."""
    server = RabbitMQ(folder, **options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
