"""Fixtures that every shelf may use. A server that is missing skips at home and fails where CI=true."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, MetaData, create_engine

from sendswitch.bench.peers import Postfix, Sink, public_folder
from sendswitch.bench.postgresql import POSTGRES, postgres
from sendswitch.bench.rabbitmq import RABBITMQ, RabbitMQ
from sendswitch.db.connect import open_database
from sendswitch.spool import spool as spool_module
from sendswitch.testing import FakeClock
from tests.servers import mariadb, rabbitmq

# Commands are tested with the buffering that users have.
os.environ.pop("PYTHONUNBUFFERED", None)

# 20,000 in make soak; 1 where branches are counted, which must not depend on what chance finds.
EXAMPLES = int(os.environ.get("SENDSWITCH_EXAMPLES", "100"))
settings.register_profile("ours", deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")


# Seconds for one asynchronous test.
LIMIT = 60.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the time of asynchronous tests. Soak tests run only where they are asked for (make soak). The tests of what
    is installed run last: `make test` compiles it meanwhile.
    """
    items.sort(key=lambda item: "installed" in item.path.parts)
    if Path(spool_module.__file__).suffix == ".so":
        for item in items:
            if item.get_closest_marker("sources") is not None:
                item.add_marker(pytest.mark.skip(reason="puts something in the place of a compiled method"))
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _limited(item.obj)
    if os.environ.get("SENDSWITCH_SOAK"):
        return
    for item in items:
        if item.get_closest_marker("soak") is not None:  # keywords know folders too, and one may be called so
            item.add_marker(pytest.mark.skip(reason="runs with make soak"))


def _limited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def limited(**arguments: Any) -> None:
        try:
            async with asyncio.timeout(LIMIT):
                await test(**arguments)
        except BaseException:
            await _close_what_is_open()
            raise

    return limited


async def _close_what_is_open() -> None:
    """Close the servers and connections of a failed test: uvloop would wait for them for ever, and no test follow."""
    for kept in gc.get_objects():
        if type(kept).__module__ == "uvloop.loop" and type(kept).__name__ == "Server":
            kept.close()
        elif type(kept).__module__ == "uvloop.loop" and type(kept).__name__ in ("TCPTransport", "UnixTransport"):
            kept.abort()
    await asyncio.sleep(0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The event loop of the program, for asynchronous tests."""
    return "asyncio", {"use_uvloop": True}


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name short text by itself, and other bytes by their place: what packs files writes the time of day into them."""
    if isinstance(val, bytes) and not (val.isascii() and len(val) <= 40 and val.decode().strip().isprintable()):
        return argname
    return None


def missing(text: str) -> None:
    """Skip a test at home, fail it in CI, because something is missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


def need(program: str, package: str) -> None:
    """Skip at home, fail in CI, when a real server is missing."""
    if not shutil.which(program):
        missing(f"{program} is missing; as root: apt-get install {package}")


def need_root() -> None:
    """Skip at home, fail in CI, where the tests do not run as root."""
    if os.geteuid() != 0:
        missing("only root makes files for others")


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on the loop the program uses, for at most 60 s."""

    def runner(work: Coroutine[Any, Any, Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(60):
                return await work

        loops = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        result = loops.run(limited())
        # Not where it failed: uvloop waits for ever for a server that is still open, and the test would not end.
        loops.close()
        return result

    return runner


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that servers which change user can search."""
    with public_folder("test") as folder:
        yield folder


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    line += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(line, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", folder], check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def postfix_installed() -> None:
    """Debian's Postfix, and root, which it needs."""
    if not Postfix.available():
        text = "Postfix is missing or we are not root; as root: apt-get install postfix"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A next hop that takes everything."""
    need("smtp-sink", "postfix")
    with Sink() as running:
        yield running


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ for the tests of one file."""
    if not RABBITMQ.exists():
        missing("RabbitMQ is missing; as root: apt-get install rabbitmq-server")
    with rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="module")
def managed_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A RabbitMQ with its plugin for management, for the tests of one file."""
    if not RABBITMQ.exists():
        missing("RabbitMQ is missing; as root: apt-get install rabbitmq-server")
    with rabbitmq(tmp_path_factory.mktemp("rabbitmq"), plugins=("rabbitmq_management",)) as server:
        yield server


@pytest.fixture(scope="session", params=["sqlite", "postgresql", "mariadb"])
def database_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database server; gives a URL."""
    with public_folder("database") as folder:
        if request.param == "sqlite":
            yield f"sqlite:///{folder}/journal.db"
        elif request.param == "postgresql":
            if not POSTGRES.exists():
                need("postgres", "postgresql")
            with postgres(folder / "postgres") as url:
                yield url
        else:
            if not Path("/usr/sbin/mariadbd").exists():
                need("mariadbd", "mariadb-server")
            with mariadb(folder / "mariadb") as url:
                yield url


@pytest.fixture
def database(database_server: str) -> str:
    """An empty database of each kind; gives its URL."""
    engine = create_engine(database_server)
    everything = MetaData()
    everything.reflect(engine)
    everything.drop_all(engine)
    engine.dispose()
    return database_server


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """An empty database of each kind, opened."""
    engine = open_database(database)
    yield engine
    end = time.monotonic() + 10
    while getattr(engine.pool, "checkedout", int)() and time.monotonic() < end:
        time.sleep(0.01)  # a thread whose task was cancelled still reads
    engine.dispose()
