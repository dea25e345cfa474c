"""A secret that is shown once, in a new file instead of on the screen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sendswitch.errors import Refused, Temporary, in_words

Option = Annotated[
    Path | None,
    typer.Option("--file", help="Write the secret into a new file that only you can read, and do not show it."),
]


@contextmanager
def secret_file(file: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes one line into a new file. The file is made before the secret, so that no secret is
    made that cannot be kept. It is removed on every error, and when nothing was written. Without a file, nothing is
    written.

    Raises Refused for a file that exists: a secret in it may be in use. Raises Temporary when it cannot be written.
    """
    if file is None:
        yield lambda secret: None
        return
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Refused(f"{file} exists already; a secret in it may be in use") from error
    except OSError as error:
        raise Temporary(f"{file} cannot be written: {in_words(error)}") from error
    kept = False

    def write(secret: str) -> None:
        nonlocal kept
        try:
            with open(handle, "wb", closefd=False) as out:
                out.write(f"{secret}\n".encode())
                out.flush()
                os.fsync(handle)
        except OSError as error:
            raise Temporary(f"{file} cannot be written: {in_words(error)}") from error
        kept = True

    try:
        yield write
    finally:
        os.close(handle)
        if not kept:
            file.unlink(missing_ok=True)
