"""A PostgreSQL of one's own, on a free port and in a folder. Used by `bench` and by the tests."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from sendswitch.bench.peers import free_port, wait_for_port
from sendswitch.bench.scanners import own

# Debian keeps PostgreSQL's programs out of PATH.
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))


class Postgres:
    """A PostgreSQL whose data outlive a stop."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"postgresql+psycopg://test:test@127.0.0.1:{self._port}/postgres"
        folder.mkdir()
        (folder / "password").write_text("test")
        self._who = own(folder, "postgres")
        line = [POSTGRES / "initdb", "-D", folder / "data", "-U", "test", "--pwfile", folder / "password"]
        line += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(list(map(str, line)), check=True, capture_output=True, **self._who)  # type: ignore[call-overload]

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": self._folder}
        line = [POSTGRES / "postgres", "-D", self._folder / "data"]
        for name, value in options.items():
            line += ["-c", f"{name}={value}"]
        with (self._folder / "log").open("ab") as log:
            text = list(map(str, line))
            self._process = subprocess.Popen(text, stdout=log, stderr=log, **self._who)  # type: ignore[call-overload]
        wait_for_port(self._port, self._process)
        until_it_answers(self.url)

    def stop(self) -> None:
        """Stop it as a power cut would: its clients find nobody there."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(15)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL; give the URL of an empty database in it."""
    server = Postgres(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def until_it_answers(url: str) -> None:
    """Wait until a database answers. Raises OperationalError after 30 s."""
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
