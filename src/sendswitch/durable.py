"""Files that are whole or not there, after a crash too.

A file is written under another name, fsynced and renamed, and its folder is fsynced, in this order.
Everything here blocks, and raises OSError.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def write_new(file: Path, pieces: Iterable[bytes]) -> None:
    """Write a new file, for its owner only, and fsync it. It is not durable before `publish`.

    Raises FileExistsError. On every error the file is removed.
    """
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as out:
            out.writelines(pieces)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def publish(part: Path, file: Path) -> None:
    """Give a complete file, which is fsynced, its name, in place of a file that has it. Durable on return."""
    os.replace(part, file)
    sync(file.parent)


def replace(file: Path, pieces: Iterable[bytes], part: Path | None = None) -> None:
    """Write a file in place of one that may be there. `part` is how its name begins until it is complete.

    After a crash the old file or the new one is there.
    """
    part = part or file.with_name(f".{file.name}.part")
    part = part.with_name(f"{part.name}.{secrets.token_hex(8)}")
    write_new(part, pieces)
    try:
        publish(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Make a file's content durable, or the names in a folder, where its file system can do that (fsync(2))."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)
