"""Open a spool at the start of a node: folders, an upgrade, and what a crash has left."""

from __future__ import annotations

import secrets
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

from sendswitch import logs
from sendswitch.clock import Clock
from sendswitch.errors import SpoolUnavailable, in_words
from sendswitch.mail.ids import NODES
from sendswitch.spool import schema
from sendswitch.spool.connection import connect, scalar
from sendswitch.spool.schema import content_file
from sendswitch.spool.spool import Spool

# Seconds that content without a message is kept before it is deleted.
ORPHANS_KEPT = 7 * 86400.0


Register = Callable[[str, int], int]
"""Takes the name of a spool and the number its node had, and returns the number that its node has from now on."""


def open_spool(
    folder: Path, clock: Clock, *, recording: str = "filtered", register: Register = lambda name, number: number
) -> Spool:
    """Open or create the spool in `folder`, and repair what a crash left. Raises SpoolUnavailable.

    Content of messages that were never acknowledged is moved away; everything else is as it was. A spool without its
    database is refused. `recording` is one of `schema.RECORDINGS`: the messages whose content is kept after their last
    delivery. `register` gives the node its number; what it raises is raised.
    """
    files = folder / "content"
    try:
        files.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_without_database(folder, files)
        connection = connect(folder / "spool.db")
        close_to_others(folder, "**/*")
        before = schema.prepare(connection)
        connection.executescript(schema.WRITER)
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('node', ?)", (str(secrets.randbelow(NODES)),))
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('name', ?)", (secrets.token_hex(16),))
        name, number = (scalar(connection, f"SELECT value FROM meta WHERE key = '{key}'") for key in ("name", "node"))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'node'", (str(register(name, int(number))),))
        # In the file, because commands that end deliveries must do the same.
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('recording', ?)", (recording,))
    except (sqlite3.Error, OSError) as error:
        raise SpoolUnavailable(f"cannot prepare the spool in {folder}: {in_words(error)}") from error
    orphans = _put_orphans_aside(connection, folder, files)
    alive = scalar(connection, "SELECT count(*) FROM delivery WHERE due IS NOT NULL")
    logs.recovered(deliveries=alive, orphans=orphans)
    spool = Spool(folder, connection, clock, recording)
    spool.version_before = before
    return spool


def _refuse_without_database(folder: Path, files: Path) -> None:
    """Raise SpoolUnavailable when there is content but no database that tells its owners."""
    if (folder / "spool.db").exists() or not any(files.glob("*.eml")):
        return
    raise SpoolUnavailable(
        f"{folder}/spool.db is missing, and there is mail in {files}; put the database back (with its -wal file),"
        f" restore a backup, or move {files} away to begin with an empty spool"
    )


def close_to_others(folder: Path, *names: str) -> None:
    """Remove other users' access to a folder, and to its files of these names (globs, ** for all), whatever modes they
    had.

    Raises OSError.
    """
    _close(folder)
    for name in names:
        for path in folder.glob(name):
            _close(path)


def _close(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return
    wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
    if stat.S_IMODE(status.st_mode) != wanted:
        path.chmod(wanted)


def _put_orphans_aside(connection: sqlite3.Connection, folder: Path, files: Path) -> int:
    """Move content without a message to `orphans`. Return the number of files.

    A crash between a file and its row leaves one, of a message that was never acknowledged. Many of them mean that the
    database is older than they are, so that none is deleted before `ORPHANS_KEPT` is over. Unfinished files are
    deleted.
    """
    wanted = {content_file(files, row[0]) for row in connection.execute(schema.FILES_NEEDED)}
    aside, moved = folder / "orphans", 0
    for path in files.iterdir():
        if path.suffix == ".tmp":
            path.unlink(missing_ok=True)
        elif path not in wanted:
            aside.mkdir(mode=0o700, exist_ok=True)
            path.rename(aside / path.name)
            (aside / path.name).touch()
            moved += 1
    if aside.exists():
        for path in aside.iterdir():
            if path.stat().st_mtime < time.time() - ORPHANS_KEPT:
                path.unlink(missing_ok=True)
    return moved
