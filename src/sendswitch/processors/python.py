"""A user's own `async def process(mail, context)` in a file, run in a process of its own (see `child`).

The process starts with the first message, and again when the file changes. The trace records the text that the program
prints while it has a message.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from sendswitch.config.units import Size
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base
from sendswitch.processors.hosting.child import MEMORY, Code, Hosting
from sendswitch.processors.hosting.sandbox import for_file

# Most bytes of a program.
LONGEST = 512 * 1024


class PythonOptions(base.Options):
    """Options of `python`."""

    file: Path = Field(description="The file with `async def process(mail, context)`; absolute.")
    memory: Size = Field(MEMORY, ge=100_000_000, description="Most memory of its process, in bytes of address space.")

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"{value} must be an absolute path")
        try:
            compile(_source(value), str(value), "exec")
        except OSError as error:
            raise ValueError(f"{value} is not a file that can be read: {error.strerror or error}") from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{value} is not valid Python: {error}") from error
        return value


def _source(file: Path) -> bytes:
    """Return the content of a program. Never waits. Raises OSError, also for what is no plain file or is too long."""
    place = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(place)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LONGEST:
            raise OSError(f"a program is a plain file with at most {LONGEST} bytes")
        return os.read(place, LONGEST)
    finally:
        os.close(place)


class Python:
    """The step that asks the user's program."""

    Options: ClassVar[type[base.Options]] = PythonOptions

    def __init__(self, options: PythonOptions) -> None:
        self._file, self._changed, self.version = options.file, 0, ""
        code = Code("file", str(options.file), places=lambda: for_file(options.file))
        self._hosting = Hosting(options.file.name, code, options.memory, self._stamp)

    def setup(self, services: base.Services) -> None:
        """Take what the site wants for user code."""
        self._hosting.sandbox = services.sandbox

    def _stamp(self) -> int:
        """Return the time of the file's last change. Its version comes from its content."""
        changed = self._file.stat().st_mtime_ns
        if changed != self._changed:
            self._changed = changed
            self.version = hashlib.sha256(_source(self._file)).hexdigest()[:12]
        return changed

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the program's answer. Raises UserCodeError with the line that failed."""
        return await self._hosting.ask(mail, context)

    async def close(self) -> None:
        """End the process once the messages it has are done."""
        await self._hosting.close()
