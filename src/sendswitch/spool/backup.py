"""A copy of the spool while the node runs.

SQLite copies its file in one step, as of one moment, whatever is written meanwhile. Large messages are files that never
change but are deleted when they are no longer needed: each is linked before the copy is made, and newer ones after it,
so that every file of the copy is there.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from sendswitch.errors import Temporary
from sendswitch.spool.connection import connect
from sendswitch.spool.schema import FILES_NEEDED, content_file

# A message that comes and goes while the copy is made can be missed; then the copy is made again.
ATTEMPTS = 5


def copy_spool(data: Path, target: Path) -> int:
    """Copy the spool of a data folder to a new folder. Return the number of messages. Raises Temporary."""
    content, files, copy = data / "spool" / "content", target / "content", target / "spool.db"
    files.mkdir(parents=True, mode=0o700)
    for _ in range(ATTEMPTS):
        _link(content, files)
        with closing(connect(data / "spool" / "spool.db")) as source, closing(sqlite3.connect(copy)) as copied:
            # In one step: several would begin anew whenever the node writes, which it always does.
            source.backup(copied)
        _link(content, files)
        with closing(sqlite3.connect(copy)) as copied:
            needed = {content_file(files, row[0]).name for row in copied.execute(FILES_NEEDED)}
            messages = int(copied.execute("SELECT count(*) FROM message").fetchone()[0])
        there = set(os.listdir(files))
        for name in there - needed:
            (files / name).unlink()
        if needed <= there:
            return messages
    raise Temporary("messages come and go faster than they can be copied; try again when there is less mail")


def tell_all_again(connection: sqlite3.Connection) -> None:
    """Make the node relay every event of a restored spool to the journal."""
    connection.execute("DELETE FROM meta WHERE key = 'journaled'")


def _link(content: Path, files: Path) -> None:
    for path in content.glob("*.eml"):
        target = files / path.name
        if target.exists():
            continue
        with suppress(FileNotFoundError):  # it went meanwhile
            try:
                os.link(path, target)
            except OSError:  # another file system
                shutil.copyfile(path, target)
